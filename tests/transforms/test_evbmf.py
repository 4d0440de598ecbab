from __future__ import annotations

import pytest
import torch

from autocomp.errors import DataError
from autocomp.transforms._evbmf import evbmf_rank, suggested_rank


def noisy(out: int, inputs: int, rank: int, noise: float, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    signal = torch.randn(out, rank, generator=generator) @ torch.randn(rank, inputs, generator=generator)
    return signal + noise * torch.randn(out, inputs, generator=generator)


@pytest.mark.parametrize("shape", [(30, 80), (80, 30), (50, 50)])
@pytest.mark.parametrize("rank", [1, 4, 9])
def test_finds_the_rank_under_noise(shape, rank):
    """Signal singular values are at least three times the largest of the noise."""
    assert suggested_rank(noisy(*shape, rank, 0.3)) == rank / min(shape)


def test_noise_alone_is_one_rank_at_most():
    for seed in range(5):
        assert suggested_rank(noisy(40, 60, 1, 1.0, seed) - noisy(40, 60, 1, 0.0, seed)) <= 1 / 40


def test_does_not_depend_on_scale_or_kernel_axes():
    weight = noisy(16, 36, 3, 0.2)
    assert suggested_rank(weight * 1e-3) == suggested_rank(weight.reshape(16, 4, 3, 3)) == 3 / 16


def test_more_noise_hides_more():
    shares = [suggested_rank(noisy(40, 60, 12, noise)) for noise in (0.1, 3.0, 30.0)]
    assert shares[0] == 12 / 40
    assert shares == sorted(shares, reverse=True)
    assert shares[2] < shares[0]


def test_exact_low_rank_and_zero():
    assert suggested_rank(noisy(20, 30, 5, 0.0)) == 5 / 20
    assert evbmf_rank(torch.zeros(4, dtype=torch.float64), 9) == 0
    assert suggested_rank(torch.zeros(4, 9)) == 1 / 4


def test_refuses_what_is_not_finite():
    with pytest.raises(DataError, match="not finite"):
        suggested_rank(torch.tensor([[1.0, float("nan")]]))
