"""Quantization: settings of weight grids and activation grids, and how weights are put on them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from autocomp.core.steps import StepConfig
from autocomp.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class QuantizeWeights(StepConfig):
    """A uniform grid for a weight: nominal bits, or a step size that the entropy coder prices.

    Attributes:
        bits: 2 to 8: integers of that width; 16: float16 values. Exclusive with ``step``.
        step: step size in standard deviations of the channel (granularity "channel") or tensor.
            Unclipped up to ±127, so the coder, not a width, sets the bytes.
        granularity: "channel" or "tensor": one scale an output channel, or one a tensor.
        symmetric: zero maps to integer 0 and the range is symmetric; else a zero point is stored.
        scale: how ``bits`` grids choose the scale: "mse" (search over clip ratios) or "max".
        rounding: "nearest", or "compensated" (GPTQ, Frantar et al. 2022, on the layer's inputs).
    """

    kind: ClassVar[str] = "quantize_weights"
    axis: ClassVar[str] = "weights"
    order: ClassVar[int] = 40

    bits: int | None = None
    step: float | None = None
    granularity: str = "channel"
    symmetric: bool = True
    scale: str = "mse"
    rounding: str = "compensated"

    def __post_init__(self) -> None:
        if (self.bits is None) == (self.step is None):
            raise ConfigError("quantize_weights: give either bits or step")
        if self.bits is not None and self.bits not in (*range(2, 9), 16):
            raise ConfigError(f"quantize_weights.bits = {self.bits}; allowed 2 to 8 and 16")
        if self.step is not None and not 0.01 <= self.step <= 8:
            raise ConfigError(f"quantize_weights.step = {self.step}; allowed [0.01, 8] standard deviations")
        for name, allowed in (
            ("granularity", ("channel", "tensor")),
            ("scale", ("mse", "max")),
            ("rounding", ("nearest", "compensated")),
        ):
            if getattr(self, name) not in allowed:
                raise ConfigError(f"quantize_weights.{name} = {getattr(self, name)!r}; allowed {', '.join(allowed)}")

    def label(self) -> str:
        text = f"{self.bits}b" if self.bits is not None else f"k{self.step:g}"
        if self.bits == 16:
            return "fp16"
        text += "" if self.granularity == "channel" else "t"
        text += "" if self.symmetric else "a"
        text += "" if self.scale == "mse" or self.bits is None else "m"
        return text + ("" if self.rounding == "compensated" else "n")


@dataclass(frozen=True, kw_only=True)
class QuantizeActivations(StepConfig):
    """int8 execution of a layer: its input (and, where the target wants it, its output) on a grid.

    Attributes:
        bits: 8.
        calibrator: "minmax", "percentile", "mse" or "entropy".
    """

    kind: ClassVar[str] = "quantize_activations"
    axis: ClassVar[str] = "activations"
    order: ClassVar[int] = 50

    bits: int = 8
    calibrator: str = "mse"

    def __post_init__(self) -> None:
        if self.bits != 8:
            raise ConfigError(f"quantize_activations.bits = {self.bits}; allowed 8")
        if self.calibrator not in ("minmax", "percentile", "mse", "entropy"):
            raise ConfigError(
                f"quantize_activations.calibrator = {self.calibrator!r}; allowed minmax, percentile, mse, entropy"
            )

    def label(self) -> str:
        return "int8"
