"""Quantization: settings of weight grids and activation grids, and how weights are put on them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from autocomp.core.encodings import FloatTensor, QuantizedTensor
from autocomp.core.steps import StepConfig
from autocomp.errors import ConfigError, DataError
from autocomp.transforms.compensate import Hessian, compensated
from autocomp.transforms.grids import Grid, bits_grid, step_grid
from autocomp.transforms.patches import by_rows, weight_from_rows, weight_rows
from autocomp.transforms.rate import rate_aware

ROUNDINGS = ("nearest", "compensated", "rate")
CALIBRATORS = {"int8": ("minmax", "percentile", "mse", "entropy"), "float8": ("minmax", "percentile", "mse")}
"""8-bit precision of activations → ways to choose its scale."""


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
        rounding: "nearest"; "compensated" (GPTQ, Frantar et al. 2022, on the layer's inputs); "rate": compensated,
            and a weight goes to a cheaper neighbour where the coder saves more than the error costs
            (:mod:`~autocomp.transforms.rate`).
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
            ("rounding", ROUNDINGS),
        ):
            if getattr(self, name) not in allowed:
                raise ConfigError(f"quantize_weights.{name} = {getattr(self, name)!r}; allowed {', '.join(allowed)}")

    @property
    def uses_inputs(self) -> bool:
        """Whether the layer's inputs are worth collecting for it."""
        return self.rounding != "nearest" and self.bits != 16

    @property
    def kernels(self) -> tuple[str, ...]:
        """8-bit precisions whose kernels take the symbols: zero at 0, and for float8 integers that E4M3 holds.

        It holds all up to 16: those of 5 bits, and of steps of a standard deviation or more but for an outlier, which
        the export finds (:func:`autocomp.graph.integers.float8_numbers`).
        """
        if self.bits == 16 or not self.symmetric:
            return ()
        coarse = self.bits <= 5 if self.bits is not None else self.step is not None and self.step >= 1
        return ("int8", "float8") if coarse else ("int8",)

    def label(self) -> str:
        text = f"{self.bits}b" if self.bits is not None else f"k{self.step:g}"
        if self.bits == 16:
            return "fp16"
        text += "" if self.granularity == "channel" else "t"
        text += "" if self.symmetric else "a"
        text += "" if self.scale == "mse" or self.bits is None else "m"
        return text + {"compensated": "", "nearest": "n", "rate": "r"}[self.rounding]


@dataclass(frozen=True, kw_only=True)
class QuantizeActivations(StepConfig):
    """8-bit execution of a layer: its input (and, where the target wants it, its output) on a grid.

    Attributes:
        precision: "int8", or "float8": E4M3 numbers times a scale.
        calibrator: "minmax", "percentile", "mse" or (int8) "entropy".
    """

    kind: ClassVar[str] = "quantize_activations"
    axis: ClassVar[str] = "activations"
    order: ClassVar[int] = 50

    precision: str = "int8"
    calibrator: str = "mse"

    def __post_init__(self) -> None:
        if self.precision not in CALIBRATORS:
            raise ConfigError(f"quantize_activations.precision = {self.precision!r}; allowed {', '.join(CALIBRATORS)}")
        allowed = CALIBRATORS[self.precision]
        if self.calibrator not in allowed:
            raise ConfigError(
                f"quantize_activations.calibrator = {self.calibrator!r}; allowed for {self.precision}: "
                f"{', '.join(allowed)}"
            )

    def label(self) -> str:
        return self.precision


def quantize_weight(
    weight: Tensor,
    config: QuantizeWeights,
    *,
    hessian: Hessian | None = None,
    axis: int = 0,
    channel_scales: bool = False,
) -> QuantizedTensor | FloatTensor:
    """One weight on one grid; see :func:`quantize_many`."""
    return quantize_many(weight, [config], hessian=hessian, axis=axis, channel_scales=channel_scales)[0]


