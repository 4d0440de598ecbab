"""Rate-aware rounding: what it saves at equal error, its limits, and agreement with a plain loop."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from autocomp.coding.coders import range_coder
from autocomp.errors import ConfigError
from autocomp.transforms.compensate import Hessian, compensated
from autocomp.transforms.rate import rate_aware


def problem(rows: int = 48, columns: int = 72, groups: int = 1, seed: int = 0) -> tuple[Tensor, Hessian]:
    """Gaussian rows and correlated inputs, in two blocks of columns where there is one group."""
    generator = torch.Generator().manual_seed(seed)
    mix = torch.randn(groups, columns, columns, generator=generator) * 0.2 + torch.eye(columns)
    inputs = mix @ torch.randn(groups, columns, 2000, generator=generator)
    second = inputs @ inputs.transpose(1, 2) / 2000
    cut = columns // 2 if groups == 1 else columns
    blocks = tuple(second[:, s:e, s:e].contiguous() for s, e in ((0, cut), (cut, columns)) if e > s)
    hessian = Hessian(
        second=blocks, mean=inputs.mean(dim=2), columns=torch.arange(columns), width=columns, samples=2000
    )
    return torch.randn(groups, rows, columns, generator=generator), hessian


def grid(step: float, groups: int = 1, rows: int = 48) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return tuple(torch.full((groups, rows), v) for v in (step, 0.0, -127.0, 127.0))  # type: ignore[return-value]


def error(rows: Tensor, symbols: Tensor, hessian: Hessian, scale: Tensor) -> float:
    lost = rows - symbols * scale[:, :, None]
    start, total = 0, 0.0
    for block in hessian.second:
        part = lost[:, :, start : start + block.shape[-1]]
        total += float(((part @ block) * part).sum())
        start += block.shape[-1]
    return total


def size(symbols: Tensor) -> int:
    return len(range_coder.encode(symbols[0].int().numpy()))


def test_strength_zero_is_compensated_rounding() -> None:
    rows, hessian = problem()
    assert torch.equal(rate_aware(rows, hessian, *grid(0.8), strength=0), compensated(rows, hessian, *grid(0.8)))


def test_fewer_bytes_at_the_same_error_than_a_wider_step() -> None:
    rows, hessian = problem(rows=256)
    fine = grid(1.2, rows=256)
    ours = rate_aware(rows, hessian, *fine)
    found = error(rows, ours, hessian, fine[0])
    wider = grid(1.2, rows=256)
    while error(rows, plain := compensated(rows, hessian, *wider), hessian, wider[0]) < found:
        wider = grid(float(wider[0][0, 0]) * 1.01, rows=256)
    assert size(ours) < 0.99 * size(plain)


def test_bytes_fall_and_error_grows_with_the_strength() -> None:
    rows, hessian = problem()
    tried = [rate_aware(rows, hessian, *grid(0.6), strength=s) for s in (0, 0.5, 2, 8)]
    sizes, errors = [size(t) for t in tried], [error(rows, t, hessian, grid(0.6)[0]) for t in tried]
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[-1] < sizes[0]
    assert errors == sorted(errors)


def test_equals_a_plain_loop() -> None:
    rows, hessian = problem(rows=6, columns=40)
    hessian = Hessian(
        second=(torch.block_diag(*(b[0] for b in hessian.second))[None],),
        mean=hessian.mean,
        columns=hessian.columns,
        width=40,
        samples=2000,
    )
    step, damping = 0.7, 0.01
    ours = rate_aware(rows, hessian, *grid(step, rows=6), sweeps=1)
    full = hessian.second[0][0].double()
    full = full + damping * full.diagonal().mean() * torch.eye(40)
    lower = torch.linalg.cholesky(full.flip(0, 1)).flip(0, 1)
    pivots, factor = lower.diagonal() ** 2, lower / lower.diagonal()
    before = compensated(rows, hessian, *grid(step, rows=6))
    values, counts = before.unique(return_counts=True)
    total = before.numel() + 0.5 * (float(values.max() - values.min()) + 3)
    known = {float(v): float(c) for v, c in zip(values, counts, strict=True)}
    weight = 0.6931471805599453 / 6 * step**2 * float(pivots.log().mean().exp())
    for row, found in zip(rows[0].double(), ours[0], strict=True):
        lost = torch.zeros(40, dtype=torch.float64)
        for k in range(40):
            exact = float(row[k] + factor[:k, k] @ lost[:k]) / step
            nearest = float(torch.tensor(exact).round())
            best = min(
                (nearest, nearest - (nearest > 0) + (nearest < 0), 0.0),
                key=lambda c: (
                    (c - exact) ** 2 * step**2 * pivots[k] / weight
                    - torch.tensor((known.get(c, 0) + 0.5) / total).log2()
                ),
            )
            assert best == found[k]
            lost[k] = row[k] - best * step


def test_groups_zero_points_limits_and_masks_hold() -> None:
    rows, hessian = problem(rows=10, columns=20, groups=3)
    mask = torch.rand(rows.shape, generator=torch.Generator().manual_seed(1)) > 0.3
    zero = torch.tensor(2.0)
    symbols = rate_aware(rows, hessian, torch.tensor(0.5), zero, torch.tensor(-1.0), torch.tensor(4.0), mask=mask)
    assert symbols.shape == rows.shape
    assert -1 <= float(symbols.min()) <= float(symbols.max()) <= 4
    assert torch.equal(symbols, symbols.round())
    assert bool((symbols[~mask] == 2).all())


def test_columns_that_no_input_reaches_become_zero() -> None:
    rows, hessian = problem(rows=5, columns=20)
    wide = torch.cat([rows, torch.ones(1, 5, 3)], dim=2)
    unreached = Hessian(second=hessian.second, mean=hessian.mean, columns=hessian.columns, width=23, samples=2000)
    symbols = rate_aware(wide, unreached, *grid(0.5, rows=5))
    assert not symbols[:, :, 20:].any()
    assert torch.equal(symbols[:, :, :20], rate_aware(rows, hessian, *grid(0.5, rows=5)))


@pytest.mark.parametrize("settings", [{"strength": -1.0}, {"strength": float("inf")}, {"sweeps": 0}])
def test_bad_settings_are_refused(settings: dict[str, float]) -> None:
    rows, hessian = problem(rows=2, columns=4)
    with pytest.raises(ConfigError, match="rate_aware"):
        rate_aware(rows, hessian, *grid(0.5, rows=2), **settings)  # type: ignore[arg-type]
