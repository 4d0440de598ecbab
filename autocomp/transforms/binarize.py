"""Binary and ternary weights with one magnitude a channel."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from autocomp.core.encodings import QuantizedTensor
from autocomp.transforms.compensate import Hessian, compensated
from autocomp.transforms.grids import storable
from autocomp.transforms.patches import by_rows, weight_from_rows, weight_rows
from autocomp.transforms.problem import LayerProblem
from autocomp.transforms.weight_step import WeightStep, checked, kept_channels

TERNARY_THRESHOLD = 0.7
"""Of the mean magnitude: below, a weight becomes zero (Li et al. 2016, for normal and uniform weights)."""


@dataclass(frozen=True, kw_only=True)
class _OneMagnitude(WeightStep):
    """Settings that binary and ternary weights share."""

    kernels: ClassVar[tuple[str, ...]] = ("int8", "float8")
    keeps_zeros: ClassVar[bool] = True
    short: ClassVar[str] = ""

    granularity: str = "channel"
    rounding: str = "compensated"

    def __post_init__(self) -> None:
        self._one_of("granularity", "channel", "tensor")
        self._one_of("rounding", "nearest", "compensated")

    def label(self) -> str:
        t, n = "" if self.granularity == "channel" else "t", "" if self.rounding == "compensated" else "n"
        return f"{self.short}{t}{n}"


@dataclass(frozen=True, kw_only=True)
class BinarizeWeights(_OneMagnitude):
    """±α, α the mean magnitude (XNOR-Net, Rastegari et al. 2016); inputs stay as they are.

    Attributes:
        granularity: α of each output "channel", or of the whole "tensor".
        rounding: "nearest" (the sign), or "compensated" on the layer's inputs (Frantar et al. 2022).
    """

    kind: ClassVar[str] = "binarize_weights"
    short: ClassVar[str] = "bin"

    def encode(self, problem: LayerProblem) -> QuantizedTensor:
        clean = checked(problem, self)
        channels, kept = clean.channels(), kept_channels(clean)
        scale = _mean_magnitude(channels, kept, self.granularity)
        nearest = torch.where(channels >= 0, 1.0, -1.0) * kept
        if self.rounding == "compensated" and problem.hessian is not None:
            # ±α as the two points 0 and 1 of a grid of width 2α around ½; whoever is no such point was not rounded
            halves = _on_grid(problem, problem.hessian, 2 * scale, zero=0.5, low=0.0, high=1.0)
            symbols = 2 * problem.replace(weight=halves).channels() - 1
            nearest = torch.where(kept & (symbols == 0), nearest, symbols)
        return _ternary(clean, nearest, scale, bits=1 if clean.mask is None else 2)


@dataclass(frozen=True, kw_only=True)
class TernarizeWeights(_OneMagnitude):
    """−α, 0 and α: zero below 0.7 of the mean magnitude, α the mean of the others (TWN, Li et al. 2016).

    Attributes:
        granularity: of threshold and α: "channel" or "tensor".
        rounding: "nearest" (their threshold), or "compensated" on the layer's inputs, which rounds at α/2.
    """

    kind: ClassVar[str] = "ternarize_weights"
    short: ClassVar[str] = "ter"

    def encode(self, problem: LayerProblem) -> QuantizedTensor:
        clean = checked(problem, self)
        channels, kept = clean.channels(), kept_channels(clean)
        threshold = TERNARY_THRESHOLD * _mean_magnitude(channels, kept, self.granularity, exact=True)
        large = channels.abs() > threshold[:, None]
        scale = _mean_magnitude(channels, large, self.granularity)
        symbols = channels.sign() * large
        if self.rounding == "compensated" and problem.hessian is not None:
            rounded = _on_grid(problem, problem.hessian, scale, zero=0.0, low=-1.0, high=1.0)
            symbols = problem.replace(weight=rounded).channels()
        return _ternary(clean, symbols, scale, bits=2)


def _mean_magnitude(channels: Tensor, among: Tensor, granularity: str, *, exact: bool = False) -> Tensor:
    """Mean |w| over ``among`` of each channel or of all, [channels] or [1]; rounded for the file unless ``exact``."""
    pool, chosen = (channels, among) if granularity == "channel" else (channels.reshape(1, -1), among.reshape(1, -1))
    mean = (pool.abs() * chosen).sum(dim=1) / chosen.sum(dim=1).clamp_min(1)
    return mean if exact else storable(mean)


def _on_grid(problem: LayerProblem, hessian: Hessian, scale: Tensor, *, zero: float, low: float, high: float) -> Tensor:
    """Compensated symbols, the shape of the weight; masked weights at ``zero``."""
    rows = weight_rows(problem.weight, hessian.groups, problem.axis)
    by_row = by_rows(scale, rows, problem.axis)
    one = torch.ones(1, 1)
    mask = None if problem.mask is None else weight_rows(problem.mask, hessian.groups, problem.axis)
    symbols = compensated(rows, hessian, by_row, zero * one, low * one, high * one, mask=mask)
    return weight_from_rows(symbols, problem.weight.shape, problem.axis)


def _ternary(problem: LayerProblem, symbols: Tensor, scale: Tensor, *, bits: int) -> QuantizedTensor:
    """The stored form of symbols [channels, n]."""
    if problem.channel_scales and scale.numel() == 1:
        scale = scale.expand(len(symbols)).contiguous()
    return QuantizedTensor(symbols=problem.shaped(symbols.to(torch.int16)), scale=scale, axis=problem.axis, bits=bits)
