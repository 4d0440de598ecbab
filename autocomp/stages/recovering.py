"""Recover the best few candidates, measure them again, and keep what is really better."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import torch

from autocomp.core.candidate import Candidate
from autocomp.core.compressed import CompressedModel
from autocomp.core.outcome import Completed, Measurement
from autocomp.core.progress import Progress
from autocomp.core.row import Row
from autocomp.evaluators.quality import Scored, judge
from autocomp.evaluators.statistics import ratio_ci
from autocomp.finish import find_finish
from autocomp.search.evaluator import Evaluator
from autocomp.stages.exploring import Explored
from autocomp.stages.limits import Limits
from autocomp.stages.rows import latency_fields, make_row
from autocomp.transforms.calibrate import calibrate_activations


def choose_finalists(rows: Sequence[Row], limits: Limits, count: int) -> list[Row]:
    """The feasible rows that finishing may turn into the answer, best first."""
    return sorted((r for r in rows if r.feasible), key=limits.rank)[:count]


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Finalist:
    """A row and the network it describes; ``timing`` is its last measurement, float32 interleaved."""

    row: Row
    compressed: CompressedModel
    timing: Measurement | None = None


PASSES = 3
"""At most so many passes of the finisher, each with wider steps, until the file keeps the budget."""


def wider(factor: float, file_bytes: int, budget: int, weights: int) -> float:
    """The step factor that should bring a file that is over budget to just below it.

    Steps twice as wide take one bit a weight less (high-rate theory, Gish and Pierce 1968); a third is added,
    since at low rates they take less than that.
    """
    over_bits = 8.0 * (file_bytes - budget) / max(1, weights)
    return float(factor * 2.0 ** (1.33 * over_bits + 0.002))


def finish_row(evaluator: Evaluator, row: Row, limits: Limits) -> Finalist | None:
    """The recovered form of ``row``; None where it gained nothing or broke a limit (then the row stays).

    Finishing changes symbols, so the file is written and measured again.
    """
    session = evaluator.session
    method = session.settings.finish
    if method == "none":
        return None
    candidate = Candidate.from_json(row.recipe)
    before = evaluator.realise(candidate)
    path = session.run.candidates / f"{candidate.id}-finished.autocomp"
    network = evaluator.structured(candidate).network
    weights = sum(layer.parameters for layer in network.layers.values())
    factor = 1.0
    for _ in range(PASSES):
        after = refit(evaluator, before, factor)
        file_bytes = evaluator.write(after, path)
        if limits.file_bytes is None or file_bytes <= limits.file_bytes:
            break
        factor = wider(factor, file_bytes, limits.file_bytes, weights)
    quality = evaluator.quality(after)
    done = Completed(file_bytes=file_bytes, kl=quality.loss, score=quality.score)
    made = make_row(f"trial {row.trial} finished", candidate, done, limits, trial=row.trial, file=str(path))
    # same structure and precision, so the same engine: its latency is the trial's
    finished = dataclasses.replace(
        made,
        latency_ms=row.latency_ms,
        latency_ms_ci95=row.latency_ms_ci95,
        latency_source=row.latency_source,
        engine_bytes=row.engine_bytes,
        techniques=(*row.techniques, f"finish_{method}"),
    )
    finished = dataclasses.replace(finished, feasible=limits.feasible(finished))
    if not finished.feasible or limits.rank(finished) > limits.rank(row):
        path.unlink()
        return None
    return Finalist(row=finished, compressed=after)


def refit(evaluator: Evaluator, before: CompressedModel, step_factor: float) -> CompressedModel:
    """One pass of the finisher, then activation ranges of the network it made."""
    session = evaluator.session
    finish = find_finish(session.settings.finish)
    form = evaluator.structured(before.candidate)
    found = finish(
        form.network,
        before.replace(candidate=form.by_layer(before.candidate)),
        session.calibration,
        step_factor=step_factor,
        seed=session.settings.seed,
    )
    after = found.compressed.replace(candidate=before.candidate)
    quantizers = calibrate_activations(
        form.network,
        form.activation_values(before.candidate),
        session.calibration,
        symmetric=form.placement.symmetric,
        compressed=after,
    )
    return after.replace(activations=quantizers)


def final_scores(evaluator: Evaluator, finalist: Finalist) -> Finalist:
    """Score on the test split (once), time again on a quiet machine, compare the engine with the simulation."""
    compressed, row = finalist.compressed, finalist.row
    test = evaluator.test_quality(compressed)
    changes: dict[str, object] = {"score_test": test.score, "score_test_ci95": test.interval}
    timing = evaluator.latency(compressed, fresh=True)
    if timing is not None:
        changes.update(latency_fields(*timing))
        notes = (*engine_notes(evaluator, compressed, test.score), *batch_notes(evaluator, compressed))
        changes["notes"] = (*row.notes, *notes)
    row = dataclasses.replace(row, **changes)  # type: ignore[arg-type]
    return dataclasses.replace(finalist, row=row, timing=timing[0] if timing else None)


def engine_notes(evaluator: Evaluator, compressed: CompressedModel, simulated_score: float) -> tuple[str, ...]:
    """What the exported engine itself scores on the test split, beside the simulation."""
    session = evaluator.session
    profile = session.target.profile
    example = session.workload.example(1).numpy()
    engine = session.target.runtime.build(evaluator.onnx(compressed), profile, example)
    try:
        outputs, targets = [], []
        for inputs, labels in session.workload.test.batches(64):
            outputs.append(torch.from_numpy(np.array(engine.run(inputs.numpy()))))
            targets.append(labels)
    finally:
        engine.close()
    workload = session.workload
    scored = Scored(outputs=torch.cat(outputs).float(), targets=torch.cat(targets))
    quality = judge(scored, evaluator.test_reference, workload.metric, classes=workload.classes)
    text = (
        f"the {profile.runtime} engine itself scores {quality.score:.4f} on the test split "
        f"(simulation {simulated_score:.4f})"
    )
    return (text,)


def batch_notes(evaluator: Evaluator, compressed: CompressedModel) -> tuple[str, ...]:
    """Latency at the further batch sizes that were asked for, beside float32 measured in turn."""
    notes = []
    for batch in evaluator.session.settings.batch_size[1:]:
        timing = evaluator.latency(compressed, batch)
        if timing is not None:
            ratio, (low, high) = ratio_ci(timing[0].samples_s, timing[0].reference_s)
            notes.append(
                f"batch {batch}: {timing[0].median_s() * 1e3:.3g} ms, "
                f"{ratio:.2f} x float32's latency [{low:.2f}, {high:.2f}]"
            )
    return tuple(notes)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Answer:
    """What the finish stage leaves.

    Attributes:
        rows: every evaluated row, finalists in their final form, finished forms added.
        best: the answer, or None where nothing is feasible.
        compressed: the network of ``best``.
        timing: its measurement.
    """

    rows: tuple[Row, ...]
    best: Row | None
    compressed: CompressedModel | None
    timing: Measurement | None


def recover(evaluator: Evaluator, explored: Explored, progress: Progress) -> Answer:
    """Finish the best few, choose on the search split, then score the choice and its rivals on the test split."""
    limits, count = explored.limits, evaluator.session.settings.spend.finalists
    chosen = choose_finalists(explored.rows, limits, count)
    rows = {(r.trial, r.name): r for r in explored.rows}
    progress.stage("finish", total=max(1, 2 * len(chosen)))
    finalists = []
    for row in chosen:
        finished = finish_row(evaluator, row, limits)
        if finished is not None:
            rows[finished.row.trial, finished.row.name] = finished.row
        plain = Finalist(row=row, compressed=evaluator.realise(Candidate.from_json(row.recipe)))
        finalists.append(finished or plain)
        progress.advance()
    best: Finalist | None = None
    for finalist in sorted(finalists, key=lambda f: limits.rank(f.row)):
        scored = final_scores(evaluator, finalist)
        scored = dataclasses.replace(scored, row=dataclasses.replace(scored.row, feasible=limits.feasible(scored.row)))
        rows[scored.row.trial, scored.row.name] = scored.row
        if scored.row.feasible and (best is None or limits.rank(scored.row) < limits.rank(best.row)):
            best = scored
        progress.advance()
    return Answer(
        rows=tuple(rows.values()),
        best=best.row if best else None,
        compressed=best.compressed if best else None,
        timing=best.timing if best else None,
    )
