"""A finishing task carried out: the candidate fitted anew, its file made to fill the budget, written and scored."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

import autocomp
from autocomp.core.candidate import Candidate
from autocomp.core.compressed import CompressedModel
from autocomp.core.executor import FinishedFile, Finishing
from autocomp.core.run_folder import storage_errors, write_atomic
from autocomp.core.steps import Choice
from autocomp.evaluators.artifact import read_compressed
from autocomp.finish import find_finish
from autocomp.search.evaluator import Evaluator
from autocomp.transforms.calibrate import calibrate_activations
from autocomp.transforms.quantize import QuantizeWeights

PROBES = 3
"""At most so many quick passes of the finisher, on few images, that look for the step factor."""

PASSES = 3
"""At most so many passes on all calibration images, until the file keeps the budget and uses it."""

PROBE_IMAGES = 64

MARGIN = 0.003
"""Files are aimed this fraction below the budget: half of what the images of a pass change in its bytes."""

FILL = 0.985
"""A file smaller than this fraction of the budget is refitted with finer steps."""


def finish(evaluator: Evaluator, job: Finishing) -> FinishedFile:
    """The recovered form of a candidate in a file of the run folder; what is in the file is what is scored.

    A finishing that an earlier process of the run completed is not done again: its result lies beside it.
    """
    session, run = evaluator.session, evaluator.session.run
    path = run.candidates / f"{job.candidate.id}-finished.autocomp"
    record = run.cache / "finished" / f"{path.stem}.json"
    asked = {
        "autocomp": autocomp.__version__,
        "method": session.settings.finish,
        "budget_bytes": job.budget_bytes,
        "placement": repr(session.target.profile.placement),
    }
    known = _known(record, asked, path)
    if known is not None:
        return known
    draft = record.with_suffix(f".{os.getpid()}.draft")  # the file of an earlier answer stays whole until then
    _, file_bytes = fitted(evaluator, starting_point(evaluator, job.candidate), draft, job.budget_bytes)
    quality = evaluator.quality(read_compressed(draft, job.candidate))
    found = FinishedFile(path=str(path), file_bytes=file_bytes, kl=quality.loss, score=quality.score)
    with storage_errors(record):
        record.unlink(missing_ok=True)
        path.parent.mkdir(exist_ok=True)
        os.replace(draft, path)
        write_atomic(record, json.dumps({"asked": asked, "found": dataclasses.asdict(found)}).encode())
    return found


def _known(record: Path, asked: dict[str, Any], path: Path) -> FinishedFile | None:
    """What ``record`` says of the file at ``path``, where it is there and the same was asked for."""
    try:
        data = json.loads(record.read_text())
        found = FinishedFile(**{**data["found"], "path": str(path)})  # the folder may have been moved or copied
        return found if data["asked"] == asked and path.stat().st_size == found.file_bytes else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def matching(factor: float, file_bytes: int, budget: int, weights: int) -> float:
    """The step factor that should bring a file of ``file_bytes``, made with ``factor``, to just below ``budget``.

    Steps twice as wide take one bit a weight less (high-rate theory, Gish and Pierce 1968), and less than that
    at low rates: a third is added. At most a factor of two at a time.
    """
    over_bits = 8.0 * (file_bytes - (1.0 - MARGIN) * budget) / max(1, weights)
    return float(factor * 2.0 ** max(-1.0, min(1.0, 1.33 * over_bits)))


def starting_point(evaluator: Evaluator, candidate: Candidate) -> CompressedModel:
    """The candidate before the finisher; steps that were never priced are rounded to nearest, as it rounds anew."""
    changes = {}
    for unit, prices in evaluator.survey.prices.storage.items():
        step = candidate[unit].get("weights")
        if candidate[unit].storage() not in prices.choices and isinstance(step, QuantizeWeights):
            plain = dataclasses.replace(step, rounding="nearest")
            changes[unit] = Choice((*candidate[unit].without("weights").steps, plain))
    return evaluator.realise(candidate.replace(changes)).replace(candidate=candidate)


def fitted(
    evaluator: Evaluator, before: CompressedModel, path: Path, budget: int | None
) -> tuple[CompressedModel, int]:
    """The finisher's result with the step factor that fills ``budget``, and the bytes of its file at ``path``."""
    session = evaluator.session
    layers = evaluator.structured(before.candidate).network.layers.values()
    weights = sum(layer.parameters for layer in layers)
    steps = [c.get("weights") for _, c in before.candidate.items()]
    factor, spaced = 1.0, any(isinstance(s, QuantizeWeights) and s.step is not None for s in steps)
    if budget is not None and spaced:
        few = [session.calibration[0][:PROBE_IMAGES]]
        for _ in range(PROBES):
            file_bytes = evaluator.write(refit(evaluator, before, factor, few), path)
            if (FILL + 1) / 2 * budget <= file_bytes <= budget:
                break
            factor = matching(factor, file_bytes, budget, weights)
    for _ in range(PASSES):
        after = refit(evaluator, before, factor, session.calibration)
        file_bytes = evaluator.write(after, path)
        if budget is None or not spaced or FILL * budget <= file_bytes <= budget:
            break
        factor = matching(factor, file_bytes, budget, weights)
    return after, file_bytes


def refit(
    evaluator: Evaluator, before: CompressedModel, step_factor: float, images: Sequence[torch.Tensor]
) -> CompressedModel:
    """One pass of the finisher on calibration ``images``, then activation ranges of the network it made."""
    session = evaluator.session
    finish = find_finish(session.settings.finish)
    form = evaluator.structured(before.candidate)
    found = finish(
        form.network,
        before.replace(candidate=form.by_layer(before.candidate)),
        images,
        step_factor=step_factor,
        seed=session.settings.seed,
    )
    after = found.compressed.replace(candidate=before.candidate)
    quantizers = calibrate_activations(
        form.network,
        form.activation_values(before.candidate),
        images,
        symmetric=form.placement.symmetric,
        compressed=after,
    )
    return after.replace(activations=quantizers)
