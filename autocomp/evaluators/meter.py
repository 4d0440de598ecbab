"""Latency of a target: measured where its device is here, else predicted."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from autocomp.core.hardware import Target
from autocomp.core.outcome import Measurement
from autocomp.evaluators.latency import LatencyMeter
from autocomp.evaluators.predicted import LatencyPredictor

if TYPE_CHECKING:
    import numpy as np


class Meter(Protocol):
    """What gives latencies; see :class:`~autocomp.evaluators.latency.LatencyMeter`.

    Attributes:
        builds: engines made so far, references not counted.
    """

    builds: int

    def measure(
        self,
        key: str,
        model: Callable[[], bytes],
        example: np.ndarray,
        reference: Callable[[], bytes],
        *,
        reference_key: str = "float32",
        fresh: bool = False,
    ) -> tuple[Measurement, int | None] | None:
        """Latency, and the engine's size where one was built; None where nothing is known of it."""
        ...

    def close(self) -> None:
        """Give the device back."""
        ...


def make_meter(target: Target, cache_dir: Path) -> Meter:
    """A meter that measures, or one that predicts where it cannot.

    Raises:
        UnsupportedError: the device is not here, and the profile has nothing to predict from.
    """
    if target.cannot_measure() is None:
        return LatencyMeter(target, cache_dir)
    return LatencyPredictor(target, cache_dir)
