"""Low-rank decompositions of a layer's weight into the weights of a chain of smaller layers.

Every method gives factors whose chain is again linear: the weight it stands for is ``last @ prefix``, where
``prefix`` is what the factors before the last one make of an input sample. Errors are measured as
‖(W − Ŵ) X‖² on the layer's own inputs where their second moment H is known, else as ‖W − Ŵ‖².

Sources: SVD, Denton et al. 2014, of k x k convolutions Zhang et al. 2015; whitened by the inputs, SVD-LLM
(Wang et al. 2024); spatial, Jaderberg et al. 2014; Tucker-2, Kim et al. 2016; CP, Lebedev et al. 2015.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from autocomp.errors import UnsupportedError
from autocomp.transforms.compensate import DAMPING, Hessian

TIE_BREAK = 1e-8
"""Identity added to H, as a fraction of its mean diagonal: among directions that no calibration input
shows, those where the weight is large are kept."""

RIDGE = 1e-3
"""Pull of a refit towards the factor as it was, as a fraction of the mean energy of that factor's inputs."""

HOOI_ITERATIONS = 20

CP_STARTS = 3  # further ones only where those before degenerate
CP_ITERATIONS = 50
CP_TOLERANCE = 1e-6
CP_RIDGE = 1e-4
"""Penalty on the squared factors of a tensor of norm 1, against components that grow and cancel. On a 64 x 64 x 3 x 3
tensor, 1e-3 raised the squared error by 70 % at a quarter of the weights."""
CP_LIMIT = 10.0
"""Sum of the squared norms of the components beyond which a decomposition of a tensor of norm 1 is called
degenerate: components grow without bound and cancel each other (De Silva and Lim 2008)."""

Shape = tuple[int, ...]


