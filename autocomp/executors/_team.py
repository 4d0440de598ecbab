"""What executors with workers of their own share: the queue, the events, and who starts a task again."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Generic, TypeVar

from autocomp.core.executor import ATTEMPTS, Event, Result, Task
from autocomp.core.outcome import Failed
from autocomp.errors import ConfigError


def check_limits(jobs: int, timeout_s: float | None) -> None:
    """Refuse what no executor with workers can do.

    Raises:
        ConfigError: ``jobs`` below 1 or ``timeout_s`` not positive.
    """
    if jobs < 1:
        raise ConfigError(f"jobs = {jobs}; allowed 1 and more")
    if timeout_s is not None and timeout_s <= 0:
        raise ConfigError(f"timeout of a job = {timeout_s} s; allowed above 0")


def died(how: str, job: Task) -> Failed:
    """What becomes of a task whose workers died as often as it was started."""
    return Failed(stage="worker", kind="died", message=f"the worker {how}, {job.attempt} times in a row")


def timed_out(timeout_s: float | None) -> Failed:
    """What becomes of a task that took too long."""
    message = f"no outcome within {timeout_s:g} s; the worker was killed"
    return Failed(stage="worker", kind="timeout", message=message)


def again(job: Task) -> Task | None:
    """The task for another start, None where it was started too often."""
    return replace(job, attempt=job.attempt + 1) if job.attempt < ATTEMPTS else None


@dataclass(kw_only=True, eq=False)
class Member:
    """A worker: the task it is at, and until when it may take. Two that are at the same are still two."""

    job: Task | None = None
    deadline: float | None = None


M = TypeVar("M", bound=Member)


class Team(ABC, Generic[M]):
    """Workers that take tasks from a queue. Subclasses start them, hand tasks over and listen.

    Args:
        timeout_s: seconds a task may take, or None.
    """

    def __init__(self, timeout_s: float | None) -> None:
        self._timeout_s = timeout_s
        self._queue: deque[Task] = deque()
        self._events: deque[Event] = deque()
        self._workers: list[M] = []

    def slots(self) -> int:
        """Workers without a task, queued tasks taken off."""
        return max(0, sum(worker.job is None for worker in self._workers) - len(self._queue))

    def submit(self, job: Task) -> None:
        """Queue ``job`` for the next free worker."""
        if self.slots() == 0:
            raise RuntimeError("submit() while slots() is 0")
        self._queue.append(job)
        self._assign()

    @abstractmethod
    def _assign(self) -> None:
        """Hand queued tasks to workers that are ready and free."""

    @abstractmethod
    def _start(self, seat: int) -> M:
        """A new worker, the ``seat``-th of the team (0, 1, ...)."""

    def _idle(self) -> bool:
        """Whether there is nothing to wait for."""
        return not self._queue and all(worker.job is None for worker in self._workers)

    def _begin(self, worker: M, job: Task) -> None:
        """``worker`` has taken ``job``."""
        worker.job = job
        worker.deadline = None if self._timeout_s is None else time.monotonic() + self._timeout_s

    def _end(self, worker: M, outcome: Result) -> None:
        """The worker's task, if it has one, is over."""
        if worker.job is not None:
            self._events.append(Event(job=worker.job, outcome=outcome))
        worker.job = worker.deadline = None

    def _give_back(self, worker: M, how: str) -> None:
        """The worker is gone: its task, if it has one, goes to another, or fails where it was started too often."""
        if worker.job is None:
            return
        restarted = again(worker.job)
        if restarted is None:
            self._end(worker, died(how, worker.job))
        else:
            self._queue.appendleft(restarted)
            worker.job = worker.deadline = None

    def _deadlines(self) -> list[float]:
        """Of tasks under way."""
        return [worker.deadline for worker in self._workers if worker.deadline is not None]

    def _overdue(self) -> Iterator[M]:
        """Workers whose task took too long."""
        now = time.monotonic()
        return (w for w in list(self._workers) if w.deadline is not None and now >= w.deadline)

    def _exchange(self, worker: M) -> None:
        """A new worker in the place of one that is gone."""
        seat = self._workers.index(worker)
        self._workers[seat] = self._start(seat)

    def _clear(self) -> None:
        """Forget workers, tasks and events."""
        self._workers.clear()
        self._queue.clear()
        self._events.clear()
