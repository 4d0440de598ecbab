"""What every latency model gives, and which one a hardware profile asks for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from autocomp.core.hardware import HardwareProfile
from autocomp.profiling.operations import Operation


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """A predicted latency; never to be shown as a measured one.

    Attributes:
        seconds: of one inference.
        error: relative error that 9 of 10 predictions stayed below where that was measured; None: unknown.
        method: "roofline" or "table".
        notes: what was not counted, one line each.
    """

    seconds: float
    error: float | None
    method: str
    notes: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """``method``, ``error``, ``notes``: what a measurement's conditions hold."""
        return {"method": self.method, "error": self.error, "notes": list(self.notes)}


class LatencyModel(Protocol):
    """Operations → seconds, without the device."""

    def predict(self, found: Sequence[Operation]) -> Prediction:
        """Latency of one inference; ``UnsupportedError`` names the figures that are missing."""
        ...


def latency_model(profile: HardwareProfile) -> LatencyModel:
    """The profile's table where it names one, else a roofline of its figures.

    Raises:
        UnsupportedError: the profile has no figures to predict from; says which would do.
        ConfigError: the table is no table.
    """
    from autocomp.profiling.roofline import Roofline
    from autocomp.profiling.table import LatencyTable

    if profile.latency_table is not None:
        return LatencyTable.load(profile.latency_table)
    return Roofline(profile)
