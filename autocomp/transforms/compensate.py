"""Error-compensated rounding: each column's rounding error is made good by the columns not yet rounded.

Minimises ‖(W − Ŵ) X‖² of a layer over its own calibration inputs X. Source: GPTQ (Frantar et al. 2022),
after OBQ (Frantar and Alistarh 2022). Ours works on the factor H = (I + A) D (I + A)ᵀ, A strictly upper
triangular, which needs one Cholesky decomposition and no inverse: column k is rounded from
w_k + Σ_{j<k} (w_j − q_j) A_jk. That this equals GPTQ is theorem 6 of QuIP (Chee et al. 2023).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from autocomp.errors import DataError
from autocomp.transforms.patches import Patches

DAMPING = 0.01
"""Added to the diagonal, as a fraction of its mean (GPTQ's value)."""

_WHOLE_LIMIT = 8192  # columns up to which the Hessian is kept whole (256 MiB in float32)
_BLOCK = 4096  # columns of one block of a larger one
_LAZY = 32  # columns rounded one by one; wider spans are halved, so that nearly all work is matrix products
_CHUNK_VALUES = 1 << 24  # floats of input patches at a time (64 MiB)
_STACK_VALUES = 1 << 26  # weights rounded in one column loop (256 MiB)


@dataclass(frozen=True, kw_only=True, eq=False)
class Hessian:
    """Second moment E[xxᵀ] of the vectors that a layer's weight meets; half the Hessian of its output error.

    Attributes:
        second: float32 blocks on the diagonal, [groups, size, size] each, sizes adding up to m. One
            block up to 8192 columns; beyond, blocks of 4096, and what couples them is left out.
        mean: [groups, m], E[x].
        columns: [m], the weight's columns that inputs really reach (others only ever meet padding).
        width: n, the weight's columns a group.
        samples: number of vectors averaged.
    """

    second: tuple[Tensor, ...]
    mean: Tensor
    columns: Tensor
    width: int
    samples: int

    @property
    def groups(self) -> int:
        """Convolution groups."""
        return self.mean.shape[0]

    @staticmethod
    def of(module: nn.Module, inputs: Iterable[Tensor], *, samples: int | None = None, seed: int = 0) -> Hessian:
        """Of a layer's inputs: tensors [N, ...] as the layer receives them, in any number of batches.

        Args:
            module: convolution (1 to 3 dimensions, transposed, grouped) or linear layer.
            inputs: its inputs, all of one shape but for N.
            samples: at most about so many vectors, by taking a random part of each image's output
                positions; None takes all.
            seed: of that random part.

        Raises:
            DataError: no inputs, or inputs that are not finite.
            UnsupportedError: the layer is no linear map of its input.
        """
        batches = list(inputs)
        if not batches or not sum(len(b) for b in batches):
            raise DataError("no calibration inputs reached the layer; give it at least one image")
        images = sum(len(b) for b in batches)
        moments = Moments(Patches.of(module, batches[0].shape))
        for i, batch in enumerate(batches):
            share = None if samples is None else -(-samples * len(batch) // images)
            for part, positions in sample_chunks(moments.patches, len(batch), share, seed + i):
                moments.add(moments.patches.rows(batch[part].float(), positions))
        return moments.hessian()

    def centred(self) -> Hessian:
        """Covariance in place of the second moment: what counts where the bias is fitted afterwards."""
        blocks, start = [], 0
        for block in self.second:
            mean = self.mean[:, start : start + block.shape[-1]]
            blocks.append(block - mean[:, :, None] * mean[:, None, :])
            start += block.shape[-1]
        return replace(self, second=tuple(blocks))

    def diagonal(self) -> Tensor:
        """E[x²] of every column, [groups, n]; 0 where no input reaches."""
        full = self.mean.new_zeros(self.groups, self.width)
        full[:, self.columns] = torch.cat([b.diagonal(dim1=1, dim2=2) for b in self.second], dim=1)
        return full


class Moments:
    """Running sums of xxᵀ and x over chunks of samples."""

    def __init__(self, patches: Patches) -> None:
        self.patches = patches
        m = len(patches.columns)
        sizes = [m] if m <= _WHOLE_LIMIT else [min(_BLOCK, m - s) for s in range(0, m, _BLOCK)]
        groups = int(getattr(patches.module, "groups", 1))
        self._second = [torch.zeros(groups, size, size) for size in sizes]
        self._sum = torch.zeros(groups, m, dtype=torch.float64)
        self._count = 0

    def add(self, rows: Tensor) -> None:
        """Add samples [groups, m, count]."""
        start = 0
        for block in self._second:
            part = rows[:, start : start + block.shape[-1]]
            block.baddbmm_(part, part.transpose(1, 2))
            start += block.shape[-1]
        self._sum += rows.sum(dim=2)
        self._count += rows.shape[2]

    def hessian(self) -> Hessian:
        """The averages; the sums are given up."""
        second = tuple(block.div_(self._count) for block in self._second)
        if not all(bool(torch.isfinite(b).all()) for b in second):
            raise DataError("the layer's calibration inputs are not finite; check the images and the layers before it")
        mean = (self._sum / self._count).float()
        columns, width = self.patches.columns, self.patches.width
        return Hessian(second=second, mean=mean, columns=columns, width=width, samples=self._count)


def sample_chunks(
    patches: Patches, images: int, samples: int | None, seed: int
) -> Iterator[tuple[slice, Tensor | None]]:
    """Cut ``images`` images into chunks of bounded memory.

    Args:
        patches: of the layer.
        images: how many there are.
        samples: at most about so many vectors of all images; None takes all.
        seed: of the random choice of output positions, another one for each chunk.

    Yields:
        The images of a chunk and the output positions to take of each (None: all).
    """
    take = patches.positions if samples is None else max(1, min(patches.positions, -(-samples // images)))
    generator = torch.Generator().manual_seed(seed)
    values = max(1, len(patches.columns)) * int(getattr(patches.module, "groups", 1)) * max(1, take)
    step = max(1, _CHUNK_VALUES // values)
    for start in range(0, images, step):
        chosen = None
        if take < patches.positions:
            chosen = torch.randperm(patches.positions, generator=generator)[:take].sort().values
        yield slice(start, min(start + step, images)), chosen


def feedback(second: Tensor, damping: float = DAMPING) -> Tensor:
    """A of H = (I + A) D (I + A)ᵀ for each group, strictly upper triangular.

    Args:
        second: [groups, m, m], symmetric positive semidefinite.
        damping: fraction of the mean diagonal added to it; raised tenfold until the decomposition holds.
    """
    size = second.shape[-1]
    mean = second.diagonal(dim1=1, dim2=2).mean(dim=1)
    mean = torch.where(mean > 0, mean, torch.ones_like(mean))
    eye = torch.arange(size)
    while True:
        damped = second.flip(1, 2)
        damped[:, eye, eye] += damping * mean[:, None]
        lower, info = torch.linalg.cholesky_ex(damped)
        if not bool(info.any()):
            break
        damping *= 10
    upper: Tensor = lower.flip(1, 2)
    upper = upper / upper.diagonal(dim1=1, dim2=2)[:, None, :].clone()
    upper[:, eye, eye] = 0
    return upper


def round_columns(
    weights: Tensor,
    back: Tensor,
    scale: Tensor,
    zero: Tensor,
    low: Tensor,
    high: Tensor,
    mask: Tensor | None = None,
) -> Tensor:
    """Symbols of ``weights``, rounded column by column with error feedback.

    Args:
        weights: [groups, m, rows], columns first.
        back: [groups, m, m] from :func:`feedback`.
        scale, zero, low, high: the grid of each row, broadcastable to [groups, rows]; float32.
        mask: bool, the shape of ``weights``: where False the symbol is ``zero``, and the weight that is lost
            so is an error like any other (SparseGPT, Frantar and Alistarh 2023).

    Returns:
        float32 integers [groups, m, rows], such that the value is (symbol − zero) * scale.
    """
    symbols = torch.empty_like(weights)
    errors = torch.empty_like(weights)

    def round_span(target: Tensor, start: int) -> None:
        """Columns ``start`` on, ``target`` [groups, span, rows] holding all feedback from before ``start``."""
        span = target.shape[1]
        if span > _LAZY:
            half = span // 2
            middle, stop = start + half, start + span
            round_span(target[:, :half], start)
            pushed = back[:, start:middle, middle:stop].transpose(1, 2)
            round_span(torch.baddbmm(target[:, half:], pushed, errors[:, start:middle]), middle)
            return
        for i in range(span):
            k = start + i
            column = target[:, i]
            if i:
                column = column + torch.bmm(back[:, start:k, k].unsqueeze(1), errors[:, start:k]).squeeze(1)
            symbol = (column / scale + zero).round_().clamp_(low, high)
            if mask is not None:
                symbol = torch.where(mask[:, k], symbol, zero)
            symbols[:, k] = symbol
            torch.sub(weights[:, k], (symbol - zero) * scale, out=errors[:, k])

    round_span(weights, 0)
    return symbols


def compensated(
    rows: Tensor,
    hessian: Hessian,
    scale: Tensor,
    zero: Tensor,
    low: Tensor,
    high: Tensor,
    *,
    damping: float = DAMPING,
    by_activation: bool = False,
    mask: Tensor | None = None,
) -> Tensor:
    """Symbols of weight rows, error-compensated within each block of the Hessian.

    Columns that no input reaches become zero (as in GPTQ's own code): they cannot change the output
    at this input size and cost next to nothing in the file.

    Args:
        rows: [groups, rows, n] float32.
        hessian: of the layer's inputs.
        scale, zero, low, high: the grid of each row, broadcastable to [groups, rows]; float32.
        damping: see :func:`feedback`.
        by_activation: round the columns with the largest inputs first (GPTQ's "act-order"); off, because on
            ResNet-20 it changed the KL by no more than the noise at 40, 47, 56 and 69 KB.
        mask: bool [groups, rows, n], False where a weight is to be zero (symbol ``zero``); None: nowhere.

    Returns:
        float32 integers [groups, rows, n].
    """
    groups, count, width = rows.shape
    if (groups, width) != (hessian.groups, hessian.width):
        raise ValueError(f"Hessian of {hessian.groups}x{hessian.width} for weight rows of {groups}x{width}")
    full = [t.expand(groups, count) for t in (scale, zero, low, high)]
    symbols = full[1].unsqueeze(2).expand(groups, count, width).contiguous()
    start = 0
    for block in hessian.second:
        columns = hessian.columns[start : start + block.shape[-1]]
        start += block.shape[-1]
        if by_activation:
            # one order for all groups: batched column loops need it
            order = block.diagonal(dim1=1, dim2=2).mean(dim=0).argsort(descending=True, stable=True)
            columns, block = columns[order], block[:, order][:, :, order]
        back = feedback(block, damping)
        step = max(1, _STACK_VALUES // (groups * len(columns)))
        for first in range(0, count, step):
            part = slice(first, first + step)
            weights = rows[:, part][:, :, columns].transpose(1, 2).contiguous()
            kept = None if mask is None else mask[:, part][:, :, columns].transpose(1, 2).contiguous()
            grid_scale, grid_zero, least, most = (t[:, part] for t in full)
            rounded = round_columns(weights, back, grid_scale, grid_zero, least, most, kept)
            symbols[:, part][:, :, columns] = rounded.transpose(1, 2)
    return symbols
