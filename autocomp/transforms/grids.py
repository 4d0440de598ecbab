"""Uniform grids for weights: scale and zero point of each channel, chosen by maximum, squared error or step."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from autocomp.core.encodings import round_scale

STEP_LIMIT = 127
"""Symbols of step grids reach to ±127; the coder, not a width, sets their bytes."""

_COARSE = tuple(0.12 ** (i / 17) for i in range(18))  # clip ratios 1 … 0.12, 12 % apart
_FINE = tuple(1.125 ** (i / 5) for i in range(-4, 5) if i)  # around the best of them, 2.4 % apart


@dataclass(frozen=True, kw_only=True, eq=False)
class Grid:
    """Values (symbol − zero) * scale with low ≤ symbol ≤ high.

    Attributes:
        scale: [channels] or [1] float32, positive, already rounded to what the file stores.
        zero: the shape of ``scale``, integers in float32; None for a symmetric grid.
        low, high: smallest and largest symbol.
    """

    scale: Tensor
    zero: Tensor | None
    low: int
    high: int

    def zeros(self) -> Tensor:
        """Zero points, 0 for a symmetric grid."""
        return torch.zeros_like(self.scale) if self.zero is None else self.zero

    def nearest(self, rows: Tensor) -> Tensor:
        """Nearest symbols of ``rows`` [channels, n], as float32 integers."""
        scaled = rows / self.scale[:, None]
        if self.zero is not None:
            scaled += self.zero[:, None]
        return scaled.round_().clamp_(self.low, self.high)

    def expanded(self, channels: int) -> Grid:
        """The same grid with one scale a channel."""
        zero = None if self.zero is None else self.zero.expand(channels).contiguous()
        return Grid(scale=self.scale.expand(channels).contiguous(), zero=zero, low=self.low, high=self.high)


def storable(scale: Tensor) -> Tensor:
    """``scale`` as the file holds it; channels with no width of their own get the largest one's."""
    top = scale.max() if scale.numel() else scale.new_ones(())
    top = torch.where(top > 0, top, torch.ones_like(top))
    rounded = round_scale(torch.where(scale > 0, scale, top))
    return torch.where(rounded > 0, rounded, round_scale(top.reshape(1)))


def step_grid(rows: Tensor, step: float, *, per_tensor: bool, symmetric: bool) -> Grid:
    """scale = step × standard deviation (of the channel, or the tensor), wide enough for every weight.

    Args:
        rows: [channels, n] float32.
        step: in standard deviations.
        per_tensor: one scale for all channels.
        symmetric: zero is symbol 0; else a zero point centres each channel's symbols on its mean, which
            changes no value and makes channels that are off centre cheaper to code.
    """
    pool = rows.reshape(1, -1) if per_tensor else rows
    mean = pool.mean(dim=1)
    deviation = (pool - mean[:, None]).square().mean(dim=1).sqrt()
    centre = torch.zeros_like(mean) if symmetric else mean
    reach = (pool - centre[:, None]).abs().amax(dim=1)
    if not symmetric:
        reach = torch.maximum(reach, centre.abs())  # the zero point itself has to fit
    # half a step of room: the rounded scale and the rounded centre must not clip the extremes
    scale = storable(torch.maximum(step * deviation, reach / (STEP_LIMIT - 1)))
    zero = None if symmetric else (-centre / scale).round_().clamp_(-STEP_LIMIT, STEP_LIMIT)
    return Grid(scale=scale, zero=zero, low=-STEP_LIMIT, high=STEP_LIMIT)


def bits_grid(
    rows: Tensor, bits: int, *, per_tensor: bool, symmetric: bool, search: bool, weights: Tensor | None = None
) -> Grid:
    """A grid of nominal width.

    Symmetric: symbols −(2^(b−1)−1) … 2^(b−1)−1, so 2 bits are {−1, 0, 1}. Asymmetric: all 2^b symbols,
    the range always holding zero, so that a zero weight stays exactly zero.

    Args:
        rows: [channels, n] float32.
        bits: 2 to 8.
        per_tensor: one scale for all channels.
        symmetric: see above.
        search: choose the clip ratio with the least squared error; else the range of the weights.
        weights: [channels, n] importance of each column for ``search`` (E[x²] of its input), or None.
    """
    pool = rows.reshape(1, -1) if per_tensor else rows
    importance = None if weights is None else weights.reshape(pool.shape)
    top = 2 ** (bits - 1) - 1
    if symmetric:
        high_end = pool.abs().amax(dim=1)
        low_end = -high_end
    else:
        high_end = pool.amax(dim=1).clamp_min(0)
        low_end = pool.amin(dim=1).clamp_max(0)

    def grid(low_ratio: Tensor, high_ratio: Tensor) -> Grid:
        if symmetric:
            return Grid(scale=storable(high_end * high_ratio / top), zero=None, low=-top, high=top)
        low, high = low_end * low_ratio, high_end * high_ratio
        scale = storable((high - low) / (2 * top + 1))
        zero = (-low / scale).round_() - (top + 1)
        return Grid(scale=scale, zero=zero.clamp_(-(top + 1), top), low=-(top + 1), high=top)

    one = torch.ones_like(high_end)
    if not search:
        return grid(one, one)
    low, high = _search(pool, importance, grid, symmetric)
    return grid(low, high)


def _search(pool: Tensor, importance: Tensor | None, grid: object, symmetric: bool) -> tuple[Tensor, Tensor]:
    """Clip ratios (low end, high end) of each channel with the least squared error."""
    assert callable(grid)
    best_low = torch.ones(pool.shape[0])
    best_high = torch.ones(pool.shape[0])
    least = _error(pool, grid(best_low, best_high), importance)

    def attempt(low: Tensor, high: Tensor) -> None:
        nonlocal best_low, best_high, least
        error = _error(pool, grid(low, high), importance)
        better = error < least
        least = torch.where(better, error, least)
        best_low = torch.where(better, low, best_low)
        best_high = torch.where(better, high, best_high)

    ones = torch.ones_like(best_low)
    for ratio in _COARSE[1:]:
        attempt(ones * ratio, ones * ratio)
    middle = best_high
    for ratio in _FINE:
        attempt((middle * ratio).clamp_max(1), (middle * ratio).clamp_max(1))
    if not symmetric:  # then each end by itself
        for ratio in (*_COARSE[1:5], *(1 / r for r in _COARSE[1:5])):
            attempt((best_low * ratio).clamp_max(1), best_high)
            attempt(best_low, (best_high * ratio).clamp_max(1))
    return best_low, best_high


def _error(pool: Tensor, grid: Grid, importance: Tensor | None) -> Tensor:
    """Squared error of nearest rounding, [channels]."""
    symbols = grid.nearest(pool)
    if grid.zero is not None:
        symbols -= grid.zero[:, None]
    errors = symbols.mul_(grid.scale[:, None]).sub_(pool).square_()
    if importance is not None:
        errors *= importance
    return errors.sum(dim=1)
