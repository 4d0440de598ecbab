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

from autocomp.core.executor import Factory
from autocomp.core.seat import take
from autocomp.core.threads import limit_threads
from autocomp.core.told import Told

_PR_SET_PDEATHSIG = 1


@dataclass(frozen=True)
class Ready:
    """The factory is done; jobs may come."""


class _Reported:
    """Sends an exception of its block to the parent and ends the worker quietly."""

    def __init__(self, pipe: Connection) -> None:
        self._pipe = pipe

    def __enter__(self) -> None: ...

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        if isinstance(error, Exception):
            self._pipe.send(Told.of(error))
            raise SystemExit(1)


def work(factory: Factory, pipe: Connection, lifeline: Connection, threads: int, seat: int, parent: int | None) -> None:
    """Take jobs from ``pipe`` and send outcomes back until it closes.

    Args:
        factory: makes the evaluating function.
        pipe: jobs in, outcomes out.
        lifeline: closes when the parent ends, however it ends.
        threads: for numeric libraries in this worker.
        seat: of this worker among its team.
        parent: process id of the parent where this process may be tied to its main thread, else None.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    _die_with_parent(lifeline, parent)
    take(seat)
    limit_threads(threads)
    with _Reported(pipe):
        evaluate = factory()
    limit_threads(threads)
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
