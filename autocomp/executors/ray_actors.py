"""Evaluates on a Ray cluster, one actor a worker: the default for ``--cluster``.

A worker that dies, with its node or alone, costs nothing but its own job, which is started again elsewhere, up to
``ATTEMPTS`` times. Ray is not asked to try again itself: only we know how often a job was started. A worker that
gives no pulse is killed; a job that takes longer than ``timeout_s`` ends as a failure. What all workers need is put
into the object store once, and once more where that was lost.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from autocomp.cluster.actor import Versions, Whereabouts, end, feel_pulse, start
from autocomp.cluster.connection import ONE_CPU, connected, ray
from autocomp.core.executor import ATTEMPTS, Event, Executor, Factory
from autocomp.core.told import Told
from autocomp.errors import RetryableError, UnsupportedError
from autocomp.executors._team import Member, Team, check_limits, timed_out

SILENCE_S = 60.0
"""A worker that gives no pulse for so long is stopped or gone, and is replaced."""
NOBODY_S = 300.0
"""So long without a single worker, and the search ends (it goes on with the same command)."""


@dataclass(kw_only=True, eq=False)
class _Worker(Member):
    """An actor, and what is awaited from it."""

    actor: Any
    opening: Any
    where: Whereabouts | None = None
    outcome: Any = None
    pulse: Any = None
    pulse_asked: float = 0.0

    def awaited(self) -> list[Any]:
        """References that are not resolved yet."""
        return [r for r in (self.opening if self.where is None else None, self.outcome, self.pulse) if r is not None]


class RayActors(Team[_Worker]):
    """``jobs`` workers on the connected cluster.

    Args:
        factory: picklable; called once in each worker.
        jobs: number of workers.
        timeout_s: seconds a job may take, or None.
        silence_s, nobody_s: see :data:`SILENCE_S` and :data:`NOBODY_S`.
        resources: what each worker takes.
        leave: called when the workers are gone, or None.

    Raises:
        ConfigError: ``jobs`` below 1 or ``timeout_s`` not positive.
    """

    def __init__(
        self,
        factory: Factory,
        *,
        jobs: int,
        timeout_s: float | None = None,
        silence_s: float = SILENCE_S,
        nobody_s: float = NOBODY_S,
        resources: Mapping[str, float] = ONE_CPU,
        leave: Callable[[], None] | None = None,
    ) -> None:
        check_limits(jobs, timeout_s)
        super().__init__(timeout_s)
        self._factory, self._resources = factory, resources
        self._silence_s, self._nobody_s, self._leave = silence_s, nobody_s, leave
        self._shared = ray().put(factory)
        self._unready_deaths = 0
        self._last_seen = time.monotonic()
        self._workers.extend(map(self._start, range(jobs)))

    def next_event(self, timeout_s: float | None = None) -> Event | None:
        """The next job that is over; None after ``timeout_s``, or at once when there is no job.

        Raises:
            AutocompError: what the factory raised in a worker.
            UnsupportedError: the workers cannot start at all.
            RetryableError: no worker is left, and none came for ``nobody_s``.
        """
        give_up = None if timeout_s is None else time.monotonic() + timeout_s
        while not self._events:
            if self._idle():
                return None
            self._assign()
            self._listen(give_up)
            self._feel_pulses()
            self._enforce_limits()
            if not self._events and give_up is not None and time.monotonic() >= give_up:
                return None
        return self._events.popleft()

    def close(self) -> None:
        """Kill the workers; jobs under way are dropped."""
        end({worker.actor: worker.where for worker in self._workers})
        self._clear()
        if self._leave is not None:
            self._leave()

    # workers

    def _start(self, seat: int) -> _Worker:
        actor = start(self._shared, resources=self._resources)
        return _Worker(actor=actor, opening=actor.open.remote(Versions()))

    def _replace(self, worker: _Worker) -> None:
        """Kill what is left of it (Ray's node does it by signal where the process answers no more) and start anew."""
        ray().kill(worker.actor)
        self._exchange(worker)

    def _assign(self) -> None:
        for worker in self._workers:
            if not self._queue:
                return
            if worker.where is not None and worker.job is None:
                job = self._queue.popleft()
                worker.outcome = worker.actor.call.remote("__call__", (job,))
                self._begin(worker, job)

    # what is heard

    def _listen(self, give_up: float | None) -> None:
        """Wait for something to happen, at most until a limit or the next pulse is due."""
        now = time.monotonic()
        until = min([*self._deadlines(), *([give_up] if give_up is not None else []), now + self._silence_s / 4])
        awaited = {ref: worker for worker in self._workers for ref in worker.awaited()}
        heard, _ = ray().wait(list(awaited), num_returns=1, timeout=max(0.0, until - now))
        if heard:  # and whatever else is there by now
            heard, _ = ray().wait(list(awaited), num_returns=len(awaited), timeout=0)
        for reference in heard:
            worker = awaited[reference]
            if worker in self._workers:
                self._take(worker, reference)

    def _take(self, worker: _Worker, reference: Any) -> None:
        """A reference of ``worker`` is resolved."""
        errors = ray().exceptions
        try:
            found = ray().get(reference)
        except errors.ObjectLostError:
            self._shared = ray().put(self._factory)
            self._lost(worker, "lost what it was sent (the object store's contents are gone)")
            return
        except errors.RayActorError as error:
            self._lost(worker, f"died ({_cause(error)})")
            return
        self._last_seen = time.monotonic()
        if reference == worker.pulse:
            worker.pulse = None
        elif reference == worker.outcome:
            worker.outcome = None
            if isinstance(found, Told):  # the guarded work never raises: what its worker needs could not be fetched
                self._lost(worker, found.message)
            else:
                self._end(worker, found)
        elif isinstance(found, Told):
            raise found.error("evaluation workers cannot start")
        else:
            worker.where = found
            self._unready_deaths = 0

    def _lost(self, worker: _Worker, how: str) -> None:
        """A worker is gone: its job goes to another one, or fails where it was started too often."""
        if worker.where is None:
            self._unready_deaths += 1
            if self._unready_deaths >= ATTEMPTS * len(self._workers):
                raise UnsupportedError(f"evaluation workers cannot start: they {how}")
        self._give_back(worker, how)
        self._replace(worker)

    # limits

    def _feel_pulses(self) -> None:
        now = time.monotonic()
        for worker in [w for w in self._workers if w.where is not None]:
            if worker.pulse is None and now - worker.pulse_asked >= self._silence_s / 4:
                worker.pulse, worker.pulse_asked = feel_pulse(worker.actor), now
            elif worker.pulse is not None and now - worker.pulse_asked >= self._silence_s:
                self._lost(worker, f"gave no sign of life for {self._silence_s:g} s")
        if all(worker.where is None for worker in self._workers) and now - self._last_seen >= self._nobody_s:
            raise RetryableError(
                f"no worker could be started on the cluster for {self._nobody_s:g} s: its nodes are gone or busy "
                "(`ray status` tells); run the same command again, it goes on from here"
            )

    def _enforce_limits(self) -> None:
        for worker in self._overdue():
            self._end(worker, timed_out(self._timeout_s))
            self._replace(worker)


def _cause(error: Exception) -> str:
    """The part of Ray's long message that says why."""
    text = " ".join(str(error).split())
    return text[text.find("Worker exit detail:") :][:200] if "Worker exit detail:" in text else text[:200]


def make(
    factory: Factory,
    *,
    jobs: int | None = None,
    timeout_s: float | None = None,
    scratch: Path | None = None,
    gpus: int = 0,
) -> Executor:
    """The executor on the connected cluster; a program that is connected to none gets that of ``--cluster auto``.

    Args:
        factory: picklable.
        jobs: workers; None: one a CPU of the cluster, or one each of ``gpus``.
        timeout_s: seconds a job may take, or None.
        scratch: not used.
        gpus: GPUs that the workers share, one each or equal parts of one; 0: they take none.
    """
    with contextlib.ExitStack() as stack:
        cluster = stack.enter_context(connected("auto"))
        workers, each = cluster.crew(jobs, gpus)
        executor = RayActors(
            factory, jobs=workers, timeout_s=timeout_s, resources=each, leave=lambda: connection.close()
        )
        connection = stack.pop_all()
        return executor
