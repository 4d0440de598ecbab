"""Compensated rounding against plain GPTQ and against nearest rounding."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import autocomp.transforms.compensate as compensate
from autocomp.errors import DataError
from autocomp.transforms.compensate import Hessian, compensated, feedback


def plain_gptq(weight: Tensor, hessian: Tensor, scale: Tensor, limit: int, damping: float) -> Tensor:
    """Algorithm 1 of Frantar et al. 2022 without blocks: inverse, its upper Cholesky factor, column by column."""
    damped = hessian + damping * hessian.diagonal().mean() * torch.eye(len(hessian), dtype=hessian.dtype)
    factor = torch.linalg.cholesky(torch.linalg.inv(damped), upper=True)
    left, symbols = weight.clone(), torch.zeros_like(weight)
    for k in range(weight.shape[1]):
        symbols[:, k] = (left[:, k] / scale).round().clamp(-limit, limit)
        error = (left[:, k] - symbols[:, k] * scale) / factor[k, k]
        left[:, k:] -= error[:, None] * factor[k, k:][None, :]
    return symbols


def correlated(samples: int, columns: int) -> Tensor:
    generator = torch.Generator().manual_seed(3)
    return torch.randn(samples, columns, generator=generator) @ torch.randn(columns, columns, generator=generator)


@pytest.mark.parametrize("columns", [5, 33, 150])
def test_equals_plain_gptq(columns: int) -> None:
    torch.manual_seed(1)
    layer = nn.Linear(columns, 7).double()
    inputs = correlated(400, columns).double()
    scale = layer.weight.detach().std(dim=1) * 0.7
    second = (inputs.T @ inputs / 400)[None]
    hessian = Hessian(
        second=(second,), mean=inputs.mean(0)[None], columns=torch.arange(columns), width=columns, samples=400
    )
    low, high = torch.tensor([[-4.0]]), torch.tensor([[4.0]])
    rows = layer.weight.detach()[None]
    zero = torch.zeros_like(scale)[None]
    got = compensated(rows, hessian, scale[None], zero, low.double(), high.double())[0]
    expected = plain_gptq(layer.weight.detach(), second[0], scale, 4, compensate.DAMPING)
    assert torch.equal(got, expected)


def test_better_than_nearest_on_its_inputs() -> None:
    torch.manual_seed(2)
    layer = nn.Conv2d(8, 12, 3, padding=1)
    inputs = torch.randn(20, 8, 6, 6).relu()
    hessian = Hessian.of(layer, [inputs[:7], inputs[7:]])
    rows = layer.weight.detach().reshape(1, 12, -1)
    for step in (0.3, 1.0, 2.0):
        scale = (rows.std(dim=2) * step)[0][None]
        limit = torch.full_like(scale, 127.0)
        symbols = compensated(rows, hessian, scale, torch.zeros_like(scale), -limit, limit)
        errors = []
        for candidate in (symbols, (rows / scale[:, :, None]).round()):
            difference = candidate * scale[:, :, None] - rows
            errors.append(float(((difference @ hessian.second[0]) * difference).sum()))
        assert errors[0] < 0.95 * errors[1]


def test_feedback_factor_rebuilds_the_damped_hessian() -> None:
    inputs = correlated(50, 9)
    second = (inputs.T @ inputs / 50)[None]
    upper = feedback(second, 0.01)[0] + torch.eye(9)
    damped = second[0] + 0.01 * second[0].diagonal().mean() * torch.eye(9)
    inverse = torch.linalg.inv(upper)
    diagonal = inverse @ damped @ inverse.T
    assert torch.allclose(diagonal, diagonal.diag().diag(), atol=1e-3 * float(damped.abs().max()))


def test_singular_hessian_is_damped_until_it_holds() -> None:
    vector = torch.randn(1, 64, generator=torch.Generator().manual_seed(0)) * 1e3
    second = (vector.T @ vector)[None] - 0.02 * torch.eye(64) * 1e6  # not even semidefinite
    assert bool(torch.isfinite(feedback(second)).all())
    assert not bool(feedback(torch.zeros(2, 4, 4)).any())


def test_accumulation_equals_unfold(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compensate, "_CHUNK_VALUES", 5000)  # several chunks
    layer = nn.Conv2d(6, 4, 3, padding=1, stride=2, groups=2)
    inputs = torch.randn(11, 6, 9, 9)
    hessian = Hessian.of(layer, [inputs])
    columns = nn.functional.unfold(inputs, 3, padding=1, stride=2).transpose(0, 1).reshape(2, 27, -1)
    assert torch.allclose(hessian.second[0], columns @ columns.transpose(1, 2) / columns.shape[2], atol=1e-5)
    assert torch.allclose(hessian.mean, columns.mean(dim=2), atol=1e-5)
    assert hessian.samples == columns.shape[2]
    centred = hessian.centred().second[0]
    shifted = columns - columns.mean(dim=2, keepdim=True)
    assert torch.allclose(centred, shifted @ shifted.transpose(1, 2) / columns.shape[2], atol=1e-5)


def test_sampling_is_deterministic_and_close() -> None:
    layer = nn.Conv2d(3, 4, 3)
    inputs = torch.randn(40, 3, 12, 12, generator=torch.Generator().manual_seed(0))
    all_of_it = Hessian.of(layer, [inputs])
    some, again = (Hessian.of(layer, [inputs], samples=1000, seed=5) for _ in range(2))
    assert some.samples == 1000
    assert torch.equal(some.second[0], again.second[0])
    # 1000 samples of unit variance: each entry has a deviation of at most sqrt(2 / 1000); 6 sigma
    assert float((some.second[0] - all_of_it.second[0]).abs().max()) < 6 * (2 / 1000) ** 0.5


def test_large_hessian_falls_back_to_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    layer = nn.Linear(20, 3)
    inputs = correlated(100, 20)
    whole = Hessian.of(layer, [inputs])
    monkeypatch.setattr(compensate, "_WHOLE_LIMIT", 16)
    monkeypatch.setattr(compensate, "_BLOCK", 8)
    blocks = Hessian.of(layer, [inputs])
    assert [b.shape[-1] for b in blocks.second] == [8, 8, 4]
    assert torch.allclose(blocks.second[1][0], whole.second[0][0, 8:16, 8:16], rtol=1e-4)
    assert torch.allclose(blocks.diagonal(), whole.diagonal(), rtol=1e-4)
    scale = torch.full((1, 3), 0.05)
    limit = torch.full_like(scale, 127.0)
    rows = layer.weight.detach()[None]
    symbols = compensated(rows, blocks, scale, torch.zeros_like(scale), -limit, limit)
    alone = Hessian(second=blocks.second[1:2], mean=blocks.mean[:, 8:16], columns=torch.arange(8), width=8, samples=100)
    part = compensated(rows[:, :, 8:16], alone, scale, torch.zeros_like(scale), -limit, limit)
    assert torch.equal(symbols[:, :, 8:16], part)


def test_activation_order_rounds_all_columns() -> None:
    inputs = correlated(200, 30)
    hessian = Hessian.of(nn.Linear(30, 4), [inputs])
    rows = torch.randn(1, 4, 30)
    scale, limit = torch.full((1, 4), 0.5), torch.full((1, 4), 127.0)
    symbols = compensated(rows, hessian, scale, torch.zeros(1, 4), -limit, limit, by_activation=True)
    difference = symbols * 0.5 - rows
    nearest = (rows / 0.5).round() * 0.5 - rows
    assert ((difference @ hessian.second[0]) * difference).sum() < ((nearest @ hessian.second[0]) * nearest).sum()


def test_bad_inputs() -> None:
    with pytest.raises(DataError, match="at least one image"):
        Hessian.of(nn.Linear(3, 2), [])
    with pytest.raises(DataError, match="not finite"):
        Hessian.of(nn.Linear(3, 2), [torch.full((4, 3), float("nan"))])


def masked_case() -> tuple[Hessian, Tensor, Tensor, Tensor]:
    """(Hessian, rows, mask, fine scale) of a layer whose smaller half is to be zero."""
    torch.manual_seed(4)
    layer = nn.Linear(150, 7)
    hessian = Hessian.of(layer, [correlated(400, 150)])
    rows = layer.weight.detach()[None]
    mask = rows.abs() > rows.abs().median()
    return hessian, rows, mask, rows.std(dim=2) * 0.05


@pytest.mark.parametrize("by_activation", [False, True])
def test_masked_weights_are_exactly_zero(by_activation: bool) -> None:
    hessian, rows, mask, scale = masked_case()
    zero, limit = torch.tensor([[3.0]]), torch.tensor([[90.0]])
    symbols = compensated(rows, hessian, scale, zero, -limit, limit, mask=mask, by_activation=by_activation)
    assert bool((symbols[~mask] == 3).all())
    everything = compensated(rows, hessian, scale, zero, -limit, limit, by_activation=by_activation)
    same = torch.ones_like(mask)
    assert torch.equal(
        compensated(rows, hessian, scale, zero, -limit, limit, mask=same, by_activation=by_activation), everything
    )


def test_what_a_mask_removes_is_made_good() -> None:
    hessian, rows, mask, scale = masked_case()
    zero, limit = torch.tensor([[0.0]]), torch.tensor([[127.0]])
    fed_back = compensated(rows, hessian, scale, zero, -limit, limit, mask=mask)
    plain = compensated(rows * mask, hessian, scale, zero, -limit, limit, mask=mask)
    errors = []
    for symbols in (fed_back, plain):
        difference = symbols * scale[:, :, None] - rows
        errors.append(float(((difference @ hessian.second[0]) * difference).sum()))
    assert errors[0] < 0.95 * errors[1]
