"""Worker processes: the contract, and every way a worker can end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest

from autocomp.core import seat
from autocomp.core.executor import Evaluate, Executor, Factory, Job
from autocomp.core.outcome import Completed, Outcome
from autocomp.core.threads import cores
from autocomp.errors import UnsupportedError
from autocomp.executors import processes
from autocomp.search.job import Guarded
from autocomp.testing.executor_contract import WorkersContract, run_all, some_jobs
from autocomp.testing.study_fakes import FakeFactory

ROOT = Path(__file__).parents[2]
DEADLINE_S = 60.0


class TestProcesses(WorkersContract):
    limit_s = 1.0
    death = "SIGKILL"

    def make_workers(self, factory: Factory, *, jobs: int = 2, timeout_s: float | None = None) -> Executor:
        return processes.make(factory, jobs=jobs, timeout_s=timeout_s)


def test_worker_killed_from_outside_mid_job(tmp_path: Path) -> None:
    log = tmp_path / "log"
    executor = processes.make(Guarded(FakeFactory(sleep_s=0.5, log=log)), jobs=1)
    try:
        executor.submit(some_jobs(1)[0])
        while not log.exists():
            assert executor.next_event(0.02) is None
        for child in psutil.Process().children():
            if "spawn_main" in " ".join(child.cmdline()):
                child.send_signal(signal.SIGKILL)
        event = executor.next_event(DEADLINE_S)
    finally:
        executor.close()
    assert event is not None
    assert isinstance(event.outcome, Completed)
    assert log.read_text().split("\n")[:2] == ["0 1", "0 2"]


def test_close_leaves_no_process() -> None:
    before = {p.pid for p in psutil.Process().children()}
    executor = processes.make(Guarded(FakeFactory(accidents=((0, "hang"),))), jobs=2)
    executor.submit(some_jobs(1)[0])
    executor.next_event(0.1)
    executor.close()
    left = [p for p in psutil.Process().children() if p.pid not in before]
    assert [p for p in left if "spawn_main" in " ".join(p.cmdline())] == []


def _exits() -> Evaluate:
    os._exit(7)


def test_workers_that_never_start_are_given_up() -> None:
    executor = processes.make(Guarded(_exits), jobs=1)
    try:
        executor.submit(some_jobs(1)[0])
        with pytest.raises(UnsupportedError, match="ended with exit code 7"):
            executor.next_event(DEADLINE_S)
    finally:
        executor.close()


class _Threads:
    """A factory whose outcomes tell the worker's thread settings and seat."""

    def __call__(self) -> Evaluate:
        return self._evaluate

    def _evaluate(self, job: Job) -> Outcome:
        if job.number == 0 and job.attempt == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        note = os.environ["OMP_NUM_THREADS"]
        ignored = signal.getsignal(signal.SIGINT) is signal.SIG_IGN
        time.sleep(1)  # so that no worker does both tasks
        return Completed(file_bytes=1, kl=0.0, score=0.0, notes=(note, str(ignored), str(seat.taken())))


def test_cores_are_shared_interrupts_ignored_and_seats_kept() -> None:
    """Also by a worker in the place of one that was killed."""
    executor = processes.make(_Threads(), jobs=2)
    try:
        events = run_all(executor, some_jobs(2))
    finally:
        executor.close()
    outcomes = [event.outcome for event in events]
    assert all(isinstance(outcome, Completed) for outcome in outcomes)
    notes = sorted(outcome.notes for outcome in outcomes if isinstance(outcome, Completed))
    threads = str(max(1, cores() // 2))
    assert notes == [(threads, "True", "0"), (threads, "True", "1")]


def test_made_in_a_thread_that_ends() -> None:
    """The kernel's parent-death signal follows the thread that started a process; ours must not die of it."""
    made: list[Executor] = []
    thread = threading.Thread(target=lambda: made.append(processes.make(Guarded(FakeFactory()), jobs=1)))
    thread.start()
    thread.join()
    try:
        event = run_all(made[0], some_jobs(1))[0]
    finally:
        made[0].close()
    assert event.job.attempt == 1
    assert isinstance(event.outcome, Completed)


@pytest.mark.parametrize("accident", ["hang", "none"])
def test_workers_die_with_a_killed_parent(accident: str, tmp_path: Path) -> None:
    """SIGKILL leaves the parent no time to clean up: busy and idle workers must see it themselves."""
    log = tmp_path / "log"
    script = (
        "import sys\nfrom pathlib import Path\n"
        "from autocomp.executors import processes\nfrom autocomp.search.job import Guarded\n"
        "from autocomp.testing.executor_contract import some_jobs\n"
        "from autocomp.testing.study_fakes import FakeFactory\n"
        "if __name__ == '__main__':\n"
        f"    accidents = ((0, 'hang'),) if {accident!r} == 'hang' else ()\n"
        f"    executor = processes.make(Guarded(FakeFactory(accidents=accidents, log=Path({str(log)!r}))), jobs=1)\n"
        "    executor.submit(some_jobs(1)[0])\n    executor.next_event(30)\n    sys.stdin.read()\n"
    )
    path = tmp_path / "parent.py"
    path.write_text(script)
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen([sys.executable, str(path)], stdin=subprocess.PIPE, env=env) as parent:
        until = time.monotonic() + DEADLINE_S
        while not log.exists() and time.monotonic() < until:
            time.sleep(0.02)
        children = psutil.Process(parent.pid).children(recursive=True)
        assert children
        parent.kill()
    _, alive = psutil.wait_procs(children, timeout=DEADLINE_S)
    assert alive == []
