"""The inline executor."""

from __future__ import annotations

import pytest

from autocomp.core.executor import Executor, Factory, Job
from autocomp.core.outcome import Outcome
from autocomp.errors import ConfigError
from autocomp.executors import inline
from autocomp.testing.executor_contract import ExecutorContract, some_jobs
from autocomp.testing.study_fakes import FakeFactory


class TestInline(ExecutorContract):
    def make(self, factory: Factory) -> Executor:
        return inline.make(factory)


def test_factory_is_called_once_and_late() -> None:
    calls: list[int] = []

    def factory():  # type: ignore[no-untyped-def]
        calls.append(1)
        return FakeFactory()()

    executor = inline.make(factory)
    assert calls == []
    for job in some_jobs(3):
        executor.submit(job)
        executor.next_event()
    assert calls == [1]


def test_interrupt_goes_up_and_drops_the_job() -> None:
    def evaluate(job: Job) -> Outcome:
        raise KeyboardInterrupt

    executor = inline.make(lambda: evaluate)
    executor.submit(some_jobs(1)[0])
    with pytest.raises(KeyboardInterrupt):
        executor.next_event()
    assert executor.slots() == 1
    assert executor.next_event() is None


def test_more_than_one_job_is_refused() -> None:
    with pytest.raises(ConfigError, match="one job at a time"):
        inline.make(FakeFactory(), jobs=2)
