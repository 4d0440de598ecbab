"""The answer: the finalists scored on the test split and timed again, each as it is in its file."""

from __future__ import annotations

import dataclasses
from functools import partial

from autocomp.core.compressed import CompressedModel
from autocomp.core.outcome import Measurement
from autocomp.core.progress import Progress
from autocomp.core.row import Row
from autocomp.evaluators.latency import LatencyMeter, disturbance_notes
from autocomp.evaluators.quality import judge, run_engine
from autocomp.evaluators.statistics import ratio_ci
from autocomp.search.evaluator import Evaluator
from autocomp.stages.finishing import Finalists
from autocomp.stages.rows import latency_fields, read_row

ENGINE_BATCH = 64
"""Images a run when a built engine is scored; the last batch is filled up."""

ENGINE_AGREEMENT = 0.995
"""Share of images whose class engine and simulation agree on, below which the row says so: integer kernels may
round single values on a boundary another way, which moves a class only where two scores all but tie."""


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Finalist:
    """A row and the network it describes; ``timing`` is its last measurement, float32 interleaved."""

    row: Row
    compressed: CompressedModel
    timing: Measurement | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Answer:
    """What the decide stage leaves.

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


def decide(evaluator: Evaluator, finalists: Finalists, progress: Progress) -> Answer:
    """Score the finalists on the test split, best first by the search split, and choose; one step a finalist."""
    limits = finalists.explored.limits
    rows = {(r.trial, r.name): r for r in finalists.explored.rows}
    progress.stage("decide", total=max(1, len(finalists.rows)))
    best: Finalist | None = None
    for row in finalists.rows:
        scored = final_scores(evaluator, row)
        evaluator.session.run.check()
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


def final_scores(evaluator: Evaluator, row: Row) -> Finalist:
    """Score on the test split (once), time again on a quiet machine, compare the engine with the simulation."""
    compressed = read_row(row)
    test = evaluator.test_quality(compressed)
    changes: dict[str, object] = {"score_test": test.score, "score_test_ci95": test.interval}
    timing = evaluator.latency(compressed, fresh=True)
    if timing is not None:
        changes.update(latency_fields(*timing))
        score, notes = engine_score(evaluator, compressed)
        changes["score_engine"] = score
        changes["notes"] = (
            *evaluator.execution_notes(compressed, timing[0]),
            *disturbance_notes(timing[0]),
            *notes,
            *batch_notes(evaluator, compressed),
        )
    row = dataclasses.replace(row, **changes)  # type: ignore[arg-type]
    return Finalist(row=row, compressed=compressed, timing=timing[0] if timing else None)


def engine_score(evaluator: Evaluator, compressed: CompressedModel) -> tuple[float | None, tuple[str, ...]]:
    """What the built engine itself scores on the search split, beside the simulation; None where it cannot run here."""
    session = evaluator.session
    meter = evaluator.meter
    if not isinstance(meter, LatencyMeter):
        return None, ()
    plan = meter.build(evaluator.onnx(compressed, ENGINE_BATCH), session.workload.example(ENGINE_BATCH).numpy())
    scored = run_engine(partial(meter.outputs, plan), session.workload.search, ENGINE_BATCH)
    simulation = evaluator.scored(compressed, session.workload.search)
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
