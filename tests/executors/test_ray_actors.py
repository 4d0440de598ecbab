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
from autocomp.core.outcome import Completed
from autocomp.errors import UnsupportedError
from autocomp.executors import ray_actors
from autocomp.search.job import Guarded
from autocomp.testing.executor_contract import WorkersContract, run_all, some_jobs
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
class TestRayActors(WorkersContract):
    def make_workers(self, factory: Factory, *, jobs: int = 2, timeout_s: float | None = None) -> Executor:
        return ray_actors.make(factory, jobs=jobs, timeout_s=timeout_s)


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


def _exits() -> Evaluate:
    os._exit(7)


def test_workers_that_never_start_are_given_up(cluster: Cluster) -> None:
    executor = ray_actors.make(Guarded(_exits), jobs=1)
    try:
        executor.submit(some_jobs(1)[0])
        with pytest.raises(UnsupportedError, match="cannot start") as caught:
            executor.next_event(DEADLINE_S)
        assert "\n" not in str(caught.value)
    finally:
        executor.close()
