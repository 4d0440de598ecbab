"""What anyone would try first, measured the same way: the rows a search has to beat."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

from autocomp.core.candidate import Candidate
from autocomp.core.progress import Progress
from autocomp.core.row import Row
from autocomp.core.space import Unit
from autocomp.core.steps import Choice, StepConfig
from autocomp.search.evaluator import Evaluator
from autocomp.search.session import Session
from autocomp.stages.limits import Limits
from autocomp.stages.rows import make_row
from autocomp.transforms.float8 import Float8Weights
from autocomp.transforms.quantize import QuantizeActivations, QuantizeWeights


def baseline_candidates(session: Session) -> dict[str, Candidate]:
    """float16 weights, int8, and uniform 4-bit with the maximum as scale, rounding to nearest; float8 where it runs."""
    half = Choice((QuantizeWeights(bits=16),))
    int8 = QuantizeWeights(bits=8, scale="max", rounding="nearest")
    four = Choice((QuantizeWeights(bits=4, scale="max", rounding="nearest"),))
    units = session.space.units.values()

    def executed(unit: Unit, weights: StepConfig, precision: str) -> Choice:
        activations = QuantizeActivations(precision=precision)
        offered = (Choice((a,)) for a in unit.axes.get("activations", ()) if a is not None)
        return Choice((weights, activations) if any(c.precision == precision for c in offered) else (weights,))

    found = {
        "float16": Candidate({u.name: half for u in units}),
        "int8": Candidate({u.name: executed(u, int8, "int8") for u in units}),
        "uniform-4bit": Candidate({u.name: four for u in units}),
    }
    float8 = Candidate({u.name: executed(u, Float8Weights(), "float8") for u in units})
    return found | ({"float8": float8} if any(c.precision for c in float8.values()) else {})


def measure_baselines(evaluator: Evaluator, limits: Limits, float32: Row, progress: Progress) -> dict[str, Row]:
    """Evaluate every baseline, once a run; "fastest" is the fastest setting the runtime has without compression."""
    run = evaluator.session.run
    store = run.cache / "baselines.json"
    known: dict[str, Any] = json.loads(store.read_text()) if store.is_file() else {}
    rows: dict[str, Row] = {}
    candidates = baseline_candidates(evaluator.session)
    progress.stage("baselines", total=len(candidates))
    for name, candidate in candidates.items():
        row = _measured_before(known.get(name), candidate)
        if row is None:
            row = _measured(evaluator, limits, name, candidate)
            known[name] = row.to_json()
            run.write_json(store, known)
        rows[name] = dataclasses.replace(row, feasible=limits.feasible(row))
        progress.advance()
    note = "the runtime has no faster setting without compression than float32 on this device"
    rows["fastest"] = dataclasses.replace(float32, name="fastest", notes=(note,))
    return rows


def _measured_before(data: dict[str, Any] | None, candidate: Candidate) -> Row | None:
    """The row of an earlier start of the same run, if it is of this candidate and its file is still there."""
    row = Row.from_json(data) if data is not None else None
    same = row is not None and row.candidate == candidate.id and row.file is not None and Path(row.file).is_file()
    return row if same else None


def _measured(evaluator: Evaluator, limits: Limits, name: str, candidate: Candidate) -> Row:
    path = evaluator.session.run.baselines / f"{name}.autocomp"
    done, compressed = evaluator.measure(candidate, path)
    test = evaluator.test_quality(compressed)  # nothing is chosen by it
    row = make_row(name, candidate, done, limits, file=str(path))
    return dataclasses.replace(row, score_test=test.score, score_test_ci95=test.interval)
