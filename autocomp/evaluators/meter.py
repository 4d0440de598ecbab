"""Latency of a target: measured where its device is here, else predicted."""

from __future__ import annotations

from pathlib import Path

from autocomp.core.hardware import Target
from autocomp.evaluators.bench import Bench
from autocomp.evaluators.latency import LatencyMeter
from autocomp.evaluators.predicted import LatencyPredictor

Meter = LatencyMeter | LatencyPredictor
"""The same calls, the same keys."""


def make_meter(target: Target, cache_dir: Path, bench: Bench | None = None) -> Meter:
    """A meter that measures, or one that predicts where it cannot.

    Args:
        target: profile and runtime.
        cache_dir: what was measured or predicted is kept here.
        bench: the device where it is not this machine's.

    Raises:
        UnsupportedError: the device is not here, and the profile has nothing to predict from.
    """
    if bench is not None or target.cannot_measure() is None:
        return LatencyMeter(target, cache_dir, bench=bench)
    return LatencyPredictor(target, cache_dir)
