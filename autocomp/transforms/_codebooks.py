"""A weight on the entries of given codebooks: the nearest entry of each number, the files' rounding included."""

from __future__ import annotations

import torch
from torch import Tensor

from autocomp.core.encodings import CodebookTensor, round_half
from autocomp.transforms.problem import LayerProblem
from autocomp.transforms.weight_step import kept_channels


def on_codebooks(problem: LayerProblem, scale: Tensor, centres: Tensor) -> CodebookTensor:
    """The problem's weight with each number at the nearest entry.

    Args:
        problem: masked weights are already zero.
        scale: [1] or [channels]; entries are in its units.
        centres: [books, entries]; where there is a mask each book holds a zero.

    Returns:
        Books of ascending entries in 16 bit, rounded before anything is assigned.
    """
    books = round_half(centres.float()).sort(dim=1).values
    normal = problem.channels() / scale.reshape(-1, 1)
    kept = kept_channels(problem)
    symbols = torch.empty(normal.shape, dtype=torch.int16)
    rows = len(normal) // len(books)
    for i, book in enumerate(books):
        part = slice(i * rows, (i + 1) * rows)
        found = torch.bucketize(normal[part].contiguous(), (book[1:] + book[:-1]) / 2)
        zero = int(book.abs().argmin())
        symbols[part] = torch.where(kept[part], found, zero).to(torch.int16)
    return CodebookTensor(
        symbols=problem.shaped(symbols),
        codebook=books.unsqueeze(2),
        scale=scale,
        shape=tuple(problem.weight.shape),
        axis=problem.axis,
    )


def padded(centres: Tensor, problem: LayerProblem) -> Tensor:
    """``centres`` [k] with a zero in front where a mask needs one."""
    return centres if problem.mask is None else torch.cat([centres.new_zeros(1), centres])
