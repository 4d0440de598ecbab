"""Hardware profiles (data) and runtimes (code): the two halves of a target."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import numpy as np


@dataclass(frozen=True, kw_only=True)
class Placement:
    """Where activations are quantized around an int8 layer: a fact of the runtime's fusions.

    Attributes:
        outputs: also quantize the layer's output value (ONNX Runtime fuses a convolution only
            between two Q/DQ pairs; TensorRT wants none behind).
        elementwise: also quantize the result of additions, concatenations and pooling whose inputs
            are all quantized.
        symmetric: zero point 0 in int8 (TensorRT); else uint8 with a free zero point.
    """

    outputs: bool = True
    elementwise: bool = True
    symmetric: bool = False


@dataclass(frozen=True, kw_only=True)
class HardwareProfile:
    """What a device can run. Loaded from ``hw_profiles/*.toml`` (schema: docs/hardware_profiles.md).

    Attributes:
        name: file name without suffix.
        title: for people.
        runtime: name of the runtime module ("onnxruntime").
        precisions: layer kind → compute precisions the device runs ("float32", "int8", ...).
        placement: where Q/DQ goes.
        channel_multiple: precision → channel count multiple that runs at full speed.
        limits: named limits in bytes ("memory_bytes", "flash_bytes").
        options: settings for the runtime (threads, ...).
        numbers: every number with unit and source, as the file says.
        path: the file.
    """

    name: str
    title: str
    runtime: str
    precisions: Mapping[str, tuple[str, ...]]
    placement: Placement = Placement()
    channel_multiple: Mapping[str, int] = field(default_factory=dict)
    limits: Mapping[str, int] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)
    numbers: Mapping[str, Any] = field(default_factory=dict)
    path: Path | None = None


class Engine(Protocol):
    """A built network on a device."""

    @property
    def engine_bytes(self) -> int:
        """Size of what the runtime would ship."""
        ...

    def run(self, inputs: np.ndarray) -> np.ndarray:
        """Outputs for float32 inputs [n, ...]; n is the batch size it was built for, or any where dynamic."""
        ...

    def time_once_s(self) -> float:
        """Seconds of one inference on the engine's own fixed input."""
        ...

    def close(self) -> None:
        """Give the device back."""
        ...


class Runtime(Protocol):
    """One module in ``autocomp/runtimes`` exposes ``runtime() -> Runtime``."""

    name: str

    def missing(self) -> str | None:
        """None when usable here; else what is missing and the command that installs it."""
        ...

    def versions(self) -> dict[str, str]:
        """Versions that decide what is built and how fast it runs."""
        ...

    def build(self, onnx_model: bytes, profile: HardwareProfile, example: np.ndarray) -> Engine:
        """Compile an ONNX model; raises ``UnsupportedError`` or ``RetryableError`` with the node's name."""
        ...


@dataclass(frozen=True, kw_only=True)
class Target:
    """A profile and the runtime that builds for it."""

    profile: HardwareProfile
    runtime: Runtime
