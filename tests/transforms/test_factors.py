from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from autocomp.errors import UnsupportedError
from autocomp.transforms import _factors
from autocomp.transforms._factors import decompose, dense, factor_shapes, full_ranks, share_ranks, spectrum
from autocomp.transforms.compensate import Hessian

METHODS = ("svd", "whitened_svd", "tucker2", "cp", "spatial")


def weight_of(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def hessian_of(module: nn.Module, *shape: int, seed: int = 1) -> Hessian:
    """Inputs whose channels have unlike energies and are correlated."""
    inputs = weight_of(*shape, seed=seed)
    axis = -1 if isinstance(module, nn.Linear) else 1
    mix = weight_of(inputs.shape[axis], inputs.shape[axis], seed=seed + 1)
    mixed = torch.movedim(torch.movedim(inputs, axis, -1) @ mix, -1, axis)
    return Hessian.of(module, [mixed])


def error(weight: torch.Tensor, other: torch.Tensor, hessian: Hessian | None = None) -> float:
    """‖W − Ŵ‖² or its expectation on the inputs, by the definition."""
    rows = (weight - other).double().flatten(1)
    if hessian is None:
        return float(rows.square().sum())
    rows = rows[:, hessian.columns]
    return float(((rows @ hessian.second[0][0].double()) * rows).sum())


def approximated(method, weight, share, hessian=None, refit=True, seed=0):
    ranks = share_ranks(method, tuple(weight.shape), share)
    factors = decompose(method, weight, ranks, hessian=hessian, refit_last=refit, seed=seed)
    return dense(method, factors, tuple(weight.shape))


@settings(max_examples=25, deadline=None)
@given(st.integers(2, 12), st.integers(2, 12), st.sampled_from([(), (1,), (3,), (2, 3)]), st.integers(0, 99))
def test_svd_error_is_the_tail(out, inputs, kernel, seed):
    """Eckart and Young, at every rank, and the spectrum prices them all."""
    weight = weight_of(out, inputs, *kernel, seed=seed)
    tail = torch.linalg.svdvals(weight.double().flatten(1)).square()
    torch.testing.assert_close(spectrum(weight, None), tail, rtol=1e-6, atol=1e-9)
    for rank in range(1, len(tail)):
        factors = decompose("svd", weight, (rank,), hessian=None, refit_last=True, seed=0)
        found = error(weight, dense("svd", factors, tuple(weight.shape)))
        assert found == pytest.approx(float(tail[rank:].sum()), rel=1e-4, abs=1e-6 * float(tail.sum()))


@settings(max_examples=25, deadline=None)
@given(st.integers(2, 10), st.integers(2, 10), st.integers(0, 99))
def test_whitened_loss_is_the_tail_of_the_whitened_spectrum(out, inputs, seed):
    """SVD-LLM: S = chol(H); the loss is the sum of the discarded squared singular values of W S."""
    weight = weight_of(out, inputs, seed=seed)
    hessian = hessian_of(nn.Linear(inputs, out), 4 * inputs, inputs, seed=seed)
    root = torch.linalg.cholesky(hessian.second[0][0].double() + 1e-9 * torch.eye(inputs))
    tail = torch.linalg.svdvals(weight.double() @ root).square()
    assert len(spectrum(weight, hessian)) == len(tail)
    for rank in range(1, len(tail)):
        plain, whitened = (
            dense(m, decompose(m, weight, (rank,), hessian=hessian, refit_last=False, seed=0), (out, inputs))
            for m in ("svd", "whitened_svd")
        )
        loss = error(weight, whitened, hessian)
        slack = 1e-5 * float(tail.sum())
        assert loss == pytest.approx(float(tail[rank:].sum()), rel=1e-3, abs=slack)
        assert loss == pytest.approx(float(spectrum(weight, hessian)[rank:].sum()), rel=1e-3, abs=slack)
        assert loss <= error(weight, plain, hessian) + slack


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("shape", [(8, 6, 3, 3), (4, 12, 2, 3), (12, 3, 5, 5)])
def test_refit_never_raises_the_error_on_the_inputs(method, shape):
    weight = weight_of(*shape)
    hessian = hessian_of(nn.Conv2d(shape[1], shape[0], shape[2:]), 6, shape[1], 10, 10)
    before = error(weight, approximated(method, weight, 0.4, hessian, refit=False), hessian)
    after = error(weight, approximated(method, weight, 0.4, hessian), hessian)
    assert after <= before * (1 + 1e-4)
    if method in ("whitened_svd", "tucker2"):  # already the best last factor there is
        assert after == pytest.approx(before, rel=1e-3)
    else:
        assert after < before * 0.999


@pytest.mark.parametrize("method", ["tucker2", "cp", "spatial", "whitened_svd"])
def test_knowing_the_inputs_lowers_their_error(method):
    weight = weight_of(10, 8, 3, 3)
    hessian = hessian_of(nn.Conv2d(8, 10, 3), 8, 8, 10, 10)
    blind = approximated(method, weight, 0.5)
    assert error(weight, approximated(method, weight, 0.5, hessian), hessian) < error(weight, blind, hessian)


def exact_weight(method: str, shape: tuple[int, ...], ranks: tuple[int, ...]) -> torch.Tensor:
    """A weight that factors of these ranks can make."""
    shapes = factor_shapes(method, shape, ranks)
    return dense(method, tuple(weight_of(*s, seed=i) for i, s in enumerate(shapes)), shape)


@pytest.mark.parametrize("known", [False, True])
@pytest.mark.parametrize(
    ("method", "shape", "ranks"),
    [
        ("svd", (8, 6, 3, 3), (3,)),
        ("whitened_svd", (12, 5), (2,)),
        ("tucker2", (8, 6, 3, 3), (2, 3)),
        ("tucker2", (8, 6, 3), (3, 2)),
        ("spatial", (8, 6, 3, 5), (4,)),
        ("cp", (8, 6, 3, 3), (2,)),
        ("cp", (8, 6, 5), (2,)),
        ("cp", (8, 6, 1, 3), (2,)),
    ],
)
def test_a_weight_of_low_rank_is_found_again(method, shape, ranks, known):
    weight = exact_weight(method, shape, ranks)
    module = nn.Linear(5, 12) if len(shape) == 2 else (nn.Conv2d if len(shape) == 4 else nn.Conv1d)(6, 8, shape[2:])
    spatial = {2: (40, 5), 3: (8, 6, 12), 4: (4, 6, 9, 9)}[len(shape)]
    hessian = hessian_of(module, *spatial) if known else None
    factors = decompose(method, weight, ranks, hessian=hessian, refit_last=True, seed=0)
    assert tuple(tuple(f.shape) for f in factors) == factor_shapes(method, shape, ranks)
    bound = 1e-3 if method == "cp" else 1e-8  # ALS converges linearly and stops early
    assert error(weight, dense(method, factors, shape)) < bound * float(weight.square().sum())


@pytest.mark.parametrize("method", METHODS)
def test_same_seed_same_factors_and_inputs_untouched(method):
    weight = weight_of(8, 6, 3, 3)
    kept = weight.clone()
    ranks = share_ranks(method, (8, 6, 3, 3), 0.4)
    first, second = (decompose(method, weight, ranks, hessian=None, refit_last=True, seed=3) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert torch.equal(weight, kept)


@pytest.mark.parametrize("method", METHODS)
def test_zero_weight_gives_zero(method):
    assert not approximated(method, torch.zeros(8, 6, 3, 3), 0.4).any()


@pytest.mark.parametrize("method", METHODS)
def test_singular_moments_are_no_trouble(method):
    """Fewer samples than columns, a dead channel, and kernel columns that only ever meet padding."""
    inputs = weight_of(1, 6, 1, 4)
    inputs[:, 2] = 0
    hessian = Hessian.of(nn.Conv2d(6, 8, 3, padding=1), [inputs])
    assert len(hessian.columns) < hessian.width
    found = approximated(method, weight_of(8, 6, 3, 3), 0.5, hessian)
    assert bool(torch.isfinite(found).all())
    assert float(found.abs().max()) < 100


def test_moments_in_blocks_are_used_block_by_block():
    """Larger layers keep blocks on the diagonal; the loss is that of the block-diagonal moment."""
    whole = hessian_of(nn.Conv2d(6, 8, 3), 4, 6, 9, 9)
    block = whole.second[0]
    parts = (block[:, :30, :30].clone(), block[:, 30:, 30:].clone())
    joined = torch.block_diag(parts[0][0], parts[1][0])[None]
    split = Hessian(second=parts, mean=whole.mean, columns=whole.columns, width=54, samples=whole.samples)
    same = Hessian(second=(joined,), mean=whole.mean, columns=whole.columns, width=54, samples=whole.samples)
    weight = weight_of(8, 6, 3, 3)
    for method in METHODS:
        torch.testing.assert_close(
            approximated(method, weight, 0.4, split), approximated(method, weight, 0.4, same), rtol=1e-4, atol=1e-5
        )


def test_cp_of_a_tensor_that_invites_degeneracy_keeps_its_components_small():
    """a⊗a⊗b + a⊗b⊗a + b⊗a⊗a: rank 2 comes as near as one likes, but only with components that grow without bound."""
    a, b = torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0])
    weight = torch.stack([torch.einsum("i,j,k->ijk", *t) for t in ((a, a, b), (a, b, a), (b, a, a))]).sum(0)
    for seed in range(3):
        first, middle, last = decompose("cp", weight, (2,), hessian=None, refit_last=False, seed=seed)
        lengths = first.flatten(1).norm(dim=1) * middle.flatten(1).norm(dim=1) * last.flatten(1).norm(dim=0)
        assert float(lengths.square().sum()) <= _factors.CP_LIMIT * float(weight.square().sum())


