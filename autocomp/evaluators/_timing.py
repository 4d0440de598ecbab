"""How samples are taken: how many, in which order, with what kept quiet."""

from __future__ import annotations

import fcntl
import gc
import hashlib
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from autocomp.core.run_folder import storage_errors


@dataclass(frozen=True, kw_only=True)
class TimingRecipe:
    """How long and how often.

    Attributes:
        warmup_s, warmup_runs: both are reached before the first sample.
        target_s: all samples together aim at this, seconds.
        samples, max_samples: least and most samples of each engine.
        slow_run_s, slow_samples: from this run time on, fewer samples are enough.
        interference: a reference slower than this times the fastest one seen is suspicious.
        attempts: measurements in all before a suspicious one is accepted.
        energy_s: each engine runs so long by itself where the device counts energy.
    """

    warmup_s: float = 0.1
    warmup_runs: int = 5
    target_s: float = 0.6
    samples: int = 30
    max_samples: int = 1000
    slow_run_s: float = 0.2
    slow_samples: int = 9
    interference: float = 1.25
    attempts: int = 2
    energy_s: float = 1.0

    def count(self, run_s: float, reference_run_s: float) -> int:
        """Samples of each engine, from the seconds of one run of each."""
        least = self.slow_samples if max(run_s, reference_run_s) > self.slow_run_s else self.samples
        pair_s = max(run_s + reference_run_s, 1e-9)
        return max(least, min(self.max_samples, round(self.target_s / pair_s)))


def who_first(pairs: int) -> list[bool]:
    """Whether the candidate runs first in each pair: of every two pairs one, which of them by a fixed seed.

    A fixed A B A B falls into step with the scheduler's time slices: on a loaded 2-core machine an
    engine measured against itself came out 1.03 to 1.07 times as slow, in 12 of 12 measurements. In
    this order it came out between 0.98 and 1.02, and 1 was in the interval in 47 of 48.
    """
    halves = np.random.default_rng(0).integers(0, 2, size=-(-pairs // 2)).astype(bool)
    order = np.stack([halves, ~halves], axis=1).ravel()[:pairs]
    return [bool(first) for first in order]


@contextmanager
def no_garbage_collection() -> Iterator[None]:
    """Python's garbage collector run once, then off inside."""
    gc.collect()
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


@contextmanager
def lease(device: str) -> Iterator[None]:
    """Exclusive use of a device for timing, among this user's processes on this machine.

    The kernel gives the lock back at once when its holder dies, however it dies.
    """
    name = hashlib.sha256(device.encode()).hexdigest()[:16]
    path = Path(tempfile.gettempdir()) / f"autocomp-timing-{os.getuid()}-{name}.lock"
    with storage_errors(path):
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)
