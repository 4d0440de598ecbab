"""Which part of an evaluation an exception came from."""

from __future__ import annotations

import time
from types import TracebackType

STAGE = "autocomp_stage"
"""Attribute of an exception: the name of the stage it left."""


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
        if error is not None and not hasattr(error, STAGE):
            setattr(error, STAGE, self.name)