def quantize_many(
    weight: Tensor,
    configs: Sequence[QuantizeWeights],
    *,
    hessian: Hessian | None = None,
    axis: int = 0,
    channel_scales: bool = False,
    mask: Tensor | None = None,
) -> list[QuantizedTensor | FloatTensor]:
    """One weight on each of several grids; all compensated ones share a single column loop.

    Args:
        weight: float32, any shape; the channel axis is ``axis``.
        configs: the grids; 16 bits give float16 values.
        hessian: of the layer's inputs, with its convolution groups; without one (an embedding)
            compensated rounding is rounding to nearest.
        axis: 0, or 1 for transposed convolutions.
        channel_scales: store one (equal) scale a channel on per-tensor grids too.
        mask: bool, the shape of ``weight``, False where it is to be exactly zero. Grids are those of the weights
            that stay; compensated rounding makes good for the others (SparseGPT, Frantar and Alistarh 2023).

    Returns:
        One encoding a config, in order. Scales are rounded as the file stores them before any symbol is chosen.

    Raises:
        DataError: the weight is not finite.
    """
    weight = weight.detach().float()
    if not bool(torch.isfinite(weight).all()):
        raise DataError("weights are not finite (NaN or infinity); mend the checkpoint")
    kept = weight if mask is None else torch.where(mask, weight, 0.0)
    channels = kept.transpose(0, axis).reshape(weight.shape[axis], -1)
    importance = None if hessian is None else column_importance(hessian, channels, axis)
    made: list[QuantizedTensor | FloatTensor | None] = [None] * len(configs)
    waiting: list[tuple[int, Grid]] = []
    for i, config in enumerate(configs):
        if config.bits == 16:
            made[i] = FloatTensor.half(kept)
            continue
        grid = make_grid(channels, config, importance)
        if config.rounding == "rate" and hessian is not None:
            rounded = _rounded(weight, [grid], hessian, axis, mask, rate_aware)[0]
            made[i] = _encoding(rounded, grid, config, axis, channel_scales)
        elif config.rounding == "compensated" and hessian is not None:
            waiting.append((i, grid))
        else:
            symbols = grid.nearest(channels)
            shape = weight.transpose(0, axis).shape
            made[i] = _encoding(symbols.reshape(shape).transpose(0, axis), grid, config, axis, channel_scales)
    if waiting:
        assert hessian is not None
        grids = [grid for _, grid in waiting]
        for (i, grid), symbols in zip(waiting, _rounded(weight, grids, hessian, axis, mask, compensated), strict=True):
            made[i] = _encoding(symbols, grid, configs[i], axis, channel_scales)
    return [m for m in made if m is not None]


def make_grid(channels: Tensor, config: QuantizeWeights, importance: Tensor | None = None) -> Grid:
    """The grid that ``config`` asks for.

    Args:
        channels: [channels, n] weights.
        config: bits 2 to 8, or a step.
        importance: [channels, n] weight of each squared error in the search for a scale, or None.
    """
    per_tensor = config.granularity == "tensor"
    if config.step is not None:
        return step_grid(channels, config.step, per_tensor=per_tensor, symmetric=config.symmetric)
    assert config.bits is not None
    search = config.scale == "mse"
    return bits_grid(
        channels, config.bits, per_tensor=per_tensor, symmetric=config.symmetric, search=search, weights=importance
    )


def column_importance(hessian: Hessian, channels: Tensor, axis: int) -> Tensor:
    """E[x²] of the input that each weight meets, [channels, n]."""
    diagonal = hessian.diagonal()
    if axis == 0:
        return diagonal.repeat_interleave(channels.shape[0] // hessian.groups, dim=0)
    return diagonal.reshape(1, -1).expand(channels.shape[0], -1)


def _rounded(
    weight: Tensor,
    grids: list[Grid],
    hessian: Hessian,
    axis: int,
    mask: Tensor | None,
    method: Callable[..., Tensor],
) -> list[Tensor]:
    """Symbols of ``weight`` for each grid by ``method``; several grids are stacked as rows of one problem."""
    rows = weight_rows(weight, hessian.groups, axis)
    groups, count = rows.shape[:2]
    scale = torch.cat([by_rows(g.scale, rows, axis) for g in grids], dim=1)
    zero = torch.cat([by_rows(g.zeros(), rows, axis) for g in grids], dim=1)
    low = torch.cat([torch.full((groups, count), float(g.low)) for g in grids], dim=1)
    high = torch.cat([torch.full((groups, count), float(g.high)) for g in grids], dim=1)
    kept = None if mask is None else weight_rows(mask, hessian.groups, axis).repeat(1, len(grids), 1)
    symbols = method(rows.repeat(1, len(grids), 1), hessian, scale, zero, low, high, mask=kept)
    return [weight_from_rows(part, weight.shape, axis) for part in torch.split(symbols, count, dim=1)]


def _encoding(symbols: Tensor, grid: Grid, config: QuantizeWeights, axis: int, channel_scales: bool) -> QuantizedTensor:
    """The stored form of ``symbols``."""
    if channel_scales:
        grid = grid.expanded(symbols.shape[axis])
    return QuantizedTensor(
        symbols=symbols.to(torch.int16).contiguous(),
        scale=grid.scale,
        zero_point=None if grid.zero is None else grid.zero.to(torch.int16),
        axis=axis,
        bits=config.bits,
    )
