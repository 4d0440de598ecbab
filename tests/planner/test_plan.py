from __future__ import annotations

import dataclasses
import itertools

import numpy as np
import pytest

from autocomp.core.candidate import Candidate
from autocomp.core.steps import Choice
from autocomp.errors import InfeasibleError
from autocomp.planner.plan import plan, reachable, smallest, solve
from autocomp.planner.quadratic import CROSS_WEIGHT, surrogate
from tests.planner.tables import make


def test_reachable_ends_are_candidates() -> None:
    prices, _ = make()
    low, high = reachable(prices)
    assert prices.file_bytes(smallest(prices)) == low
    assert prices.file_bytes(Candidate({})) == high


@pytest.mark.parametrize("execution", ["int8", "float32"])
def test_solutions_keep_the_budget_and_the_bound(execution: str) -> None:
    prices, _ = make()
    low, high = reachable(prices)
    for budget in np.geomspace(low + 1000, high, 12).astype(int).tolist():
        found = solve(prices, budget, execution=execution)
        assert found.file_bytes == prices.file_bytes(found.candidate) <= budget
        assert found.kl == pytest.approx(prices.predicted_kl(found.candidate), rel=1e-4, abs=1e-12)
        assert found.additive_kl >= found.bound - 1e-12
        plain = solve(prices, budget, execution=execution, cross=False)
        assert plain.file_bytes <= budget
        shrunk = surrogate(prices).shrunk(CROSS_WEIGHT)
        losses = [shrunk.loss(shrunk.items(c)) for c in (found.candidate, plain.candidate)]
        assert losses[0] <= losses[1] + 1e-12
        for choice in found.candidate.values():
            assert (choice.get("activations") is not None) == (execution == "int8")
            assert execution == "float32" or execution in choice.kernels


def test_more_bytes_never_plan_a_higher_loss_by_much() -> None:
    prices, _ = make()
    low, high = reachable(prices)
    losses = [solve(prices, int(b), execution="float32").kl for b in np.geomspace(low, high, 15)]
    assert losses[0] > losses[-1] == 0.0
    assert all(b <= a * 1.05 for a, b in itertools.pairwise(losses))


def test_plan_starts_with_the_budget_and_covers_the_range() -> None:
    prices, space = make()
    low, high = reachable(prices)
    budget = int(low * 3)
    starts = plan(prices, space, budget_bytes=budget, count=24)
    sizes = [prices.file_bytes(c) for c in starts]
    assert len({c.id for c in starts}) == len(starts) == 24
    assert all(c in space for c in starts)
    assert starts[0] == solve(prices, budget, execution="int8").candidate
    assert starts[1] == solve(prices, budget, execution="float32").candidate
    assert min(sizes) <= low * 1.02
    ladder = np.sort(sizes)
    inside = ladder[(ladder >= low * 1.05) & (ladder <= high / 4)]
    assert len(inside) >= 14
    assert np.diff(np.log(inside)).max() < 0.5


@pytest.mark.parametrize("count", [1, 3, 7])
def test_plan_gives_no_more_than_asked(count: int) -> None:
    prices, space = make(4)
    assert len(plan(prices, space, budget_bytes=None, count=count)) == count


def test_plan_without_int8() -> None:
    prices, space = make(int8=False)
    starts = plan(prices, space, budget_bytes=None, count=12)
    assert len(starts) == 12
    assert all(c.get("activations") is None for s in starts for c in s.values())


def test_uniform_settings_are_among_the_first() -> None:
    prices, space = make()
    starts = plan(prices, space, budget_bytes=None, count=4)
    assert any(all(getattr(c.get("weights"), "bits", None) == 8 for c in s.values()) and len(s) == 12 for s in starts)


def test_unreachable_budget_names_the_smallest_file() -> None:
    prices, space = make()
    low, _ = reachable(prices)
    with pytest.raises(InfeasibleError, match=str(low)) as caught:
        plan(prices, space, budget_bytes=low - 1, count=4)
    assert caught.value.nearest == {"file_bytes": low}


def test_same_table_same_plan() -> None:
    first = plan(make()[0], make()[1], budget_bytes=None, count=10)
    assert first == plan(make()[0], make()[1], budget_bytes=None, count=10)


def test_a_space_without_float_execution() -> None:
    prices, _ = make()
    only = {
        unit: dataclasses.replace(p, choices=p.choices[1:], bytes=p.bytes[1:], kl=p.kl[1:], delta=p.delta[1:])
        for unit, p in prices.execution.items()
    }
    prices = dataclasses.replace(prices, execution=only)
    low, high = reachable(prices)
    for execution in ("int8", "float32"):
        found = solve(prices, (low + high) // 2, execution=execution).candidate
        assert {found[unit].precision for unit in only} == {"int8"}


def test_int8_needs_integer_weights() -> None:
    prices, _ = make()
    half = prices.storage["layer00"].choices[1]
    assert half.kernels == Choice(()).kernels == ()
