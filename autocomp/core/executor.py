"""Where evaluations run: a job goes in, exactly one outcome comes out.

Executors know nothing of studies, samplers or networks. The function that turns a job into an
outcome is handed in as a *factory*, which is picklable and called once in each worker.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from autocomp.core.candidate import Candidate
from autocomp.core.outcome import Outcome

ATTEMPTS = 3
"""How often a job is started before its worker's deaths count as the candidate's failure."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """One evaluation to do.

    Attributes:
        number: trial number in the study; results are keyed by it.
        attempt: 1 the first time, one more after each death of whoever evaluated it.
        candidate: what to evaluate.
    """

    number: int
    attempt: int
    candidate: Candidate


@dataclass(frozen=True, kw_only=True)
class Event:
    """A job is over.

    Attributes:
        job: the job, with the attempt that ended it.
        outcome: what became of it.
    """

    job: Job
    outcome: Outcome


Evaluate = Callable[[Job], Outcome]
"""Turns a job into an outcome; never raises (see ``autocomp.search.job``)."""

Factory = Callable[[], Evaluate]
"""Makes the evaluating function inside the worker: loads the network, the data, the caches."""


class Executor(Protocol):
    """One module in ``autocomp/executors`` exposes ``make(factory, *, jobs, timeout_s, scratch) -> Executor``.

    ``scratch`` is a folder that all workers see, for what an executor itself has to keep.

    Contract (``autocomp.testing.executor_contract``): every submitted job ends in exactly one event,
    even when its worker dies; close() leaves no process behind and may be called twice.
    """

    def slots(self) -> int:
        """How many jobs may be submitted now."""
        ...

    def submit(self, job: Job) -> None:
        """Take a job; only while :meth:`slots` is positive."""
        ...

    def next_event(self, timeout_s: float | None = None) -> Event | None:
        """The next job that is over, or None after ``timeout_s`` seconds (at once when idle)."""
        ...

    def close(self) -> None:
        """Stop the workers; jobs under way are dropped and have no event."""
        ...
