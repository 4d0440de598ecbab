"""Holds a run as another machine would, on a file system without flock: what the tests of owners start and kill.

Usage: elsewhere.py PATH NAME SECONDS. Prints "held", then "lost" as soon as it is no longer the owner. The two things
that make it another machine on another file system are replaced: its name, and the answer of ``flock``.
"""

from __future__ import annotations

import errno
import os
import sys
import time
from pathlib import Path

from autocomp.core import owner
from autocomp.errors import StorageError

BEAT_S = 0.3


def elsewhere(name: str) -> None:
    """Make this process one of machine ``name``, quick, and without flock."""

    def refused(*_: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    owner.fcntl.flock = refused  # type: ignore[assignment]
    owner.machine = lambda: name  # type: ignore[assignment]
    owner.BEAT_S = BEAT_S


if __name__ == "__main__":
    elsewhere(sys.argv[2])
    try:
        held = owner.Owner(Path(sys.argv[1]), thing="run", say=lambda text: print("waits", flush=True))
        print("held", flush=True)
        until = time.monotonic() + float(sys.argv[3])
        while time.monotonic() < until:
            held.check()
            time.sleep(BEAT_S / 3)
        held.release()
    except StorageError as error:
        print(f"lost: {error}", flush=True)
        sys.exit(2)
