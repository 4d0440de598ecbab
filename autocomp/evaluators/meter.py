"""Latency of a target: measured where its device is here, else predicted."""

from __future__ import annotations

from pathlib import Path

from autocomp.core.hardware import Target
from autocomp.evaluators.latency import LatencyMeter
from autocomp.evaluators.predicted import LatencyPredictor

Meter = LatencyMeter | LatencyPredictor
"""The same calls, the same keys."""


def make_meter(target: Target, cache_dir: Path) -> Meter:
    """A meter that measures, or one that predicts where it cannot.

    Raises:
        UnsupportedError: the device is not here, and the profile has nothing to predict from.
    """
    if target.cannot_measure() is None:
        return LatencyMeter(target, cache_dir)
    return LatencyPredictor(target, cache_dir)
