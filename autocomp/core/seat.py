"""Which of this machine's workers a process is, so that they spread over its devices."""

from __future__ import annotations

import os

_VARIABLE = "AUTOCOMP_SEAT"


def take(seat: int) -> None:
    """This process, and those it starts, work at ``seat`` (0, 1, ...)."""
    os.environ[_VARIABLE] = str(seat)


def taken() -> int:
    """The seat of this process; 0 where it has none."""
    return int(os.environ.get(_VARIABLE, "0"))