def full_ranks(method: str, shape: Shape) -> Shape:
    """The ranks that a share is taken of, for a weight of ``shape`` [out, in, *kernel]."""
    out, inputs, *kernel = shape
    taps = math.prod(kernel)
    if method == "tucker2":
        return min(inputs, out * taps), min(out, inputs * taps)
    if method == "spatial":
        return (min(inputs * kernel[0], out * kernel[1]),)
    if method == "cp":
        # where the factors hold as many weights as the layer: a tensor's own CP rank cannot be computed
        of_one = sum(math.prod(s) for s in factor_shapes("cp", shape, (1,)))
        return (math.prod(shape) // of_one,)
    return (min(out, inputs * taps),)


def share_ranks(method: str, shape: Shape, share: float) -> Shape:
    """``share`` of :func:`full_ranks`, rounded; 0 where the share is less than half a rank."""
    ranks = tuple(math.floor(share * full + 0.5) for full in full_ranks(method, shape))
    if method == "tucker2":
        taps = math.prod(shape[2:])
        inside, outside = ranks
        return min(inside, outside * taps), min(outside, inside * taps)
    return ranks


def factor_shapes(method: str, shape: Shape, ranks: Shape) -> tuple[Shape, ...]:
    """Shapes of the factors' weights, in order of execution."""
    out, inputs, *kernel = shape
    ones = (1,) * len(kernel)
    rank = ranks[-1]
    if method == "tucker2":
        return (ranks[0], inputs, *ones), (rank, ranks[0], *kernel), (out, rank, *ones)
    if method == "spatial":
        return (rank, inputs, kernel[0], 1), (out, rank, 1, kernel[1])
    if method == "cp":
        depthwise = [(rank, 1, *kernel)]
        if len(kernel) == 2 and min(kernel) > 1:
            depthwise = [(rank, 1, kernel[0], 1), (rank, 1, 1, kernel[1])]
        return (rank, inputs, *ones), *depthwise, (out, rank, *ones)
    return (rank, inputs, *kernel), (out, rank, *ones)


def carriers(method: str, shape: Shape) -> tuple[int, ...]:
    """For each spatial axis, the factor that has the layer's kernel, stride, padding and dilation on it."""
    axes = len(shape) - 2
    if method == "spatial":
        return 0, 1
    if method == "tucker2":
        return (1,) * axes
    if method == "cp":
        return (1, 2) if len(factor_shapes("cp", shape, (1,))) == 4 else (1,) * axes
    return (0,) * axes


def decompose(
    method: str, weight: Tensor, ranks: Shape, *, hessian: Hessian | None, refit_last: bool, seed: int
) -> tuple[Tensor, ...]:
    """The factors' weights, float32, of :func:`factor_shapes`.

    Args:
        method: "svd", "whitened_svd", "tucker2", "cp" or "spatial".
        weight: [out, in, *kernel] float32, finite.
        ranks: of :func:`share_ranks`, at least 1.
        hessian: of the layer's inputs; "svd" uses it for the refit only. None: plain weight errors.
        refit_last: with a Hessian, :func:`refit` the last factor.
        seed: of random starts ("cp").

    Raises:
        UnsupportedError: no decomposition of this rank is stable ("cp").
    """
    shape = tuple(weight.shape)
    if hessian is not None and hessian.width != weight[0].numel():
        raise ValueError(f"Hessian of width {hessian.width} for a weight of shape {shape}")
    shapes = factor_shapes(method, shape, ranks)
    exact = weight.detach().double()
    if not bool(exact.any()):
        return tuple(torch.zeros(s) for s in shapes)
    found: tuple[Tensor, ...]
    if method == "tucker2":
        found = _tucker2(exact, ranks, hessian)
    elif method == "spatial":
        found = _spatial(exact, ranks[0], hessian)
    elif method == "cp":
        found = _cp(exact, ranks[0], hessian, seed)
    else:
        found = _svd(exact, ranks[0], None if method == "svd" else hessian)
    factors = [part.reshape(s) for part, s in zip(found, shapes, strict=True)]
    if refit_last and hessian is not None:
        before = prefix(method, factors[:-1], shape)
        last = refit(factors[-1].flatten(1), before, exact.flatten(1), hessian)
        factors[-1] = last.reshape(shapes[-1])
    return tuple(part.float().contiguous() for part in factors)


def prefix(method: str, factors: list[Tensor], shape: Shape) -> Tensor:
    """The map [m, n] from an input sample to the last factor's input sample; ``factors``: all but the last."""
    inputs, *kernel = shape[1:]
    taps = math.prod(kernel)
    if method == "tucker2":
        first, core = factors[0].flatten(1), factors[1].flatten(2)
        return torch.einsum("ort,rc->oct", core, first).reshape(len(core), -1)
    if method == "spatial":
        return _shifted(factors[0].reshape(-1, inputs * kernel[0]), kernel[1])
    product = factors[0]
    for factor in factors[1:]:
        product = product * factor
    return product.reshape(-1, inputs * taps)


def dense(method: str, factors: tuple[Tensor, ...], shape: Shape) -> Tensor:
    """The weight of ``shape`` that the factors' chain computes with."""
    exact = [part.double() for part in factors]
    return (exact[-1].flatten(1) @ prefix(method, exact[:-1], shape)).reshape(shape).float()


def refit(last: Tensor, before: Tensor, matrix: Tensor, hessian: Hessian) -> Tensor:
    """The last factor by least squares on the layer's inputs, given the ones before it.

    W₂ + (W − W₂ A) H Aᵀ (A H Aᵀ + λI)⁻¹ minimises ‖(W − W₂' A) X‖² + λ‖W₂' − W₂‖², so the error on the inputs
    never rises. It leaves a whitened SVD as it is.

    Args:
        last: W₂, [out, m] float64.
        before: A, [m, n].
        matrix: W, [out, n].
        hessian: H.
    """
    seen = _times(before, hessian)
    gram = seen @ before.T
    energy = float(gram.diagonal().mean())
    if energy <= 0:
        return last
    gram.diagonal().add_(RIDGE * energy)
    residual = (matrix - last @ before) @ seen.T
    step: Tensor = torch.linalg.solve(gram, residual.T).T
    return last + step


def spectrum(weight: Tensor, hessian: Hessian | None) -> Tensor:
    """Squared singular values of W S, H = S Sᵀ, largest first, float64 [min(out, n)].

    What they sum to from k on is the error of the (whitened) SVD of rank k: one decomposition prices all ranks.
    """
    matrix = weight.detach().double().flatten(1)
    if matrix.shape[0] > matrix.shape[1]:
        matrix = torch.linalg.qr(matrix).R
    gram = _times(matrix, hessian) @ matrix.T
    squares: Tensor = torch.linalg.eigvalsh((gram + gram.T) / 2)
    return squares.flip(0).clamp_(min=0)


def _times(rows: Tensor, second: Hessian | Tensor | None) -> Tensor:
    """``rows`` [r, n] float64 times H; columns that no input reaches are 0."""
    if second is None:
        return rows
    if isinstance(second, Tensor):
        return rows @ second
    out = torch.zeros_like(rows)
    start = 0
    for block in second.second:
        columns = second.columns[start : start + block.shape[-1]]
        start += block.shape[-1]
        out[:, columns] = rows[:, columns] @ block[0].double()
    return out


def _leading(matrix: Tensor, second: Hessian | Tensor | None, count: int) -> Tensor:
    """Left singular vectors [rows, count] of W S, H = S Sᵀ: eigenvectors of W H Wᵀ, which needs no S."""
    basis = None
    if matrix.shape[0] > matrix.shape[1]:
        basis, matrix = torch.linalg.qr(matrix)
    gram = _times(matrix, second) @ matrix.T
    if second is not None:
        diagonal = second.diagonal()
        gram += TIE_BREAK * float(diagonal.mean()) * (matrix @ matrix.T)
    vectors: Tensor = torch.linalg.eigh((gram + gram.T) / 2).eigenvectors.flip(1)[:, :count]
    return vectors if basis is None else basis @ vectors


def _marginal(hessian: Hessian, inner: int) -> Tensor:
    """Second moment [n / inner] of the columns' outer index, summed over the inner one that runs fastest."""
    size = hessian.width // inner
    out = torch.zeros(size, size, dtype=torch.float64)
    start = 0
    for block in hessian.second:
        columns = hessian.columns[start : start + block.shape[-1]]
        start += block.shape[-1]
        for i in range(inner):
            chosen = (columns % inner == i).nonzero().flatten()
            outer = columns[chosen] // inner
            out[outer[:, None], outer] += block[0][chosen[:, None], chosen].double()
    return out


def _input_root(hessian: Hessian | None, inputs: int, taps: int) -> Tensor:
    """L [in, in] of L Lᵀ = second moment of the input channels, damped; the identity without a Hessian."""
    if hessian is None:
        return torch.eye(inputs, dtype=torch.float64)
    moment = _marginal(hessian, taps)
    mean = float(moment.diagonal().mean())
    moment.diagonal().add_(DAMPING * mean if mean > 0 else 1.0)
    lower: Tensor = torch.linalg.cholesky(moment)
    return lower


def _shifted(rows: Tensor, taps: int) -> Tensor:
    """``rows`` [r, m] applied at each of ``taps`` positions apart: [r * taps, m * taps]."""
    eye = torch.eye(taps, dtype=rows.dtype)
    return torch.einsum("rc,ts->rtcs", rows, eye).reshape(len(rows) * taps, -1)


def _svd(weight: Tensor, rank: int, hessian: Hessian | None) -> tuple[Tensor, Tensor]:
    """U_k U_kᵀ W, the best of its rank; U_k is orthonormal, so that it does not amplify rounding in between."""
    matrix = weight.flatten(1)
    last = _leading(matrix, hessian, rank)
    return last.T @ matrix, last


def _spatial(weight: Tensor, rank: int, hessian: Hessian | None) -> tuple[Tensor, Tensor]:
    """SVD of the unfolding [(width, out), (in, height)], whitened by the inputs of the vertical factor."""
    out, inputs, height, width = weight.shape
    matrix = weight.permute(3, 0, 1, 2).reshape(width * out, inputs * height)
    left = _leading(matrix, None if hessian is None else _marginal(hessian, width), rank)
    return left.T @ matrix, left.reshape(width, out, rank).permute(1, 2, 0)


def _tucker2(weight: Tensor, ranks: Shape, hessian: Hessian | None) -> tuple[Tensor, Tensor, Tensor]:
    """HOOI on the weight whitened by input channels; with H, core and last factor are then the best there are.

    Given the first factor, the other two are a layer of their own, whose best weight of rank r_out is a
    whitened SVD (reduced-rank regression, Izenman 1975).
    """
    inside, outside = ranks
    tensor = weight.flatten(2)
    taps = tensor.shape[2]
    lower = _input_root(hessian, tensor.shape[1], taps)
    white = torch.einsum("oct,cd->odt", tensor, lower)
    last, basis = _hooi(white, outside, inside)
    first: Tensor = torch.linalg.solve_triangular(lower, basis.T, upper=False, left=False)
    wide = torch.einsum("oct,cr->ort", white, basis).flatten(1)
    if hessian is not None:
        before = _shifted(first, taps)
        wide = refit(wide, before, weight.flatten(1), hessian)
        last = _leading(wide, _times(before, hessian) @ before.T, outside)
    return first, last.T @ wide, last


def _hooi(tensor: Tensor, outside: int, inside: int) -> tuple[Tensor, Tensor]:
    """Orthonormal bases [out, r_out] and [in, r_in] by higher-order orthogonal iteration from HOSVD."""
    from tensorly.decomposition import partial_tucker

    left = _leading(tensor.flatten(1), None, outside)
    right = _leading(tensor.transpose(0, 1).flatten(1), None, inside)
    core = torch.einsum("oct,or,cs->rst", tensor, left, right)
    start = (core.numpy(), [left.contiguous().numpy(), right.contiguous().numpy()])
    (_, bases), _ = partial_tucker(
        tensor.numpy(), rank=[outside, inside], modes=[0, 1], n_iter_max=HOOI_ITERATIONS, init=start, random_state=0
    )
    return torch.from_numpy(bases[0].copy()), torch.from_numpy(bases[1].copy())


def _cp(weight: Tensor, rank: int, hessian: Hessian | None, seed: int) -> tuple[Tensor, ...]:
    """The first of several ALS runs whose components do not cancel, on the weight whitened by input channels."""
    from tensorly.decomposition import parafac

    kernel = weight.shape[2:]
    lower = _input_root(hessian, weight.shape[1], math.prod(kernel))
    white = torch.einsum("oct,cd->odt", weight.flatten(2), lower)
    sizes = kernel if len(kernel) == 2 and min(kernel) > 1 else (math.prod(kernel),)
    norm = float(white.norm())
    tensor = (white / norm).reshape(*white.shape[:2], *sizes)
    energies: list[float] = []
    for attempt in range(CP_STARTS):
        start = [part.numpy() for part in _cp_start(tensor, rank, attempt > 0, seed + attempt)]
        _, found = parafac(
            tensor.numpy(),
            rank,
            n_iter_max=CP_ITERATIONS,
            init=(torch.ones(rank, dtype=torch.float64).numpy(), start),
            tol=CP_TOLERANCE,
            l2_reg=CP_RIDGE,
        )
        modes = [torch.from_numpy(part.copy()) for part in found]
        lengths = torch.stack([part.norm(dim=0).clamp(min=1e-30) for part in modes])
        energies.append(float(lengths.prod(dim=0).square().sum()))
        if energies[-1] <= CP_LIMIT:
            break
    else:
        raise UnsupportedError(
            f"CP of rank {rank} degenerates: components of {min(energies):.3g} times the weight's energy cancel, "
            f"limit {CP_LIMIT:g}; take tucker2 or another rank"
        )
    last, inner, *spatial = (part / length for part, length in zip(modes, lengths, strict=True))
    first: Tensor = torch.linalg.solve_triangular(lower.T, inner, upper=True)
    return first.T, *(factor.T for factor in spatial), last * (lengths.prod(dim=0) * norm)


def _cp_start(tensor: Tensor, rank: int, random: bool, seed: int) -> list[Tensor]:
    """Where ALS starts, [size, rank] a mode: the mode's singular vectors, then random columns; or all random."""
    generator = torch.Generator().manual_seed(seed)
    start = []
    for mode, size in enumerate(tensor.shape):
        columns = torch.randn(size, rank, generator=generator, dtype=torch.float64) / size**0.5
        if not random:
            matrix = tensor.transpose(0, mode).flatten(1)
            count = min(rank, *matrix.shape)
            columns[:, :count] = _leading(matrix, None, count)
        start.append(columns)
    return start
