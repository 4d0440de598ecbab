"""Workers on a Ray cluster: the contract, and every way a worker can end."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import psutil
import pytest

from autocomp.cluster.connection import Cluster
from autocomp.core.executor import Evaluate, Executor, Factory
from autocomp.core.outcome import Completed, Failed
from autocomp.errors import ConfigError, DataError, UnsupportedError
from autocomp.executors import ray_actors
from autocomp.search.job import Guarded
from autocomp.testing.executor_contract import ExecutorContract, run_all, some_jobs
from autocomp.testing.study_fakes import FakeFactory

DEADLINE_S = 120.0


def workers() -> list[psutil.Process]:
    """Processes in which this program's cluster runs actors."""
    return [p for p in psutil.Process().children(recursive=True) if _title(p).startswith("ray::Actor")]


def _title(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except (psutil.NoSuchProcess, psutil.AccessDenied):
        return ""


@pytest.mark.usefixtures("cluster")
class TestRayActors(ExecutorContract):
    def make(self, factory: Factory) -> Executor:
        return ray_actors.make(factory, jobs=2)


def test_deaths_cost_only_their_own_job(cluster: Cluster) -> None:
    """One job always dies, one only the first time, one hangs; the others do not notice."""
    factory = Guarded(FakeFactory(accidents=((1, "die"), (2, "die-once"), (4, "hang"))))
    executor = ray_actors.make(factory, jobs=2, timeout_s=2.0)
    try:
        events = {e.job.number: e for e in run_all(executor, some_jobs(8))}
    finally:
        executor.close()
    assert sorted(events) == list(range(8))
    died, hung = events[1].outcome, events[4].outcome
    assert isinstance(died, Failed)
    assert (died.stage, died.kind, events[1].job.attempt) == ("worker", "died", 3)
    assert "3 times in a row" in died.message
    assert isinstance(hung, Failed)
    assert (hung.stage, hung.kind) == ("worker", "timeout")
    assert isinstance(events[2].outcome, Completed)
    assert events[2].job.attempt == 2
    assert all(isinstance(events[n].outcome, Completed) for n in (0, 3, 5, 6, 7))


def test_frozen_worker_is_replaced(cluster: Cluster, tmp_path: Path) -> None:
    """SIGSTOP: the process is there, its socket open, and nothing comes."""
    log = tmp_path / "log"
    factory = Guarded(FakeFactory(sleep_s=1.0, log=log))
    executor = ray_actors.RayActors(factory, jobs=1, silence_s=2.0)
    try:
        executor.submit(some_jobs(1)[0])
        while not log.exists():
            assert executor.next_event(0.05) is None
        (frozen,) = workers()
        frozen.send_signal(signal.SIGSTOP)
        event = executor.next_event(DEADLINE_S)
        assert event is not None
        assert isinstance(event.outcome, Completed)
        assert event.job.attempt == 2
        psutil.wait_procs([frozen], timeout=DEADLINE_S)
        assert not frozen.is_running()
    finally:
        executor.close()


def test_busy_worker_keeps_its_pulse(cluster: Cluster) -> None:
    """A job that takes many times the allowed silence is no frozen process."""
    executor = ray_actors.RayActors(Guarded(FakeFactory(sleep_s=4.0)), jobs=1, silence_s=1.0)
    try:
        (event,) = run_all(executor, some_jobs(1))
    finally:
        executor.close()
    assert event.job.attempt == 1
    assert isinstance(event.outcome, Completed)


def test_close_leaves_no_process(cluster: Cluster) -> None:
    executor = ray_actors.make(Guarded(FakeFactory(accidents=((0, "hang"),))), jobs=2)
    executor.submit(some_jobs(1)[0])
    executor.next_event(0.5)
    executor.close()
    until = time.monotonic() + DEADLINE_S
    while workers() and time.monotonic() < until:
        time.sleep(0.1)
    assert workers() == []


def test_close_ends_a_frozen_worker(cluster: Cluster, tmp_path: Path) -> None:
    """It hears nothing of Ray's, and Ray forgets it when the program ends."""
    executor = ray_actors.make(Guarded(FakeFactory(log=tmp_path / "log")), jobs=1)
    run_all(executor, some_jobs(1))
    (frozen,) = workers()
    frozen.send_signal(signal.SIGSTOP)
    executor.close()
    psutil.wait_procs([frozen], timeout=2.0)
    assert not frozen.is_running()


def _no_data() -> Evaluate:
    raise DataError("digits.npz: no images; give another --data")


def _exits() -> Evaluate:
    os._exit(7)


@pytest.mark.parametrize(
    ("factory", "error", "message"),
    [
        (Guarded(FakeFactory(broken="no weights\nin here")), UnsupportedError, "ValueError: no weights in here"),
        (Guarded(_no_data), DataError, r"digits\.npz: no images"),
        (Guarded(_exits), UnsupportedError, "cannot start"),
    ],
)
def test_broken_factory_is_one_clear_error(
    cluster: Cluster, factory: Factory, error: type[Exception], message: str
) -> None:
    executor = ray_actors.make(factory, jobs=1)
    try:
        executor.submit(some_jobs(1)[0])
        with pytest.raises(error, match=message) as caught:
            executor.next_event(DEADLINE_S)
        assert "\n" not in str(caught.value)
    finally:
        executor.close()


@pytest.mark.parametrize(("jobs", "timeout_s"), [(0, None), (1, 0.0)])
def test_bad_settings(jobs: int, timeout_s: float | None) -> None:
    with pytest.raises(ConfigError, match="allowed"):
        ray_actors.RayActors(FakeFactory(), jobs=jobs, timeout_s=timeout_s)
