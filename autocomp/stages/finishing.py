"""The best few candidates recovered, by the run's workers where it has any."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence

from autocomp.core.candidate import Candidate
from autocomp.core.executor import Executor, FinishedFile, Finishing, Result, carried_out
from autocomp.core.outcome import Failed
from autocomp.core.progress import Progress
from autocomp.core.row import Row
from autocomp.core.threads import cores
from autocomp.executors import inline
from autocomp.planner.spacing import respaced
from autocomp.search.evaluator import Evaluator
from autocomp.search.job import Guarded, raise_storage_fault
from autocomp.search.reopening import Worker
from autocomp.stages.exploring import Explored
from autocomp.stages.limits import Limits
from autocomp.stages.refilling import with_files

NEGLIGIBLE_KL = 1e-5
"""Rows this close to the float32 network, in nats, have nothing to recover: their class probabilities are off by at
most 0.0022 in total variation (Pinsker's inequality)."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Finalists:
    """What the finish stage leaves to be decided.

    Attributes:
        explored: with the finished rows among its rows.
        rows: what the answer is chosen from, each in its better form; all have files.
    """

    explored: Explored
    rows: tuple[Row, ...]


def choose_finalists(rows: Sequence[Row], limits: Limits, count: int) -> list[Row]:
    """The feasible rows that finishing may turn into the answer, best first."""
    return sorted((r for r in rows if r.feasible), key=limits.rank)[:count]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Attempt:
    """A row, and the candidate whose recovery may replace it or stand beside it.

    Attributes:
        row: what is recovered.
        candidate: the row's, or with other step sizes.
        respaced: whether its steps are others.
    """

    row: Row
    candidate: Candidate
    respaced: bool = False


def attempts(evaluator: Evaluator, chosen: Sequence[Row], limits: Limits, count: int) -> list[Attempt]:
    """At most ``count``: with a budget the best row with step sizes meant for the finished network; then rows."""
    if evaluator.session.settings.finish == "none":
        return []
    own = [Attempt(row=row, candidate=Candidate.from_json(row.recipe)) for row in chosen]
    spaced = []
    if own and limits.file_bytes is not None:
        candidate = respaced(evaluator.survey.prices, own[0].candidate, limits.file_bytes)
        spaced = [Attempt(row=own[0].row, candidate=candidate, respaced=True)] if candidate is not None else []
    few = [*spaced, *own][: max(count, len(spaced) + 1)]
    return [attempt for attempt in few if attempt.row.kl_search >= NEGLIGIBLE_KL]


def finish_best(evaluator: Evaluator, explored: Explored, executor: Executor | None, progress: Progress) -> Finalists:
    """Finish the best few. A row stays as it is where finishing gains nothing, breaks a limit or fails.

    Args:
        evaluator: of this process.
        explored: what the search found.
        executor: of the run; None: this process does it.
        progress: one step an attempt.
    """
    limits, count = explored.limits, evaluator.session.settings.spend.finalists
    run, method = evaluator.session.run, evaluator.session.settings.finish
    chosen = choose_finalists(explored.rows, limits, count)
    while (filled := with_files(evaluator, explored, chosen, progress)) is not explored:
        explored = filled  # a row written again may turn out otherwise, and others move up
        chosen = choose_finalists(explored.rows, limits, count)
    tried = attempts(evaluator, chosen, limits, count)
    progress.stage("finish", total=max(1, len(tried)))
    finished: list[Row] = []
    notes: list[str] = []
    finalists = {row.name: row for row in chosen}
    for attempt, outcome in _carried_out(evaluator, tried, limits, executor):
        raise_storage_fault(outcome)
        run.check()
        if isinstance(outcome, FinishedFile):
            row = finished_row(attempt, outcome, limits, method)
            if row.feasible and (attempt.respaced or limits.rank(row) <= limits.rank(attempt.row)):
                finished.append(row)
                finalists[row.name if attempt.respaced else attempt.row.name] = row
        elif isinstance(outcome, Failed):
            notes.append(f"{attempt.row.name} stays as it was: finishing it failed: {outcome.message}")
            progress.note(f"{notes[-1]} (more in {run.log})")
            run.write_log(f"{notes[-1]}\n{outcome.traceback}")
        progress.advance()
    best = sorted(finalists.values(), key=limits.rank)[: max(count, len(tried))]
    rows = {(r.trial, r.name): r for r in (*explored.rows, *finished)}
    explored = dataclasses.replace(explored, rows=tuple(rows.values()), notes=(*explored.notes, *notes))
    return Finalists(explored=explored, rows=tuple(best))


def _carried_out(
    evaluator: Evaluator, tried: Sequence[Attempt], limits: Limits, executor: Executor | None
) -> Iterator[tuple[Attempt, Result]]:
    """Attempts and what became of them, as they end.

    Workers do it where there are as many attempts as workers or CPUs here: this process has more threads than each of
    them. What workers died of is tried once more here.
    """
    jobs = [
        Finishing(number=i, attempt=1, candidate=a.candidate, budget_bytes=limits.file_bytes)
        for i, a in enumerate(tried)
    ]
    here = inline.make(Guarded(lambda: Worker(evaluator.session, evaluator)))
    team = executor if executor is not None and len(jobs) >= min(executor.slots(), cores()) else here
    again = []
    for event in carried_out(team, jobs):
        if team is not here and isinstance(event.outcome, Failed) and event.outcome.kind == "died":
            again.append(jobs[event.job.number])
        else:
            yield tried[event.job.number], event.outcome
    for event in carried_out(here, again):
        yield tried[event.job.number], event.outcome


def finished_row(attempt: Attempt, made: FinishedFile, limits: Limits, method: str) -> Row:
    """The row of a recovered network. Structure and precisions are the old row's, and so are engine and latency."""
    row = dataclasses.replace(
        attempt.row,
        name=f"trial {attempt.row.trial} {'respaced' if attempt.respaced else 'finished'}",
        candidate=attempt.candidate.id,
        file=made.path,
        file_bytes=made.file_bytes,
        kl_search=made.kl,
        score_search=made.score,
        techniques=(*attempt.candidate.techniques(), f"finish_{method}"),
        recipe=attempt.candidate.to_json(),
    )
    return dataclasses.replace(row, feasible=limits.feasible(row))