def test_degenerate_cp_is_refused(monkeypatch):
    monkeypatch.setattr(_factors, "CP_LIMIT", 0.1)
    with pytest.raises(UnsupportedError, match=r"CP of rank 4 degenerates.*limit 0.1; take tucker2"):
        decompose("cp", weight_of(8, 6, 3, 3), (4,), hessian=None, refit_last=False, seed=0)


def test_full_ranks_by_hand():
    shape = (64, 32, 3, 5)
    assert full_ranks("svd", shape) == full_ranks("whitened_svd", shape) == (64,)
    assert full_ranks("spatial", shape) == (96,)
    assert full_ranks("tucker2", shape) == (32, 64)
    assert full_ranks("cp", shape) == (64 * 32 * 15 // (64 + 32 + 3 + 5),)
    assert full_ranks("cp", (8, 4, 5)) == (8 * 4 * 5 // (8 + 4 + 5),)
    assert share_ranks("tucker2", shape, 0.25) == (8, 16)


def test_wrong_hessian_is_a_mistake_of_the_caller():
    hessian = hessian_of(nn.Linear(5, 3), 10, 5)
    with pytest.raises(ValueError, match="width 5"):
        decompose("svd", weight_of(3, 6), (1,), hessian=hessian, refit_last=False, seed=0)


@settings(deadline=None)
@given(st.integers(1, 40), st.integers(1, 40), st.integers(2, 4), st.integers(2, 4), st.floats(0.05, 0.95))
def test_tucker_ranks_can_be_orthonormal(out, inputs, height, width, share):
    inside, outside = share_ranks("tucker2", (out, inputs, height, width), share)
    taps = math.prod((height, width))
    assert inside <= outside * taps
    assert outside <= inside * taps
