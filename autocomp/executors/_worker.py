"""What runs inside a worker process."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import sys
import threading
from dataclasses import dataclass
from multiprocessing.connection import Connection
from types import TracebackType

from autocomp import errors
from autocomp.core.executor import Factory
from autocomp.errors import AutocompError, UnsupportedError

_PR_SET_PDEATHSIG = 1
_THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


@dataclass(frozen=True)
class Ready:
    """The factory is done; jobs may come."""


@dataclass(frozen=True)
class Broken:
    """The factory raised.

    Attributes:
        kind: class name of the exception.
        message: one line.
    """

    kind: str
    message: str

    def error(self) -> AutocompError:
        """The exception to raise in the parent: of the same class where it is one of ours."""
        kind = getattr(errors, self.kind, None)
        if isinstance(kind, type) and issubclass(kind, AutocompError) and kind is not errors.UnknownNameError:
            return kind(self.message)
        return UnsupportedError(f"evaluation workers cannot start: {self.kind}: {self.message}")


class _Reported:
    """Sends an exception of its block to the parent and ends the worker quietly."""

    def __init__(self, pipe: Connection) -> None:
        self._pipe = pipe

    def __enter__(self) -> None: ...

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        if kind is not None and issubclass(kind, Exception):
            self._pipe.send(Broken(kind.__name__, " ".join(str(error).split())))
            raise SystemExit(1)


def work(factory: Factory, pipe: Connection, lifeline: Connection, threads: int, parent: int | None) -> None:
    """Take jobs from ``pipe`` and send outcomes back until it closes.

    Args:
        factory: makes the evaluating function.
        pipe: jobs in, outcomes out.
        lifeline: closes when the parent ends, however it ends.
        threads: for numeric libraries in this worker.
        parent: process id of the parent where this process may be tied to its main thread, else None.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    _die_with_parent(lifeline, parent)
    _limit_threads(threads)
    with _Reported(pipe):
        evaluate = factory()
    _limit_threads(threads)
    with contextlib.suppress(EOFError, BrokenPipeError, ConnectionResetError):
        pipe.send(Ready())
        while True:
            pipe.send(evaluate(pipe.recv()))


def _die_with_parent(lifeline: Connection, parent: int | None) -> None:
    """End at once when the parent does: by the lifeline's end anywhere, by the kernel too on Linux."""

    def watch() -> None:
        with contextlib.suppress(EOFError, OSError):
            lifeline.recv_bytes()
        os._exit(1)

    threading.Thread(target=watch, name="lifeline", daemon=True).start()
    if parent is not None and sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if os.getppid() != parent:  # it ended before the line above
            os._exit(1)


def _limit_threads(threads: int) -> None:
    """Share the cores: by environment for libraries to come, by call for a torch that is there."""
    for name in _THREAD_VARIABLES:
        os.environ[name] = str(threads)
    torch = sys.modules.get("torch")
    if torch is not None:
        torch.set_num_threads(threads)
