"""Evaluates in this process, one job after the other: the reference for every other executor."""

from __future__ import annotations

from pathlib import Path

from autocomp.core.executor import Evaluate, Event, Executor, Factory, Task
from autocomp.errors import ConfigError


class Inline:
    """One slot; the job runs inside :meth:`next_event`.

    Args:
        factory: makes the evaluating function; called with the first job.
    """

    def __init__(self, factory: Factory) -> None:
        self._factory = factory
        self._evaluate: Evaluate | None = None
        self._job: Task | None = None

    def slots(self) -> int:
        """1, or 0 while a job waits for :meth:`next_event`."""
        return 0 if self._job is not None else 1

    def submit(self, job: Task) -> None:
        """Keep ``job`` for :meth:`next_event`."""
        if self._job is not None:
            raise RuntimeError("submit() while slots() is 0")
        self._job = job

    def next_event(self, timeout_s: float | None = None) -> Event | None:
        """Run the job to its end; a job in this process cannot be given up, so ``timeout_s`` has no effect."""
        if self._job is None:
            return None
        if self._evaluate is None:
            self._evaluate = self._factory()
        job, self._job = self._job, None
        return Event(job=job, outcome=self._evaluate(job))

    def close(self) -> None:
        """Drop the waiting job and what the factory made."""
        self._job = self._evaluate = None


def make(
    factory: Factory,
    *,
    jobs: int | None = None,
    timeout_s: float | None = None,
    scratch: Path | None = None,
    gpus: int = 0,
) -> Executor:
    """The executor; it runs one job at a time and cannot end one early."""
    if jobs not in (None, 1):
        raise ConfigError(f"executor inline runs one job at a time, asked for {jobs}; use the executor processes")
    return Inline(factory)
