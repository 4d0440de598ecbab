"""Keeps the executor busy until the coordinator has nothing left."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

from autocomp.core.executor import Executor, Job
from autocomp.core.outcome import Completed, Outcome
from autocomp.core.progress import Progress, Silent
from autocomp.search.coordinator import Coordinator
from autocomp.search.front import pareto_mask
from autocomp.search.job import raise_storage_fault
from autocomp.search.records import Record


@dataclass(frozen=True, kw_only=True)
class SearchStats:
    """What a search did, earlier runs of the same study included.

    Attributes:
        evaluations: finished rows that were evaluated, failures included.
        cache_hits: rows that repeated a candidate.
        engine_builds: rows that needed an engine of their own.
        failures: count by "stage/kind".
        seconds: wall seconds of this run.
    """

    evaluations: int
    cache_hits: int
    engine_builds: int = 0
    failures: dict[str, int] = field(default_factory=dict)
    seconds: float = 0.0


def run_search(
    coordinator: Coordinator,
    executor: Executor,
    *,
    timeout_s: float | None = None,
    progress: Progress | None = None,
    on_outcome: Callable[[Job, Outcome], None] | None = None,
) -> SearchStats:
    """Evaluate until the budget is spent, the sampler is exhausted or ``timeout_s`` has passed.

    A full or broken disk ends the search (``StorageError``); the jobs that met it are started again as well.
    After the timeout no job is started; those under way are waited for. Ctrl-C goes up at once:
    jobs under way have no outcome and are started again by the next run of the same study.

    Args:
        coordinator: hands out jobs.
        executor: evaluates them; the caller closes it.
        timeout_s: seconds after which nothing more is started.
        progress: told of each finished evaluation.
        on_outcome: called with each outcome as the study holds it (NaN is a failure there), once it is safe.
    """
    progress = progress or Silent()
    start = time.monotonic()
    while True:
        late = timeout_s is not None and time.monotonic() - start >= timeout_s
        while not late and executor.slots() > 0:
            job = coordinator.ask()
            if job is None:
                break
            executor.submit(job)
        if coordinator.running == 0:
            break
        event = executor.next_event()
        if event is None:
            continue
        done, outcome = event.job, event.outcome
        assert isinstance(done, Job)
        assert isinstance(outcome, Outcome)
        raise_storage_fault(outcome)
        if coordinator.tell(done.number, outcome):
            progress.advance(1, **facts(coordinator))
            if on_outcome is not None:
                on_outcome(done, coordinator.records[done.number].outcome)
    return SearchStats(
        evaluations=coordinator.evaluations,
        cache_hits=coordinator.cache_hits,
        engine_builds=coordinator.engine_builds,
        failures=coordinator.failures,
        seconds=time.monotonic() - start,
    )


def facts(coordinator: Coordinator) -> dict[str, object]:
    """Failures, size of the front and the best feasible row so far, for a progress line."""
    records = [r for r in coordinator.records.values() if r.cached_from is None]
    completed = [r for r in records if isinstance(r.outcome, Completed)]
    values = [r.values(coordinator.objectives) or [] for r in completed]
    best = min((r for r in completed if r.feasible), key=_loss, default=None)
    return {
        "failures": coordinator.failures,
        "front": int(pareto_mask(values).sum()) if values else 0,
        "best": _text(best),
    }


def _loss(record: Record) -> tuple[float, int]:
    assert isinstance(record.outcome, Completed)
    return record.outcome.kl, record.outcome.file_bytes


def _text(record: Record | None) -> str:
    if record is None or not isinstance(record.outcome, Completed):
        return "none feasible yet"
    outcome = record.outcome
    return f"{outcome.file_bytes / 1e6:.3f} MB, loss {outcome.kl:.4g}, score {outcome.score:.4g}"
