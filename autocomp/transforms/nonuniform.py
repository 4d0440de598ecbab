"""Fixed non-uniform grids: powers of two, and grids as dense as the weights are."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from autocomp.core.encodings import CodebookTensor
from autocomp.transforms._codebooks import on_codebooks, padded
from autocomp.transforms._kmeans import lloyd_numbers
from autocomp.transforms.grids import storable
from autocomp.transforms.problem import LayerProblem
from autocomp.transforms.weight_step import WeightStep, channel_scale, checked, kept_channels

_BINS = 2048


@dataclass(frozen=True, kw_only=True)
class PowerOfTwo(WeightStep):
    """Zero and ±2^e, so that a product is a shift (INQ, Zhou et al. 2017, eq. 1 to 4; no retraining here).

    Attributes:
        bits: 2 to 6: 2^(bits − 2) magnitudes, from 2^⌊log₂(4/3 · max|w|)⌋ down, and zero.
        granularity: the largest exponent of the whole "tensor" (theirs) or of each output "channel".
    """

    kind: ClassVar[str] = "power_of_two"
    keeps_zeros: ClassVar[bool] = True

    bits: int = 4
    granularity: str = "tensor"

    def __post_init__(self) -> None:
        self._within("bits", 2, 6)
        self._one_of("granularity", "channel", "tensor")

    def label(self) -> str:
        return f"p{self.bits}" + ("" if self.granularity == "tensor" else "c")

    def encode(self, problem: LayerProblem) -> CodebookTensor:
        problem = checked(problem, self)
        channels = problem.channels()
        pool = channels if self.granularity == "channel" else channels.reshape(1, -1)
        top = torch.frexp(pool.abs().amax(dim=1) * (4 / 3)).exponent - 1
        scale = storable(torch.where(pool.abs().amax(dim=1) > 0, torch.ldexp(torch.ones(len(pool)), top), 0.0))
        if problem.channel_scales:
            scale = scale.expand(len(channels)).contiguous()
        magnitudes = 2.0 ** -torch.arange(2 ** (self.bits - 2), dtype=torch.float32)
        return on_codebooks(problem, scale, torch.cat([-magnitudes, torch.zeros(1), magnitudes])[None])


@dataclass(frozen=True, kw_only=True)
class DensityGrid(WeightStep):
    """One codebook that follows the distribution of the weights, from its quantiles or its histogram.

    Attributes:
        entries: 2 to 256.
        placement: "quantile": means of parts of equal count; "lloyd": the Lloyd-Max quantizer (Max 1960, Lloyd 1982)
            of a histogram of 2048 bins, begun at the quantiles.
        granularity: "channel": each output channel divided by its root mean square, which is stored; or "tensor".
    """

    kind: ClassVar[str] = "density_grid"
    keeps_zeros: ClassVar[bool] = True

    entries: int = 16
    placement: str = "lloyd"
    granularity: str = "channel"

    def __post_init__(self) -> None:
        self._within("entries", 2, 256)
        self._one_of("placement", "quantile", "lloyd")
        self._one_of("granularity", "channel", "tensor")

    def label(self) -> str:
        text = f"d{self.entries}" + ("" if self.placement == "lloyd" else "q")
        return text + ("" if self.granularity == "channel" else "t")

    def encode(self, problem: LayerProblem) -> CodebookTensor:
        problem = checked(problem, self)
        scale = channel_scale(problem, self.granularity)
        values = (problem.channels() / scale.reshape(-1, 1))[kept_channels(problem)]
        count = self.entries - (problem.mask is not None)
        centres = _quantile_means(values, count) if len(values) else torch.zeros(count)
        if self.placement == "lloyd" and len(values):
            centres = _histogram_lloyd(values, centres)
        return on_codebooks(problem, scale, padded(centres, problem)[None])


def _quantile_means(values: Tensor, count: int) -> Tensor:
    """Means of ``count`` parts of ``values`` [n] of (nearly) equal count, in order."""
    ordered = values.double().sort().values
    sums = torch.cat([ordered.new_zeros(1), ordered.cumsum(0)])
    edges = (torch.arange(count + 1) * len(ordered)) // count
    sizes = edges.diff()
    # fewer numbers than parts: an empty part takes the number at its edge
    means = sums[edges].diff() / sizes.clamp_min(1)
    return torch.where(sizes > 0, means, ordered[edges[:-1].clamp_max(len(ordered) - 1)]).float()


def _histogram_lloyd(values: Tensor, centres: Tensor) -> Tensor:
    """k-means of the bins of a histogram, each at the mean of what is in it."""
    low, high = torch.aminmax(values)
    width = (high - low).clamp_min(1e-30) / _BINS
    index = ((values - low) / width).long().clamp_(0, _BINS - 1)
    counts = torch.bincount(index, minlength=_BINS)
    sums = torch.zeros(_BINS, dtype=torch.float64).index_add_(0, index, values.double())
    used = counts > 0
    return lloyd_numbers(sums[used] / counts[used], counts[used], centres)
