"""Laws of the planner: budgets are kept, bounds bound, and small cases equal brute force and HiGHS."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autocomp.core.prices import Prices, PriceTable
from autocomp.core.steps import FLOAT, Choice
from autocomp.errors import InfeasibleError
from autocomp.planner.allocate import allocate, lagrangian_sweep, lower_hull, undominated
from autocomp.planner.quadratic import exchanges, refine, surrogate
from autocomp.transforms.quantize import QuantizeWeights

Problem = tuple[list[np.ndarray], list[np.ndarray]]


@st.composite
def problems(draw: st.DrawFn, units: int = 5, choices: int = 4, most: int = 400) -> Problem:
    count = draw(st.integers(1, units))
    costs, loss = [], []
    for _ in range(count):
        n = draw(st.integers(1, choices))
        costs.append(np.array(draw(st.lists(st.integers(0, most), min_size=n, max_size=n)), dtype=np.int64))
        loss.append(np.array(draw(st.lists(st.floats(0, 10, width=32), min_size=n, max_size=n)), dtype=np.float64))
    return costs, loss


def spent(costs: list[np.ndarray], picks: list[int]) -> int:
    return sum(int(c[p]) for c, p in zip(costs, picks, strict=True))


def lost(loss: list[np.ndarray], picks: list[int]) -> float:
    return float(sum(v[p] for v, p in zip(loss, picks, strict=True)))


def brute_force(costs: list[np.ndarray], loss: list[np.ndarray], budget: int) -> float:
    best = np.inf
    for picks in itertools.product(*(range(len(c)) for c in costs)):
        if spent(costs, list(picks)) <= budget:
            best = min(best, lost(loss, list(picks)))
    return best


@given(problems(), st.integers(0, 2000))
@settings(max_examples=150, deadline=None)
def test_allocate_equals_brute_force_where_buckets_resolve_every_byte(problem: Problem, budget: int) -> None:
    costs, loss = problem
    best = brute_force(costs, loss, budget)
    if best == np.inf:
        with pytest.raises(InfeasibleError):
            allocate(costs, loss, budget)
        return
    picks = allocate(costs, loss, budget)
    assert spent(costs, picks) <= budget
    assert lost(loss, picks) == pytest.approx(best, abs=1e-9)


@given(problems(most=10**7), st.integers(0, 3 * 10**7), st.integers(3, 50))
@settings(max_examples=150, deadline=None)
def test_coarse_buckets_never_go_over_budget_and_stay_above_the_bound(
    problem: Problem, budget: int, buckets: int
) -> None:
    costs, loss = problem
    if sum(int(c.min()) for c in costs) > budget:
        return
    picks = allocate(costs, loss, budget, buckets=buckets)
    assert spent(costs, picks) <= budget
    value = lost(loss, picks)
    assert value >= brute_force(costs, loss, budget) - 1e-9
    assert value >= lagrangian_sweep(costs, loss).bound(budget) - 1e-9


@given(problems(), st.integers(0, 2000))
@settings(max_examples=150, deadline=None)
def test_lagrangian_points_are_real_and_their_lines_bound_every_allocation(problem: Problem, budget: int) -> None:
    costs, loss = problem
    front = lagrangian_sweep(costs, loss)
    for total, value, picks in zip(front.bytes, front.loss, front.picks.tolist(), strict=True):
        assert spent(costs, picks) == total
        assert lost(loss, picks) == pytest.approx(float(value), abs=1e-6)
        assert brute_force(costs, loss, int(total)) == pytest.approx(float(value), abs=1e-6)
    assert front.bound(budget) <= brute_force(costs, loss, budget) + 1e-6


@given(problems(units=1, choices=8))
@settings(max_examples=150, deadline=None)
def test_hull_is_undominated_and_convex(problem: Problem) -> None:
    costs, loss = problem[0][0], problem[1][0]
    kept = undominated(costs, loss)
    for i in range(len(costs)):
        assert any(costs[j] <= costs[i] and loss[j] <= loss[i] for j in kept)
    hull = lower_hull(costs, loss)
    slopes = np.diff(loss[hull]) / np.diff(costs[hull])
    assert (slopes < 0).all()
    assert (np.diff(slopes) > 0).all()


@pytest.mark.parametrize("seed", range(4))
def test_allocate_equals_highs(seed: int) -> None:
    optimize = pytest.importorskip("scipy.optimize", reason="scipy is the judge here")
    rng = np.random.default_rng(seed)
    units, choices = 12, 8
    costs = [np.sort(rng.integers(0, 900, choices))[::-1].copy() for _ in range(units)]
    loss = [np.sort(rng.exponential(1.0, choices)) for _ in range(units)]
    budget = sum(int(c.min()) for c in costs) + 3000
    one_hot = np.kron(np.eye(units), np.ones(choices))
    solved = optimize.milp(
        np.concatenate(loss),
        constraints=[
            optimize.LinearConstraint(one_hot, 1, 1),
            optimize.LinearConstraint(np.concatenate(costs)[None, :], -np.inf, budget),
        ],
        integrality=np.ones(units * choices),
        bounds=optimize.Bounds(0, 1),
    )
    picks = allocate(costs, loss, budget)
    assert spent(costs, picks) <= budget
    # HiGHS stops at a relative gap of 1e-4
    assert lost(loss, picks) <= solved.fun * (1 + 1e-9)
    assert lost(loss, picks) >= solved.fun * (1 - 2e-4)


def random_table(rng: np.random.Generator, units: int, choices: int, width: int) -> PriceTable:
    storage = {}
    for u in range(units):
        steps = [Choice((QuantizeWeights(step=0.1 * (i + 1)),)) for i in range(choices - 1)]
        delta = np.concatenate([np.zeros((1, width)), rng.normal(size=(choices - 1, width))]).astype(np.float32)
        delta *= np.linspace(0, 1, choices, dtype=np.float32)[:, None]
        size = np.sort(rng.integers(10, 1000, choices))[::-1].copy()
        kl = 0.5 * (delta.astype(np.float64) ** 2).sum(axis=1)
        storage[f"u{u}"] = Prices(choices=(FLOAT, *steps), bytes=size, kl=kl, delta=delta)
    return PriceTable(storage=storage, execution={}, fixed_bytes=17)


@given(st.integers(0, 10**6))
@settings(max_examples=40, deadline=None)
def test_exchanges_are_priced_as_the_whole_quadratic_says(seed: int) -> None:
    rng = np.random.default_rng(seed)
    table = surrogate(random_table(rng, 4, 4, 6))
    items = table.first[:-1] + rng.integers(0, 4, 4)
    around = exchanges(table, items, allowed=np.ones(len(table.owner), dtype=bool))
    before, size = table.loss(items), table.file_bytes(items)
    for a in range(len(around.singles)):
        for b in [None, *range(a + 1, len(around.singles))]:
            move = around.move(a, b)
            if not np.isfinite(move.loss):
                continue
            changed = items.copy()
            for item in move.items:
                changed[table.owner[item]] = item
            assert move.loss == pytest.approx(table.loss(changed) - before, abs=1e-6)
            assert move.bytes == table.file_bytes(changed) - size


@given(st.integers(0, 10**6))
@settings(max_examples=40, deadline=None)
def test_refine_keeps_the_budget_and_never_worsens(seed: int) -> None:
    rng = np.random.default_rng(seed)
    prices = random_table(rng, 5, 4, 8)
    table = surrogate(prices)
    start = table.first[:-1] + rng.integers(0, 4, 5)
    budget = table.file_bytes(start) + int(rng.integers(0, 300))
    found = refine(prices, start, budget, cross=1.0)
    assert table.file_bytes(found) <= budget
    assert table.loss(found) <= table.loss(start) + 1e-9
    for unit in range(5):  # no single change inside the budget is better
        for item in range(int(table.first[unit]), int(table.first[unit + 1])):
            changed = found.copy()
            changed[unit] = item
            if table.file_bytes(changed) <= budget:
                assert table.loss(changed) >= table.loss(found) - 1e-6
