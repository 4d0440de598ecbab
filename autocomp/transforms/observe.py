"""Forward passes that watch what layers put out: copies of a module with other weights, moments, memory."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from autocomp.core.network import Network
from autocomp.errors import DataError

_PASS_BYTES = 1 << 30  # activations of one pass; more images are taken in equal chunks


def decoded_module(module: nn.Module, tensors: Mapping[str, Tensor]) -> nn.Module:
    """A copy of ``module`` in eval mode with some parameters and buffers replaced, by state-dict key.

    What is replaced is never copied; modules that share a tensor share the new one.
    """
    memo: dict[int, object] = {}
    for name, parameter in module.named_parameters(remove_duplicate=False):
        if name in tensors:
            memo[id(parameter)] = nn.Parameter(tensors[name], requires_grad=False)
        else:
            memo.setdefault(id(parameter), parameter)  # only read
    for name, buffer in module.named_buffers(remove_duplicate=False):
        if name in tensors:
            memo[id(buffer)] = tensors[name]
    return copy.deepcopy(module, memo).eval()


def image_chunks(network: Network, batches: Sequence[Tensor]) -> list[Tensor]:
    """All images in one batch, or in equal chunks where their activations would not fit."""
    if not batches or not sum(len(b) for b in batches):
        raise DataError("no calibration images; give at least one")
    images = torch.cat(list(batches)) if len(batches) > 1 else batches[0]
    widest = max(
        (math.prod(s) for layer in network.layers.values() for s in (layer.input_shape, layer.output_shape)), default=1
    )
    fit = max(1, _PASS_BYTES // (4 * 4 * widest))  # about four such values live at once
    return list(images.chunk(math.ceil(len(images) / fit)))


def moments(values: Tensor, axis: int) -> tuple[Tensor, Tensor, int]:
    """Mean and variance [channels] of ``values`` and the number of values a channel."""
    axis = axis % values.dim()
    flat = values.flatten(2) if axis == 1 and values.dim() > 2 else values.reshape(-1, values.shape[-1]).T[None]
    count = flat.shape[0] * flat.shape[2]
    # sums of one image in float32, across images in float64: ten times faster than torch.var_mean
    mean = flat.sum(dim=2).double().sum(dim=0) / count
    square = torch.linalg.vector_norm(flat, dim=2).double().square().sum(dim=0) / count
    variance = (square - mean**2).clamp_min_(0)
    lost = (variance < 1e-4 * mean**2).nonzero().flatten()
    if len(lost):  # the difference has lost its digits there: take the exact way
        exact = torch.var(flat.index_select(1, lost), dim=(0, 2), correction=0)
        variance[lost] = exact.double()
    return mean.float(), variance.float(), count


class Pool:
    """Mean and variance over several parts of the data."""

    def __init__(self) -> None:
        self.count = 0
        self._sum: Tensor | None = None
        self._squares: Tensor | None = None

    def add(self, mean: Tensor, variance: Tensor, count: int) -> None:
        mean64 = mean.double()
        total, squares = mean64 * count, (variance.double() + mean64**2) * count
        self._sum = total if self._sum is None else self._sum + total
        self._squares = squares if self._squares is None else self._squares + squares
        self.count += count

    def result(self, name: str) -> tuple[Tensor, Tensor]:
        """float32 [channels] mean and variance."""
        assert self._sum is not None
        assert self._squares is not None
        mean = self._sum / self.count
        variance = (self._squares / self.count - mean**2).clamp_min(0)
        if not bool(torch.isfinite(variance).all()):
            raise DataError(f"layer {name}: its output on the calibration images is not finite; check data and weights")
        return mean.float(), variance.float()
