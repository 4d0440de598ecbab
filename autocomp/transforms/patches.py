"""A layer as a linear map of rows: its weight as a matrix, its inputs as the vectors that matrix meets.

For a layer with G groups the weight is [G, rows, n] and an input sample is a vector of n numbers a
group, so that output = weight @ sample (+ bias) at each output position. Convolutions of one to three
dimensions, transposed convolutions and linear layers all take this form.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from autocomp.errors import UnsupportedError

_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


def channel_axis(module: nn.Module) -> int:
    """The axis of the weight that counts output channels: 1 for transposed convolutions, else 0."""
    return 1 if isinstance(module, _TRANSPOSED) else 0


def has_patches(module: nn.Module) -> bool:
    """Whether the layer is a linear map of its input (an embedding, for instance, is not)."""
    return isinstance(module, (*_CONVOLUTIONS, *_TRANSPOSED, nn.Linear))


def weight_rows(weight: Tensor, groups: int, axis: int) -> Tensor:
    """The weight as matrices [groups, rows, n], columns ordered (input channel, kernel position)."""
    if axis == 0:
        return weight.reshape(groups, weight.shape[0] // groups, -1)
    grouped = weight.reshape(groups, weight.shape[0] // groups, weight.shape[1], -1)
    return grouped.transpose(1, 2).flatten(2)


def weight_from_rows(rows: Tensor, shape: Sequence[int], axis: int) -> Tensor:
    """Inverse of :func:`weight_rows` for a weight of ``shape``."""
    if axis == 0:
        return rows.reshape(tuple(shape))
    groups = rows.shape[0]
    grouped = rows.reshape(groups, shape[1], shape[0] // groups, math.prod(shape[2:]))
    return grouped.transpose(1, 2).reshape(tuple(shape))


def by_rows(numbers: Tensor, rows: Tensor, axis: int) -> Tensor:
    """Numbers of a tensor's grid, [channels] or [1], as [groups, rows] of ``rows`` from :func:`weight_rows`."""
    count = rows.shape[:2]
    return numbers.reshape(count) if axis == 0 and numbers.numel() > 1 else numbers.expand(count)


