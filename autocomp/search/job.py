"""One job from candidate to outcome: the only place where any exception becomes a value."""

from __future__ import annotations

import time
import traceback
from dataclasses import dataclass
from types import TracebackType

from autocomp.core.executor import Evaluate, Factory, Job
from autocomp.core.outcome import Failed, Outcome

_ATTRIBUTE = "autocomp_stage"
_TRACEBACK_CHARACTERS = 8000


class Stage:
    """Names the stage that a block of an evaluation belongs to, and takes its time.

    An exception that leaves the block is labelled with the innermost stage's name and goes on.

    Args:
        name: "build", "size", "quality" or "latency".
        seconds: where the block's wall seconds are added under ``name``, if given.
    """

    def __init__(self, name: str, seconds: dict[str, float] | None = None) -> None:
        self.name = name
        self.seconds = seconds
        self._start = 0.0

    def __enter__(self) -> Stage:
        self._start = time.perf_counter()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        if self.seconds is not None:
            self.seconds[self.name] = self.seconds.get(self.name, 0.0) + time.perf_counter() - self._start
        if error is not None and not hasattr(error, _ATTRIBUTE):
            setattr(error, _ATTRIBUTE, self.name)


def run_job(evaluate: Evaluate, job: Job) -> Outcome:
    """``evaluate(job)``, with any exception turned into :class:`Failed`.

    Its stage is that of the innermost :class:`Stage` it left, "build" outside of any. ``kind`` is the
    word that the exception carries ("timeout", "died"), else its class name; "oom" when memory ran out (host or
    device). Interrupts pass: they are the user's, not the candidate's.
    """
    try:
        return evaluate(job)
    except Exception as error:  # noqa: BLE001 - the one place: a failed candidate must not end the search
        return failure(error)


def failure(error: Exception) -> Failed:
    """``error`` as a value: its stage, kind, one line, and the traceback for the log."""
    name = type(error).__name__
    # torch.OutOfMemoryError is a RuntimeError; naming it here would import torch.
    kind = "oom" if isinstance(error, MemoryError) or name == "OutOfMemoryError" else name
    kind = getattr(error, "failure", None) or kind
    text = " ".join(str(error).split()) or name
    lines = "".join(traceback.format_exception(error))
    return Failed(
        stage=getattr(error, _ATTRIBUTE, "build"),
        kind=kind,
        message=text[:500],
        traceback=lines[-_TRACEBACK_CHARACTERS:],
    )


@dataclass(frozen=True)
class Guarded:
    """A factory whose evaluating function never raises: what executors are given.

    Attributes:
        factory: picklable; makes the function that may raise.
    """

    factory: Factory

    def __call__(self) -> Evaluate:
        evaluate = self.factory()
        return lambda job: run_job(evaluate, job)
