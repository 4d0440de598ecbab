"""Exceptions into outcomes."""

from __future__ import annotations

import pickle

import pytest

from autocomp.core.executor import Job
from autocomp.core.outcome import Completed, Failed, Outcome
from autocomp.core.stage import Stage
from autocomp.errors import UnsupportedError
from autocomp.search.job import Guarded, run_job
from autocomp.testing.study_fakes import FakeFactory, fake_space

JOB = Job(number=7, attempt=1, candidate=fake_space().decode({}))


class OutOfMemoryError(RuntimeError):
    """Named like torch's."""


@pytest.mark.parametrize(
    ("error", "kind", "message"),
    [
        (UnsupportedError("node Conv_3: no int8 kernel"), "UnsupportedError", "node Conv_3: no int8 kernel"),
        (ValueError("two\nlines"), "ValueError", "two lines"),
        (MemoryError(), "oom", "MemoryError"),
        (OutOfMemoryError("CUDA out of memory"), "oom", "CUDA out of memory"),
        (KeyError("layer9"), "KeyError", "'layer9'"),
    ],
)
def test_exception_becomes_a_failure_of_its_stage(error: Exception, kind: str, message: str) -> None:
    def evaluate(job: Job) -> Outcome:
        with Stage("build"):
            pass
        with Stage("latency"):
            raise error

    outcome = run_job(evaluate, JOB)
    assert isinstance(outcome, Failed)
    assert (outcome.stage, outcome.kind, outcome.message) == ("latency", kind, message)
    assert "test_job.py" in outcome.traceback


def test_innermost_stage_counts() -> None:
    def evaluate(job: Job) -> Outcome:
        with Stage("quality"), Stage("build"):
            raise ValueError

    outcome = run_job(evaluate, JOB)
    assert isinstance(outcome, Failed)
    assert outcome.stage == "build"


def test_stage_adds_up_seconds() -> None:
    seconds: dict[str, float] = {}
    for name in ("build", "quality", "build"):
        with Stage(name, seconds):
            pass
    assert sorted(seconds) == ["build", "quality"]
    assert all(value >= 0 for value in seconds.values())


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit])
def test_interrupts_pass(error: type[BaseException]) -> None:
    def evaluate(job: Job) -> Outcome:
        raise error

    with pytest.raises(error):
        run_job(evaluate, JOB)


def test_guarded_factory_travels() -> None:
    guarded = pickle.loads(pickle.dumps(Guarded(FakeFactory(accidents=((7, "raise"),)))))
    assert isinstance(guarded()(JOB), Failed)
    assert isinstance(Guarded(FakeFactory())()(JOB), Completed)
