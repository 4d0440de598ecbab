"""How much of a weight is signal: the rank that empirical variational Bayesian matrix factorisation keeps.

Source: Nakajima, Sugiyama, Babacan and Tomioka, "Global analytic solution of fully-observed variational
Bayesian matrix factorization", JMLR 14, 2013, theorem 2 and corollary 1.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from autocomp.errors import DataError

_THRESHOLD = 2.5129  # root of ln(1 + z) / z = 1/2: what survives in the limit of a square matrix
_GRID = 400  # noise levels tried between the bounds, and again around the best of them


def suggested_rank(weight: Tensor) -> float:
    """The share of a weight's full rank that stands out from noise of a variance estimated from the weight.

    A seed for a search, not a promise of accuracy: it knows nothing of the layer's inputs.

    Args:
        weight: [out, in, *kernel], taken as the matrix [out, in * kernel].

    Returns:
        rank / min(out, n) in (0, 1]: at least one rank, and 1 where all of it is signal.

    Raises:
        DataError: the weight is not finite.
    """
    matrix = weight.detach().double().flatten(1)
    if not bool(torch.isfinite(matrix).all()):
        raise DataError("weights are not finite (NaN or infinity); mend the checkpoint")
    if matrix.shape[0] > matrix.shape[1]:
        matrix = matrix.T
    squares = torch.linalg.svdvals(matrix).square()
    return max(1, evbmf_rank(squares, matrix.shape[1])) / len(squares)


def evbmf_rank(squares: Tensor, longer: int) -> int:
    """Number of singular values that survive.

    Args:
        squares: squared singular values, all L of them, largest first, float64.
        longer: M ≥ L, the matrix's longer side.
    """
    if not bool(squares.any()):
        return 0
    ratio = len(squares) / longer
    tau = _THRESHOLD * math.sqrt(ratio)
    edge = (1 + tau) * (1 + ratio / tau)
    # exactly zero singular values would make the free energy infinite at every noise level
    squares = squares.clamp(min=float(squares[0]) * 1e-12)
    low, high = _bounds(squares, longer, edge)
    for _ in range(2):
        grid = torch.logspace(math.log10(low), math.log10(high), _GRID, dtype=torch.float64)
        best = int(_free_energy(grid, squares, longer, edge).argmin())
        low, high = float(grid[max(best - 1, 0)]), float(grid[min(best + 1, _GRID - 1)])
    noise = float(grid[best])
    return int((squares > longer * noise * edge).sum())


def _bounds(squares: Tensor, longer: int, edge: float) -> tuple[float, float]:
    """Between which the noise variance lies: all is noise, or as much is signal as can be."""
    count = len(squares)
    high = float(squares.sum()) / (count * longer)
    most = max(0, min(math.ceil(count / (1 + count / longer)) - 1, count - 1))
    tail = squares[most:]
    low = max(float(tail[0]) / (longer * edge), float(tail.mean()) / longer)
    return min(low, high), high


def _free_energy(noise: Tensor, squares: Tensor, longer: int, edge: float) -> Tensor:
    """The free energy, up to constants, at each noise variance of ``noise`` [k]."""
    ratio = len(squares) / longer
    x = squares[None, :] / (longer * noise[:, None])
    kept = x > edge
    safe = torch.where(kept, x, torch.full_like(x, edge))
    centre = safe - (1 + ratio)
    tau = (centre + (centre.square() - 4 * ratio).clamp(min=0).sqrt()) / 2
    signal = safe - tau + torch.log((tau + 1) / safe) + ratio * torch.log(tau / ratio + 1)
    return torch.where(kept, signal, x - torch.log(x)).sum(dim=1)
