"""Evaluates in local worker processes, each started fresh (spawn) with pipes of its own.

A worker's death is seen at once by the end of its pipe, and costs nothing but its own job: that job
is started again on a new worker, up to ``ATTEMPTS`` times. Jobs carry a time limit that starts when
a ready worker takes them; the worker of a job that exceeds it is killed.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnContext, SpawnProcess
from pathlib import Path

from autocomp.core.executor import ATTEMPTS, Event, Executor, Factory
from autocomp.core.threads import cores
from autocomp.core.told import Told
from autocomp.errors import UnsupportedError
from autocomp.executors._team import Member, Team, check_limits, timed_out
from autocomp.executors._worker import Ready, work


@dataclass(kw_only=True, eq=False)
class _Worker(Member):
    """A process, and its pipes: tasks and results; a lifeline that closes with us."""

    process: SpawnProcess
    pipe: Connection
    lifeline: Connection
    ready: bool = False


class Processes(Team[_Worker]):
    """``jobs`` workers.

    Args:
        factory: picklable; called once in each worker.
        jobs: number of workers.
        timeout_s: seconds a job may take, or None.

    Raises:
        ConfigError: ``jobs`` below 1 or ``timeout_s`` not positive.
    """

    def __init__(self, factory: Factory, *, jobs: int, timeout_s: float | None = None) -> None:
        check_limits(jobs, timeout_s)
        super().__init__(timeout_s)
        self._context: SpawnContext = multiprocessing.get_context("spawn")
        self._factory = factory
        self._threads = max(1, cores() // jobs)
        self._unready_deaths = 0
        self._workers.extend(map(self._start, range(jobs)))

    def next_event(self, timeout_s: float | None = None) -> Event | None:
        """The next job that is over; None after ``timeout_s``, or at once when there is no job.

        Raises:
            AutocompError: what the factory raised in a worker.
            UnsupportedError: the workers cannot start at all.
        """
        give_up = None if timeout_s is None else time.monotonic() + timeout_s
        while not self._events:
            if self._idle():
                return None
            self._assign()
            until = min([*self._deadlines(), *([give_up] if give_up is not None else [])], default=None)
            patience = None if until is None else max(0.0, until - time.monotonic())
            heard = wait([worker.pipe for worker in self._workers], patience)
            for worker in [w for w in self._workers if w.pipe in heard]:
                self._listen(worker)
            self._enforce_limits()
            if not heard and not self._events and give_up is not None and time.monotonic() >= give_up:
                return None
        return self._events.popleft()

    def close(self) -> None:
        """Kill the workers and wait for their end; jobs under way are dropped."""
        for worker in self._workers:
            worker.process.kill()
        for worker in self._workers:
            self._bury(worker)
        self._clear()

    def _start(self, seat: int) -> _Worker:
        ours, theirs = self._context.Pipe()
        life_theirs, life_ours = self._context.Pipe(duplex=False)
        # The kernel ties a child to the thread that made it; only the main thread lives as long as we do.
        tied = threading.current_thread() is threading.main_thread()
        process = self._context.Process(
            target=work,
            args=(self._factory, theirs, life_theirs, self._threads, seat, os.getpid() if tied else None),
            name="autocomp-worker",
            daemon=True,
        )
        process.start()
        theirs.close()
        life_theirs.close()
        return _Worker(process=process, pipe=ours, lifeline=life_ours)

    def _assign(self) -> None:
        for worker in self._workers:
            if not self._queue:
                return
            if worker.ready and worker.job is None:
                job = self._queue.popleft()
                try:
                    worker.pipe.send(job)
                except (BrokenPipeError, ConnectionResetError):
                    # It died since we last heard; the end of its pipe will say so.
                    worker.ready = False
                    self._queue.appendleft(job)
                    continue
                self._begin(worker, job)

    def _listen(self, worker: _Worker) -> None:
        try:
            message = worker.pipe.recv()
        except (EOFError, OSError):  # the latter where it was killed in the middle of a message
            self._replace_dead(worker)
            return
        match message:
            case Ready():
                worker.ready = True
                self._unready_deaths = 0
            case Told():
                raise message.error("evaluation workers cannot start") from None
            case _:
                self._end(worker, message)

    def _enforce_limits(self) -> None:
        for worker in self._overdue():
            if worker.pipe.poll():  # finished in the last moment
                self._listen(worker)
                continue
            worker.process.kill()
            self._end(worker, timed_out(self._timeout_s))
            self._replace(worker)

    def _replace_dead(self, worker: _Worker) -> None:
        worker.process.join()
        how = _death(worker.process.exitcode)
        if worker.job is None and not worker.ready:
            self._unready_deaths += 1
            if self._unready_deaths >= ATTEMPTS:
                raise UnsupportedError(f"evaluation workers cannot start: they {how}; try --jobs 1 to see why")
        self._give_back(worker, how)
        self._replace(worker)

    def _replace(self, worker: _Worker) -> None:
        self._exchange(worker)
        self._bury(worker)

    @staticmethod
    def _bury(worker: _Worker) -> None:
        worker.process.join()
        worker.process.close()
        worker.pipe.close()
        worker.lifeline.close()


def _death(exitcode: int | None) -> str:
    if exitcode is not None and exitcode < 0:
        name = signal.Signals(-exitcode).name
        return f"died of {name}" + (" (out of memory?)" if name == "SIGKILL" else "")
    return f"ended with exit code {exitcode}"


def make(
    factory: Factory,
    *,
    jobs: int | None = None,
    timeout_s: float | None = None,
    scratch: Path | None = None,
    gpus: int = 0,
) -> Executor:
    """The executor. Workers take GPUs by their seats (:mod:`autocomp.core.seat`), without anything to reserve."""
    return Processes(factory, jobs=cores() if jobs is None else jobs, timeout_s=timeout_s)
