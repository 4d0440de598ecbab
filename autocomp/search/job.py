"""One task from its input to its result: the only place where any exception becomes a value."""

from __future__ import annotations

import traceback
from dataclasses import dataclass

from autocomp.core.executor import Evaluate, Factory, Result, Task
from autocomp.core.outcome import Failed
from autocomp.core.stage import STAGE
from autocomp.errors import StorageError

_TRACEBACK_CHARACTERS = 8000


def run_job(evaluate: Evaluate, job: Task) -> Result:
    """``evaluate(job)``, with any exception turned into :class:`Failed`.

    Its stage is that of the innermost :class:`autocomp.core.stage.Stage` it left, "build" outside of any. ``kind`` is
    the word that the exception carries ("timeout", "died"), else its class name; "oom" when memory ran out (host or
    device). Interrupts pass: they are the user's, not the candidate's.
    """
    try:
        return evaluate(job)
    except Exception as error:  # noqa: BLE001 - the one place: a failed candidate must not end the search
        return failure(error)


def raise_storage_fault(outcome: Result) -> None:
    """A full or broken disk is no candidate's failure: the search ends, and the same command tries the job again.

    Raises:
        StorageError: that a worker met.
    """
    if isinstance(outcome, Failed) and outcome.kind == StorageError.__name__:
        raise StorageError(outcome.message)


def failure(error: Exception) -> Failed:
    """``error`` as a value: its stage, kind, one line, and the traceback for the log."""
    name = type(error).__name__
    # torch.OutOfMemoryError is a RuntimeError; naming it here would import torch.
    kind = "oom" if isinstance(error, MemoryError) or name == "OutOfMemoryError" else name
    kind = getattr(error, "failure", None) or kind
    text = " ".join(str(error).split()) or name
    lines = "".join(traceback.format_exception(error))
    return Failed(
        stage=getattr(error, STAGE, "build"),
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
