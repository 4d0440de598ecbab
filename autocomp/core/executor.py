"""Where work is done: a task goes in, exactly one result comes out.

Executors know nothing of studies, samplers or networks. The function that turns a task into a
result is handed in as a *factory*, which is picklable and called once in each worker.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from autocomp.core.candidate import Candidate
from autocomp.core.outcome import Outcome

ATTEMPTS = 3
"""How often a job is started before its worker's deaths count as the candidate's failure."""


@dataclass(frozen=True, kw_only=True)
class Task:
    """Something for a worker to do.

    Attributes:
        number: results are keyed by it.
        attempt: 1 the first time, one more after each death of whoever did it.
    """

    number: int
    attempt: int


@dataclass(frozen=True, kw_only=True)
class Job(Task):
    """One evaluation; ``number`` is that of its trial in the study.

    Attributes:
        candidate: what to evaluate.
    """

    candidate: Candidate


@dataclass(frozen=True, kw_only=True)
class Share(Task):
    """A part of the survey.

    Attributes:
        names: units and structural decisions to price.
    """

    names: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Priced:
    """A share that is priced, and written where the survey looks for it.

    Attributes:
        names: as in the share.
    """

    names: tuple[str, ...]


Result = Outcome | Priced
"""What a worker makes of a task: an outcome of a job, :class:`Priced` of a share, ``Failed`` of either."""


@dataclass(frozen=True, kw_only=True)
class Event:
    """A task is over.

    Attributes:
        job: the task, with the attempt that ended it.
        outcome: what became of it.
    """

    job: Task
    outcome: Result


Evaluate = Callable[[Any], Result]
"""Turns a task into a result; never raises (see ``autocomp.search.job``)."""

Factory = Callable[[], Evaluate]
"""Makes the evaluating function inside the worker: loads the network, the data, the caches."""


class Executor(Protocol):
    """One module in ``autocomp/executors`` exposes ``make(factory, *, jobs, timeout_s, scratch) -> Executor``.

    ``scratch`` is a folder that all workers see, for what an executor itself has to keep.

    Contract (``autocomp.testing.executor_contract``): every submitted task ends in exactly one event,
    even when its worker dies; close() leaves no process behind and may be called twice.
    """

    def slots(self) -> int:
        """How many tasks may be submitted now."""
        ...

    def submit(self, job: Task) -> None:
        """Take a task; only while :meth:`slots` is positive."""
        ...

    def next_event(self, timeout_s: float | None = None) -> Event | None:
        """The next task that is over, or None after ``timeout_s`` seconds (at once when idle)."""
        ...

    def close(self) -> None:
        """Stop the workers; tasks under way are dropped and have no event."""
        ...