def output_rows(module: nn.Module, outputs: Tensor, positions: Tensor | None = None) -> Tensor:
    """A layer's outputs [N, ...] as [groups, rows, N * positions], aligned with :meth:`Patches.rows`."""
    if isinstance(module, nn.Linear):
        channels = outputs.reshape(outputs.shape[0], -1, outputs.shape[-1]).permute(2, 0, 1)
    else:
        channels = outputs.flatten(2).transpose(0, 1)
    if positions is not None:
        channels = channels[:, :, positions]
    groups = int(getattr(module, "groups", 1))
    return channels.reshape(groups, channels.shape[0] // groups, -1)


@dataclass(frozen=True, kw_only=True, eq=False)
class Patches:
    """How one layer cuts its input into the vectors that its weight meets.

    Attributes:
        module: the layer.
        positions: number of output positions of one sample.
        columns: [m] indices of the weight's columns that some output position really meets; the others
            only ever meet zero padding at this input size, so they cannot change the output.
        width: n, number of columns of the weight.
    """

    module: nn.Module
    positions: int
    columns: Tensor
    width: int
    _offsets: Tensor  # [live kernel positions] flat offset from an output position's corner
    _corners: Tensor  # [positions] flat index of that corner in the padded input
    _spans: tuple[tuple[int, int], ...] = ()  # (output size, stride) of each dimension

    @staticmethod
    def of(module: nn.Module, input_shape: Sequence[int]) -> Patches:
        """For inputs of ``input_shape``: [N, channels, ...] for convolutions, [N, ..., features] for linear.

        Raises:
            UnsupportedError: the layer is no linear map of its input.
        """
        empty = torch.empty(0, dtype=torch.long)
        if isinstance(module, nn.Linear):
            n = module.in_features
            count = math.prod(input_shape[1:-1])
            every = torch.arange(n)
            return Patches(module=module, positions=count, columns=every, width=n, _offsets=empty, _corners=empty)
        if not isinstance(module, (*_CONVOLUTIONS, *_TRANSPOSED)):
            raise UnsupportedError(f"{type(module).__name__} has no input patches; round it to nearest")
        kernel, dilation = module.kernel_size, module.dilation
        marks = _padded(module, torch.ones(1, 1, *input_shape[2:]))
        sizes = marks.shape[2:]
        stride = module.stride if isinstance(module, _CONVOLUTIONS) else (1,) * len(kernel)
        outputs = [(s - d * (k - 1) - 1) // t + 1 for s, d, k, t in zip(sizes, dilation, kernel, stride, strict=True)]
        steps = [math.prod(sizes[i + 1 :]) for i in range(len(sizes))]
        corners = _flat([range(0, o * t, t) for o, t in zip(outputs, stride, strict=True)], steps)
        offsets = _flat([range(0, k * d, d) for k, d in zip(kernel, dilation, strict=True)], steps)
        if isinstance(module, _TRANSPOSED):
            offsets = offsets.flip(0)  # a transposed convolution meets its kernel mirrored
        met = (marks.flatten()[corners[None, :] + offsets[:, None]] != 0).any(dim=1)
        channels = module.in_channels // module.groups
        taps = len(offsets)
        live = torch.arange(channels)[:, None] * taps + torch.arange(taps)[met][None, :]
        return Patches(
            module=module,
            positions=len(corners),
            columns=live.flatten(),
            width=channels * taps,
            _offsets=offsets[met],
            _corners=corners,
            _spans=tuple(zip(outputs, stride, strict=True)),
        )

    def rows(self, inputs: Tensor, positions: Tensor | None = None) -> Tensor:
        """Input samples [groups, m, N * positions] of inputs [N, ...] (all positions, or those given)."""
        if isinstance(self.module, nn.Linear):
            samples = inputs.reshape(inputs.shape[0], -1, inputs.shape[-1]).permute(2, 0, 1)
            if positions is not None:
                samples = samples[:, :, positions]
            return samples.reshape(1, samples.shape[0], -1)
        padded = _padded(self.module, inputs)
        flat = padded.flatten(2)
        count, channels = padded.shape[:2]
        corners = self._corners if positions is None else self._corners[positions]
        out = padded.new_empty(channels, len(self._offsets), count, len(corners))
        for i, offset in enumerate(self._offsets.tolist()):
            if positions is None:  # the same elements as below, read as strided slices: much faster
                window = (slice(None), slice(None), *self._window(offset, padded.shape[2:]))
                taken = padded[window].flatten(2)
            else:
                taken = flat.gather(2, (corners + offset).expand(count, channels, -1))
            out[:, i] = taken.transpose(0, 1)
        groups = int(getattr(self.module, "groups", 1))
        return out.reshape(groups, channels // groups * len(self._offsets), count * len(corners))

    def _window(self, offset: int, sizes: Sequence[int]) -> list[slice]:
        """Where all output positions find the kernel position at ``offset``, as one slice a dimension."""
        starts: list[int] = []
        for size in reversed(sizes):
            offset, start = divmod(offset, size)
            starts.insert(0, start)
        return [slice(s, s + (count - 1) * t + 1, t) for s, (count, t) in zip(starts, self._spans, strict=True)]


def _flat(ranges: list[range], steps: list[int]) -> Tensor:
    """Flat indices of the product of ``ranges``, the last running fastest."""
    return torch.tensor([sum(map(int.__mul__, index, steps)) for index in itertools.product(*ranges)])


def _padded(module: nn.Module, inputs: Tensor) -> Tensor:
    """``inputs`` [N, C, ...] as the convolution sees them: padded, or spread out where it is transposed."""
    if isinstance(module, _TRANSPOSED):
        spread = [(s - 1) * t + 1 for s, t in zip(inputs.shape[2:], module.stride, strict=True)]
        wide = inputs.new_zeros(*inputs.shape[:2], *spread)
        wide[(slice(None), slice(None), *(slice(None, None, step) for step in module.stride))] = inputs
        assert not isinstance(module.padding, str)
        reach = [d * (k - 1) for k, d in zip(module.kernel_size, module.dilation, strict=True)]
        ends = zip(reach, module.padding, module.output_padding, strict=True)
        return F.pad(wide, [side for r, p, extra in reversed(list(ends)) for side in (r - p, r - p + extra)])
    assert isinstance(module, _CONVOLUTIONS)
    if isinstance(module.padding, str):
        totals = [d * (k - 1) for k, d in zip(module.kernel_size, module.dilation, strict=True)]
        same = module.padding == "same"
        pads = [(t // 2, t - t // 2) if same else (0, 0) for t in totals]
    else:
        pads = [(int(p), int(p)) for p in module.padding]
    flat = [side for pair in reversed(pads) for side in pair]
    if module.padding_mode == "zeros" or not any(flat):
        return F.pad(inputs, flat)
    return F.pad(inputs, flat, mode=module.padding_mode)
