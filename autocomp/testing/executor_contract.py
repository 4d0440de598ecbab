"""What every executor must do: inherit the class in a test and say how the executor is made."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from autocomp.core.executor import Evaluate, Event, Executor, Factory, Job
from autocomp.core.outcome import Completed, Failed
from autocomp.errors import ConfigError, DataError, UnsupportedError
from autocomp.search.job import Guarded
from autocomp.testing.study_fakes import FakeFactory, fake_outcome, fake_space

SPACE = fake_space()
_PATIENCE_S = 120.0
"""Generous: it only bounds how long a broken executor hangs the test."""


def some_jobs(count: int) -> list[Job]:
    """Jobs with different candidates."""
    return [
        Job(number=i, attempt=1, candidate=SPACE.decode({"layer0:weights": i % 6, "layer1:weights": i // 6 % 6}))
        for i in range(count)
    ]


def run_all(executor: Executor, jobs: list[Job]) -> list[Event]:
    """Submit as slots allow until every job has its event; fails where an event stays away."""
    waiting = list(jobs)
    events: list[Event] = []
    while len(events) < len(jobs):
        while waiting and executor.slots() > 0:
            executor.submit(waiting.pop(0))
        event = executor.next_event(_PATIENCE_S)
        assert event is not None, f"{len(jobs) - len(events)} jobs without an event"
        events.append(event)
    return events


class ExecutorContract(ABC):
    """Inherit and implement :meth:`make`."""

    @abstractmethod
    def make(self, factory: Factory) -> Executor:
        """The executor under test."""

    @contextmanager
    def running(self, factory: Factory) -> Iterator[Executor]:
        """The executor, closed afterwards."""
        executor = self.make(factory)
        try:
            yield executor
        finally:
            executor.close()

    def test_each_job_has_one_event_with_its_own_outcome(self) -> None:
        jobs = some_jobs(9)
        with self.running(Guarded(FakeFactory())) as executor:
            events = run_all(executor, jobs)
            assert executor.next_event(0.0) is None
        assert sorted(e.job.number for e in events) == list(range(9))
        for event in events:
            assert isinstance(event.job, Job)
            assert event.job.candidate == jobs[event.job.number].candidate
            assert event.outcome == fake_outcome(event.job.candidate, SPACE)

    def test_failure_is_an_outcome(self) -> None:
        factory = Guarded(FakeFactory(accidents=((1, "raise"), (2, "oom"), (3, "say"))))
        with self.running(factory) as executor:
            outcomes = {e.job.number: e.outcome for e in run_all(executor, some_jobs(5))}
        raised, memory, said = outcomes[1], outcomes[2], outcomes[3]
        assert isinstance(raised, Failed)
        assert (raised.stage, raised.kind, raised.message) == ("build", "RuntimeError", "trial 1 goes wrong on purpose")
        assert "RuntimeError" in raised.traceback
        assert isinstance(memory, Failed)
        assert memory.kind == "oom"
        assert isinstance(said, Failed)
        assert (said.stage, said.kind) == ("latency", "unsupported")
        assert not isinstance(outcomes[0], Failed)
        assert not isinstance(outcomes[4], Failed)

    def test_slots_count_what_may_be_submitted(self) -> None:
        with self.running(Guarded(FakeFactory())) as executor:
            free = executor.slots()
            assert free >= 1
            for job in some_jobs(free):
                executor.submit(job)
            assert executor.slots() == 0
            with pytest.raises(RuntimeError):
                executor.submit(Job(number=99, attempt=1, candidate=SPACE.decode({})))
            for _ in range(free):
                assert executor.next_event(_PATIENCE_S) is not None
            assert executor.slots() == free

    def test_close_twice_and_with_a_job_inside(self) -> None:
        executor = self.make(Guarded(FakeFactory()))
        executor.submit(some_jobs(1)[0])
        executor.close()
        executor.close()


def no_data() -> Evaluate:
    """A factory that cannot make what it is there for."""
    raise DataError("digits.npz: no images; give another --data")


class WorkersContract(ExecutorContract):
    """What executors with processes of their own must do besides: inherit and implement :meth:`make_workers`.

    Attributes:
        limit_s: seconds that the job that hangs is given.
        death: what a death by SIGKILL is told with.
    """

    limit_s = 2.0
    death = ""

    @abstractmethod
    def make_workers(self, factory: Factory, *, jobs: int = 2, timeout_s: float | None = None) -> Executor:
        """The executor under test."""

    def make(self, factory: Factory) -> Executor:
        return self.make_workers(factory)

    def test_deaths_cost_only_their_own_job(self) -> None:
        """One job always dies, one only the first time, one hangs; the others do not notice."""
        factory = Guarded(FakeFactory(accidents=((1, "die"), (2, "die-once"), (4, "hang"))))
        executor = self.make_workers(factory, timeout_s=self.limit_s)
        try:
            events = {e.job.number: e for e in run_all(executor, some_jobs(8))}
        finally:
            executor.close()
        assert sorted(events) == list(range(8))
        died, hung = events[1].outcome, events[4].outcome
        assert isinstance(died, Failed)
        assert (died.stage, died.kind, events[1].job.attempt) == ("worker", "died", 3)
        assert "3 times in a row" in died.message
        assert self.death in died.message
        assert isinstance(hung, Failed)
        message = f"no outcome within {self.limit_s:g} s; the worker was killed"
        assert (hung.stage, hung.kind, hung.message) == ("worker", "timeout", message)
        assert isinstance(events[2].outcome, Completed)
        assert events[2].job.attempt == 2
        assert all(isinstance(events[n].outcome, Completed) for n in (0, 3, 5, 6, 7))

    @pytest.mark.parametrize(
        ("factory", "error", "message"),
        [
            (
                FakeFactory(broken="no weights\nin here"),
                UnsupportedError,
                "cannot start: ValueError: no weights in here",
            ),
            (no_data, DataError, r"digits\.npz: no images"),
        ],
    )
    def test_broken_factory_is_one_clear_error(self, factory: Factory, error: type[Exception], message: str) -> None:
        executor = self.make_workers(Guarded(factory))
        try:
            executor.submit(some_jobs(1)[0])
            with pytest.raises(error, match=message) as caught:
                executor.next_event(_PATIENCE_S)
            assert "\n" not in str(caught.value)
        finally:
            executor.close()

    @pytest.mark.parametrize(("jobs", "timeout_s"), [(0, None), (1, 0.0)])
    def test_bad_settings(self, jobs: int, timeout_s: float | None) -> None:
        with pytest.raises(ConfigError, match="allowed"):
            self.make_workers(FakeFactory(), jobs=jobs, timeout_s=timeout_s)
