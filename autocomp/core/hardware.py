"""Hardware profiles (data) and runtimes (code): the two halves of a target."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

if TYPE_CHECKING:
    import numpy as np


@dataclass(frozen=True, kw_only=True)
class Placement:
    """How a candidate is written for the target: where activations are quantized, and what stays float.

    Attributes:
        outputs: also quantize the layer's output value (ONNX Runtime fuses a convolution only
            between two Q/DQ pairs; TensorRT wants none behind).
        elementwise: also quantize the result of additions, concatenations and pooling whose inputs
            are all quantized.
        symmetric: zero point 0 in int8 (TensorRT); else uint8 with a free zero point.
        residual: also quantize what an addition adds to the result of an int8 convolution (the identity or the
            shortcut), so that the kernel that does both reads int8; the pair is shared with the convolutions
            that read the same value.
        depthwise: depthwise convolutions run in int8 too; else they stay in ``float_type``.
        float_type: "float32" or "float16": what everything computes in that is not integer.
        int4_blocks: block sizes of 4-bit weights of linear layers that stay float (weight-only), the
            preferred one first; none: such weights are written in ``float_type``.
    """

    outputs: bool = True
    elementwise: bool = True
    symmetric: bool = False
    residual: bool = False
    depthwise: bool = True
    float_type: str = "float32"
    int4_blocks: tuple[int, ...] = ()


@dataclass(frozen=True, kw_only=True)
class HardwareProfile:
    """What a device can run. Loaded from ``hw_profiles/*.toml`` (schema: docs/hardware_profiles.md).

    Attributes:
        name: file name without suffix.
        title: for people.
        runtime: name of the runtime module ("onnxruntime").
        device: text that the device's own name holds; "": whatever device the runtime finds.
        precisions: layer kind → compute precisions the device runs ("float32", "int8", ...).
        placement: where Q/DQ goes.
        channel_multiple: precision → channel count multiple that runs at full speed.
        limits: named limits in bytes ("memory_bytes", "flash_bytes").
        options: settings for the runtime (threads, ...).
        numbers: every number with unit and source, as the file says.
        latency_table: JSON file of measured operator costs, None where nothing was measured.
        path: the file.
    """

    name: str
    title: str
    runtime: str
    precisions: Mapping[str, tuple[str, ...]]
    device: str = ""
    placement: Placement = Placement()
    channel_multiple: Mapping[str, int] = field(default_factory=dict)
    limits: Mapping[str, int] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)
    numbers: Mapping[str, Any] = field(default_factory=dict)
    latency_table: Path | None = None
    path: Path | None = None

    @property
    def on_gpu(self) -> bool:
        """Whether its engines run on a CUDA device."""
        return self.runtime.startswith("tensorrt") or self.options.get("device") == "cuda"


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A compiled network: what the runtime would ship, and what it does to each layer. Needs no device.

    Attributes:
        data: the compiled network, as :meth:`Runtime.load` takes it.
        layers: weight name (node name where it has none) → precision that the layer really runs in.
        details: JSON values that the builder tells (kernels, seconds, memory, inspector).
    """

    data: bytes
    layers: Mapping[str, str] = field(default_factory=dict)
    details: Mapping[str, Any] = field(default_factory=dict)

    @property
    def engine_bytes(self) -> int:
        """Size of what the runtime would ship."""
        return len(self.data)


class Engine(Protocol):
    """A plan on its device."""

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
        """None where plans can be built; else what is missing and the command that installs it."""
        ...

    def no_device(self, profile: HardwareProfile) -> str | None:
        """None where plans run and are timed here; else what is not there and what to do."""
        ...

    def versions(self) -> dict[str, str]:
        """Versions that decide what is built and how fast it runs."""
        ...

    def build(self, onnx_model: bytes, profile: HardwareProfile, example: np.ndarray) -> Plan:
        """Compile an ONNX model; raises ``UnsupportedError`` or ``RetryableError`` with the node's name."""
        ...

    def load(self, plan: Plan, profile: HardwareProfile, example: np.ndarray) -> Engine:
        """Bring a plan onto its device; ``example`` is the input it will be timed with."""
        ...


@runtime_checkable
class ObservesDevice(Protocol):
    """What an engine may have besides: the state of its device, which decides how fast it is just now."""

    def conditions(self) -> Mapping[str, Any]:
        """JSON values: clocks, power, temperature, ``throttled`` (reasons; empty where the clocks run free), ..."""
        ...


@runtime_checkable
class CountsEnergy(Protocol):
    """What an engine may have besides: the energy that its device uses."""

    def energy_per_run_j(self, least_s: float) -> float | None:
        """Joules of one inference on the engine's own fixed input, run again and again for ``least_s`` seconds.

        Of the whole device, what it uses idle included; None where it does not count.
        """
        ...


@runtime_checkable
class TimesLayers(Protocol):
    """What a runtime may have besides: the time of each layer inside an engine."""

    def layer_times_s(self, plan: Plan, profile: HardwareProfile, example: np.ndarray) -> Mapping[str, float]:
        """Key of ``plan.layers`` → fastest seconds of its kernel; layers that cannot be told apart are left out."""
        ...


@dataclass(frozen=True, kw_only=True)
class Target:
    """A profile and the runtime that builds for it."""

    profile: HardwareProfile
    runtime: Runtime

    def cannot_build(self) -> str | None:
        """Why nothing can be compiled for this target here; None where it can."""
        return self.runtime.missing()

    def cannot_measure(self) -> str | None:
        """Why latencies for this target are predicted and not measured here; None where they are measured."""
        return self.runtime.missing() or self.runtime.no_device(self.profile)

    def engine(self, onnx_model: bytes, example: np.ndarray) -> Engine:
        """Built and loaded in one."""
        return self.runtime.load(self.runtime.build(onnx_model, self.profile, example), self.profile, example)
