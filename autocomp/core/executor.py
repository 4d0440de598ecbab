"""Where work is done: a task goes in, exactly one result comes out.

Executors know nothing of studies, samplers or networks. The function that turns a task into a
result is handed in as a *factory*, which is picklable and called once in each worker.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
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


@dataclass(frozen=True, kw_only=True)
class Finishing(Task):
    """The recovery of a candidate, into a file of its own.

    Attributes:
        candidate: what is recovered.
        budget_bytes: what the file has to keep and to fill, or None.
    """

    candidate: Candidate
    budget_bytes: int | None = None


@dataclass(frozen=True, kw_only=True)
class FinishedFile:
    """A recovered candidate.

    Attributes:
        path: of the file, which all processes of the run see.
        file_bytes: its size.
        kl, score: of the network in it, on the search split.
    """

    path: str
    file_bytes: int
    kl: float
    score: float


Result = Outcome | Priced | FinishedFile
"""What a worker makes of a task: an outcome of a job, :class:`Priced` of a share, :class:`FinishedFile` of a
finishing, ``Failed`` of any."""


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
    """One module in ``autocomp/executors`` exposes ``make(factory, *, jobs, timeout_s, scratch, gpus) -> Executor``.

    ``scratch`` is a folder that all workers see, for what an executor itself has to keep; ``gpus`` is how
    many GPUs of the cluster the workers share.

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


def carried_out(executor: Executor, tasks: Iterable[Task]) -> Iterator[Event]:
    """Have an idle ``executor`` do ``tasks``; their events, in the order in which they end."""
    waiting, running = deque(tasks), 0
    while waiting or running:
        while waiting and executor.slots():
            executor.submit(waiting.popleft())
            running += 1
        event = executor.next_event()
        if event is not None:
            running -= 1
            yield event
