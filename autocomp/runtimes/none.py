"""Devices that nothing here compiles for: their profile's figures are all there is, and every latency is predicted."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from autocomp.core.hardware import Engine, HardwareProfile, Plan
from autocomp.errors import UnsupportedError

if TYPE_CHECKING:
    import numpy as np

OPTIONS: dict[str, str | tuple[Any, ...]] = {}
_WHY = "no compiler for this device is part of autocomp; its latencies are predicted from the profile's figures"


class NoRuntime:
    """Builds nothing and runs nothing."""

    name = "none"

    def missing(self) -> str | None:
        """Always: there is no package to install."""
        return _WHY

    def no_device(self, profile: HardwareProfile) -> str | None:
        """Always."""
        return _WHY

    def versions(self) -> dict[str, str]:
        """Nothing decides what is built, since nothing is."""
        return {"none": "1"}

    def build(self, onnx_model: bytes, profile: HardwareProfile, example: np.ndarray) -> Plan:
        """Raises ``UnsupportedError``."""
        raise UnsupportedError(f"target {profile.name}: {_WHY}")

    def load(self, plan: Plan, profile: HardwareProfile, example: np.ndarray) -> Engine:
        """Raises ``UnsupportedError``."""
        raise UnsupportedError(f"target {profile.name}: {_WHY}")


def runtime() -> NoRuntime:
    """The runtime of this module."""
    return NoRuntime()
