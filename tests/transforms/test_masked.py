"""Masked least squares against solving each row's normal equations."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import autocomp.transforms.compensate as compensate
from autocomp.transforms._masked import SCHEDULES, inverse_diagonal, refit, schedule
from autocomp.transforms.compensate import DAMPING, Hessian


def hessian_of(layer: nn.Module, shape: tuple[int, ...]) -> Hessian:
    inputs = torch.randn(60, *shape, generator=torch.Generator().manual_seed(0))
    return Hessian.of(layer, [(inputs + inputs.roll(1, -1)).relu()])


def damped(block: Tensor) -> Tensor:
    return block.double() + DAMPING * block.double().diagonal().mean() * torch.eye(len(block))


@pytest.mark.parametrize("groups", [1, 2])
def test_refit_solves_the_normal_equations_of_each_row(groups: int) -> None:
    hessian = hessian_of(nn.Conv2d(6, 8, 3, groups=groups), (6, 6, 6))
    generator = torch.Generator().manual_seed(1)
    rows = torch.randn(groups, 8 // groups, 54 // groups, generator=generator)
    kept = torch.rand(rows.shape, generator=generator) > 0.6
    kept[0, 0] = False
    made = refit(rows, rows * kept, kept, hessian, steps=20)
    assert not bool(made[~kept].any())
    for g in range(groups):
        block = damped(hessian.second[0][g])
        for row, stays, got in zip(rows[g].double(), kept[g], made[g], strict=True):
            exact = torch.linalg.solve(block[stays][:, stays], (block @ row)[stays]).float()
            assert torch.allclose(got[stays], exact, atol=1e-2 * float(row.abs().max()))


def test_refit_of_everything_is_the_weight() -> None:
    hessian = hessian_of(nn.Linear(9, 4), (9,))
    rows = torch.randn(1, 4, 9, generator=torch.Generator().manual_seed(2))
    every = torch.ones_like(rows, dtype=torch.bool)
    assert torch.allclose(refit(rows, rows, every, hessian, steps=20), rows)


def test_inverse_diagonal(monkeypatch: pytest.MonkeyPatch) -> None:
    layer = nn.Linear(9, 4)
    whole = hessian_of(layer, (9,))
    expected = torch.linalg.inv(damped(whole.second[0][0])).diagonal().float()
    assert torch.allclose(inverse_diagonal(whole)[0], expected, rtol=1e-3)
    monkeypatch.setattr(compensate, "_WHOLE_LIMIT", 4)
    monkeypatch.setattr(compensate, "_BLOCK", 5)
    blocks = hessian_of(layer, (9,))
    first = torch.linalg.inv(damped(blocks.second[0][0])).diagonal().float()
    assert torch.allclose(inverse_diagonal(blocks)[0, :5], first, rtol=1e-3)


def test_columns_that_no_input_reaches_cost_nothing() -> None:
    hessian = hessian_of(nn.Conv2d(1, 2, 3, padding=1), (1, 1, 1))
    inverse = inverse_diagonal(hessian)[0]
    assert int(torch.isinf(inverse).sum()) == 8
    assert bool(torch.isfinite(inverse[4]))


def empty_hessian(*sizes: int) -> Hessian:
    """Of a linear layer; its blocks take no memory."""
    blocks = tuple(torch.zeros(1).expand(1, size, size) for size in sizes)
    width = sum(sizes)
    return Hessian(second=blocks, mean=torch.zeros(1, width), columns=torch.arange(width), width=width, samples=1)


def test_larger_layers_get_shorter_schedules() -> None:
    assert schedule(empty_hessian(1152), 256) == SCHEDULES[0]
    assert schedule(empty_hessian(4608), 512) == SCHEDULES[1]  # the last convolutions of a ResNet-18
    vgg = schedule(empty_hessian(*[4096] * 6, 512), 4096)  # VGG's first linear layer, 103 million weights
    assert vgg == SCHEDULES[-1]


def test_every_schedule_is_nearer_than_the_next() -> None:
    hessian = hessian_of(nn.Linear(40, 30), (40,))
    rows = torch.randn(1, 30, 40, generator=torch.Generator().manual_seed(3))
    kept = rows.abs() > rows.abs().median()
    errors = []
    for steps in sorted({last for *_, last in SCHEDULES}, reverse=True):
        change = refit(rows, rows * kept, kept, hessian, steps=steps) - rows
        errors.append(float(((change @ hessian.second[0]) * change).sum()))
    assert errors == sorted(errors)
