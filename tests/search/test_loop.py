"""The loop: full slots, facts for the progress line, and a clean end in every case."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from autocomp.core.executor import Evaluate, Job
from autocomp.core.outcome import Completed, Outcome
from autocomp.core.progress import Silent
from autocomp.errors import StorageError
from autocomp.executors import inline, processes
from autocomp.search.coordinator import Coordinator
from autocomp.search.job import Guarded
from autocomp.search.loop import run_search
from autocomp.search.sampler import make_sampler
from autocomp.search.storage import open_storage
from autocomp.testing.sampler_contract import context_for
from autocomp.testing.study_fakes import FakeFactory, fake_outcome, fake_space, within_budget

SPACE = fake_space(4)


class Remembered(Silent):
    """Progress that keeps what it was told."""

    def __init__(self) -> None:
        self.facts: list[dict[str, Any]] = []

    def advance(self, steps: int = 1, **facts: Any) -> None:
        self.facts.append({"steps": steps, **facts})


@contextlib.contextmanager
def opened(folder: Path, trials: int) -> Iterator[Coordinator]:
    """The study in ``folder``, new or gone on with."""
    with open_storage(folder / "study.journal") as storage:
        yield Coordinator(
            space=SPACE,
            sampler=make_sampler("random", context_for(SPACE)),
            storage=storage,
            study_name="loop",
            identity={},
            budget_trials=trials,
            constraints=within_budget,
        )


@pytest.fixture
def coordinator(tmp_path: Path) -> Iterator[Coordinator]:
    with opened(tmp_path, trials=20) as made:
        yield made


def test_counts_facts_and_outcomes(coordinator: Coordinator) -> None:
    progress, seen = Remembered(), []
    factory = Guarded(FakeFactory(units=4, accidents=((3, "raise"), (5, "oom"), (8, "nan"), (9, "raise"))))

    def on_outcome(job: Job, outcome: Outcome) -> None:
        assert coordinator.records[job.number].outcome is outcome, "told before it was safe"
        seen.append(job.number)

    stats = run_search(coordinator, inline.make(factory), progress=progress, on_outcome=on_outcome)
    assert (stats.evaluations, stats.cache_hits) == (20, 0)
    assert stats.failures == {"build/RuntimeError": 2, "build/oom": 1, "quality/nan": 1}
    assert seen == list(range(20))
    assert sum(f["steps"] for f in progress.facts) == 20
    last = progress.facts[-1]
    assert last["failures"] == stats.failures
    best = min(r.outcome.kl for r in coordinator.records.values() if r.feasible)  # type: ignore[union-attr]
    assert f"loss {best:.4g}" in last["best"]
    assert last["front"] >= 1


def test_several_workers(coordinator: Coordinator) -> None:
    executor = processes.make(Guarded(FakeFactory(units=4, accidents=((2, "die-once"),))), jobs=2)
    try:
        stats = run_search(coordinator, executor)
    finally:
        executor.close()
    assert (stats.evaluations, stats.failures) == (20, {})
    assert all(isinstance(r.outcome, Completed) for r in coordinator.records.values())


def test_timeout_starts_nothing_more_and_drops_nothing(coordinator: Coordinator) -> None:
    stats = run_search(coordinator, inline.make(Guarded(FakeFactory(units=4))), timeout_s=0.0)
    assert stats.evaluations == 0
    executor = inline.make(Guarded(FakeFactory(units=4, sleep_s=0.02)))
    stats = run_search(coordinator, executor, timeout_s=0.05)
    assert 1 <= stats.evaluations < 20
    assert coordinator.running == 0


def test_interrupt_keeps_what_is_finished(coordinator: Coordinator) -> None:
    def factory() -> Evaluate:
        def evaluate(job: Job) -> Outcome:
            if job.number == 4:
                raise KeyboardInterrupt
            return fake_outcome(job.candidate, SPACE)

        return evaluate

    with pytest.raises(KeyboardInterrupt):
        run_search(coordinator, inline.make(Guarded(factory)))
    assert sorted(coordinator.records) == [0, 1, 2, 3]


def test_a_full_disk_is_no_candidates_failure(tmp_path: Path) -> None:
    full = [True]

    def factory() -> Evaluate:
        def evaluate(job: Job) -> Outcome:
            if job.number == 4 and full:
                raise StorageError("no space left writing x.autocomp")
            return fake_outcome(job.candidate, SPACE)

        return evaluate

    with opened(tmp_path, trials=7) as coordinator, pytest.raises(StorageError, match="no space left"):
        run_search(coordinator, inline.make(Guarded(factory)))
    full.clear()
    with opened(tmp_path, trials=7) as coordinator:
        run_search(coordinator, inline.make(Guarded(factory)))
    assert (coordinator.evaluations, coordinator.failures) == (7, {})
    assert sorted(coordinator.records) == list(range(7))
