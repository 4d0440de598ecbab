"""Recover the best few candidates, measure them again, and keep what is really better."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import torch

from autocomp.core.candidate import Candidate
from autocomp.core.compressed import CompressedModel
from autocomp.core.outcome import Completed, Measurement
from autocomp.core.progress import Progress
from autocomp.core.row import Row
from autocomp.core.steps import Choice
from autocomp.evaluators.latency import LatencyMeter
from autocomp.evaluators.quality import judge, run_engine, run_split
from autocomp.evaluators.statistics import ratio_ci
from autocomp.finish import find_finish
from autocomp.planner.spacing import respaced
from autocomp.search.evaluator import Evaluator
from autocomp.stages.exploring import Explored
from autocomp.stages.limits import Limits
from autocomp.stages.refilling import with_files
from autocomp.stages.rows import latency_fields, make_row
from autocomp.transforms.calibrate import calibrate_activations
from autocomp.transforms.quantize import QuantizeWeights


def choose_finalists(rows: Sequence[Row], limits: Limits, count: int) -> list[Row]:
    """The feasible rows that finishing may turn into the answer, best first."""
    return sorted((r for r in rows if r.feasible), key=limits.rank)[:count]


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Finalist:
    """A row and the network it describes; ``timing`` is its last measurement, float32 interleaved."""

    row: Row
    compressed: CompressedModel
    timing: Measurement | None = None


ENGINE_BATCH = 64
"""Images a run when a built engine is scored; the last batch is filled up."""

ENGINE_AGREEMENT = 0.995
"""Share of images whose class engine and simulation agree on, below which the row says so: integer kernels may
round single values on a boundary another way, which moves a class only where two scores all but tie."""

PROBES = 3
"""At most so many quick passes of the finisher, on few images, that look for the step factor."""

NEGLIGIBLE_KL = 1e-5
"""Rows this close to the float32 network, in nats, have nothing to recover: their class probabilities are off by at
most 0.0022 in total variation (Pinsker's inequality)."""

PASSES = 3
"""At most so many passes on all calibration images, until the file keeps the budget and uses it."""

PROBE_IMAGES = 64

MARGIN = 0.003
"""Files are aimed this fraction below the budget: half of what the images of a pass change in its bytes."""

FILL = 0.985
"""A file smaller than this fraction of the budget is refitted with finer steps."""


def matching(factor: float, file_bytes: int, budget: int, weights: int) -> float:
    """The step factor that should bring a file of ``file_bytes``, made with ``factor``, to just below ``budget``.

    Steps twice as wide take one bit a weight less (high-rate theory, Gish and Pierce 1968), and less than that
    at low rates: a third is added. At most a factor of two at a time.
    """
    over_bits = 8.0 * (file_bytes - (1.0 - MARGIN) * budget) / max(1, weights)
    return float(factor * 2.0 ** max(-1.0, min(1.0, 1.33 * over_bits)))


def finish_row(evaluator: Evaluator, row: Row, limits: Limits, candidate: Candidate | None = None) -> Finalist | None:
    """The recovered form of ``row``; None where it gained nothing or broke a limit (then the row stays).

    Finishing changes symbols, so the file is written and measured again.

    Args:
        evaluator: of the session.
        row: what is recovered.
        limits: the constraints.
        candidate: the row's with other step sizes; kept wherever it is feasible.
    """
    session = evaluator.session
    method = session.settings.finish
    if method == "none" or row.kl_search < NEGLIGIBLE_KL:
        return None
    other_steps, candidate = candidate is not None, candidate or Candidate.from_json(row.recipe)
    path = session.run.candidates / f"{candidate.id}-finished.autocomp"
    after, file_bytes = fitted(evaluator, starting_point(evaluator, candidate), path, limits.file_bytes)
    quality = evaluator.quality(after)
    done = Completed(file_bytes=file_bytes, kl=quality.loss, score=quality.score)
    name = f"trial {row.trial} {'respaced' if other_steps else 'finished'}"
    made = make_row(name, candidate, done, limits, trial=row.trial, file=str(path))
    # same structure and precision, so the same engine: its latency is the trial's
    finished = dataclasses.replace(
        made,
        latency_ms=row.latency_ms,
        latency_ms_ci95=row.latency_ms_ci95,
        latency_ratio=row.latency_ratio,
        latency_source=row.latency_source,
        engine_bytes=row.engine_bytes,
        techniques=(*made.techniques, f"finish_{method}"),
    )
    finished = dataclasses.replace(finished, feasible=limits.feasible(finished))
    if not finished.feasible or (not other_steps and limits.rank(finished) > limits.rank(row)):
        path.unlink()
        return None
    return Finalist(row=finished, compressed=after)


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


def final_scores(evaluator: Evaluator, finalist: Finalist) -> Finalist:
    """Score on the test split (once), time again on a quiet machine, compare the engine with the simulation."""
    compressed, row = finalist.compressed, finalist.row
    test = evaluator.test_quality(compressed)
    changes: dict[str, object] = {"score_test": test.score, "score_test_ci95": test.interval}
    timing = evaluator.latency(compressed, fresh=True)
    if timing is not None:
        changes.update(latency_fields(*timing))
        score, notes = engine_score(evaluator, compressed)
        changes["score_engine"] = score
        changes["notes"] = (*row.notes, *notes, *batch_notes(evaluator, compressed))
    row = dataclasses.replace(row, **changes)  # type: ignore[arg-type]
    return dataclasses.replace(finalist, row=row, timing=timing[0] if timing else None)


def engine_score(evaluator: Evaluator, compressed: CompressedModel) -> tuple[float | None, tuple[str, ...]]:
    """What the built engine itself scores on the search split, beside the simulation; None where it cannot run here."""
    session = evaluator.session
    meter = evaluator.meter
    if not isinstance(meter, LatencyMeter):
        return None, ()
    plan = meter.build(evaluator.onnx(compressed, ENGINE_BATCH), session.workload.example(ENGINE_BATCH).numpy())
    scored = run_engine(partial(meter.outputs, plan), session.workload.search, ENGINE_BATCH)
    simulation = run_split(evaluator.simulated(compressed), session.workload.search)
    workload = session.workload
    found, wanted = (
        judge(s, evaluator.reference, workload.metric, classes=workload.classes) for s in (scored, simulation)
    )
    text = (
        f"the {session.target.profile.runtime} engine itself scores {found.score:.4f} on the search split "
        f"(simulation {wanted.score:.4f}"
    )
    if workload.classes is None:
        return found.score, (f"{text})",)
    agreement = float((scored.outputs.argmax(1) == simulation.outputs.argmax(1)).float().mean())
    flag = "" if agreement >= ENGINE_AGREEMENT else f"; below {ENGINE_AGREEMENT:.1%}: trust the engine's figure"
    return found.score, (f"{text}, same class for {agreement:.1%}{flag})",)


def batch_notes(evaluator: Evaluator, compressed: CompressedModel) -> tuple[str, ...]:
    """Latency at the further batch sizes that were asked for, beside float32 measured in turn."""
    notes = []
    for batch in evaluator.session.settings.batch_size[1:]:
        timing = evaluator.latency(compressed, batch)
        if timing is not None and timing[0].reference_s:
            ratio, (low, high) = ratio_ci(timing[0].samples_s, timing[0].reference_s)
            span = f" [{low:.2f}, {high:.2f}]" if timing[0].source == "measured" else ", predicted"
            notes.append(f"batch {batch}: {timing[0].median_s() * 1e3:.3g} ms, {ratio:.2f} x float32's latency{span}")
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


def respaced_finalist(evaluator: Evaluator, chosen: Sequence[Row], limits: Limits) -> Finalist | None:
    """The best row with step sizes meant for the finished network; None without a budget, a finisher or steps."""
    if not chosen or limits.file_bytes is None or evaluator.session.settings.finish == "none":
        return None
    candidate = respaced(evaluator.survey.prices, Candidate.from_json(chosen[0].recipe), limits.file_bytes)
    return None if candidate is None else finish_row(evaluator, chosen[0], limits, candidate)


def recover(evaluator: Evaluator, explored: Explored, progress: Progress) -> Answer:
    """Finish the best few, choose on the search split, then score the choice and its rivals on the test split."""
    limits, count = explored.limits, evaluator.session.settings.spend.finalists
    explored = with_files(evaluator, explored, choose_finalists(explored.rows, limits, count), progress)
    chosen = choose_finalists(explored.rows, limits, count)
    rows = {(r.trial, r.name): r for r in explored.rows}
    finalists = []
    refilled = respaced_finalist(evaluator, chosen, limits)
    if refilled is not None:
        rows[refilled.row.trial, refilled.row.name] = refilled.row
        finalists.append(refilled)
        chosen = chosen[: max(1, count - 1)]
    progress.stage("finish", total=max(1, 2 * len(chosen) + len(finalists)))
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
