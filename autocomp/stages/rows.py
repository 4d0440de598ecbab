"""Rows from outcomes."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from autocomp.core.candidate import Candidate
from autocomp.core.compressed import CompressedModel
from autocomp.core.outcome import Completed, Measurement
from autocomp.core.row import Row
from autocomp.evaluators.artifact import read_compressed
from autocomp.evaluators.statistics import median_ci, median_ratio
from autocomp.search.evaluator import Evaluator
from autocomp.stages.limits import Limits


def latency_fields(timing: Measurement | None, engine_bytes: int | None) -> dict[str, object]:
    """What timing gives a row: milliseconds, 95 % bootstrap interval of the median where measured, source, energy."""
    if timing is None:
        return {}
    energy_j = timing.conditions.get("energy_j")
    low, high = median_ci(timing.samples_s)
    return {
        "latency_ms": timing.median_s() * 1e3,
        "latency_ms_ci95": (low * 1e3, high * 1e3) if timing.source == "measured" else None,
        "latency_ratio": median_ratio(timing.samples_s, timing.reference_s) if timing.reference_s else None,
        "latency_source": timing.source,
        "energy_mj": None if energy_j is None else 1e3 * energy_j,
        "engine_bytes": engine_bytes,
    }


def make_row(
    name: str,
    candidate: Candidate,
    done: Completed,
    limits: Limits,
    *,
    trial: int | None = None,
    file: str | None = None,
    techniques: tuple[str, ...] = (),
) -> Row:
    """A row of any evaluated network; feasibility from ``limits``."""
    fields = {
        "name": name,
        "trial": trial,
        "candidate": candidate.id,
        "file": file,
        "file_bytes": done.file_bytes,
        "score_search": done.score,
        "kl_search": done.kl,
        "techniques": (*candidate.techniques(), *techniques),
        "recipe": candidate.to_json(),
        "notes": done.notes,
        **latency_fields(done.latency, done.engine_bytes),
    }
    row = Row.from_json(fields)
    return dataclasses.replace(row, feasible=limits.feasible(row))


def float32_row(evaluator: Evaluator, limits: Limits) -> Row:
    """The uncompressed network: 4 bytes an element, its own scores, its latency in the same runtime."""
    timing = evaluator.float32_latency()
    done = Completed(
        file_bytes=evaluator.session.workload.float32_bytes(),
        kl=0.0,
        score=limits.reference_score,
        latency=timing[0] if timing else None,
        engine_bytes=timing[1] if timing else None,
    )
    test, metric = evaluator.test_reference, limits.metric
    return dataclasses.replace(
        make_row("float32", Candidate({}), done, limits),
        candidate="",
        score_test=metric.compute(test.outputs, test.targets, test.outputs),
        score_test_ci95=metric.interval(test.outputs, test.targets, test.outputs) if metric.interval else None,
    )


def read_row(row: Row) -> CompressedModel:
    """The network in a row's file."""
    return read_compressed(Path(row.file or ""), Candidate.from_json(row.recipe))
