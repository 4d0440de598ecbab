from __future__ import annotations

import numpy as np
import pytest

from autocomp.core.candidate import Candidate
from autocomp.core.steps import Choice
from autocomp.planner.neighbours import REACH, neighbours, propose
from autocomp.planner.plan import reachable, solve
from autocomp.transforms.quantize import QuantizeWeights
from tests.planner.tables import make


def changed(a: Candidate, b: Candidate) -> list[tuple[str, str]]:
    parts = [(u, axis) for u in sorted({*a, *b}) for axis in ("weights", "activations")]
    return [(u, axis) for u, axis in parts if a[u].get(axis) != b[u].get(axis)]


@pytest.mark.parametrize("with_budget", [True, False])
def test_proposals_are_near_new_legal_and_inside_the_budget(with_budget: bool) -> None:
    prices, space = make()
    budget = 3 * reachable(prices)[0]
    base = solve(prices, budget, execution="int8").candidate
    tried = {base.id}
    rng = np.random.default_rng(0)
    limit = budget if with_budget else prices.file_bytes(base)
    for _ in range(100):
        found = propose(prices, space, base, budget_bytes=budget if with_budget else None, rng=rng, tried=tried)
        assert found is not None
        assert found.id not in tried
        assert found in space
        assert prices.file_bytes(found) <= limit
        assert 1 <= len(changed(base, found)) <= 2
        for unit, axis in changed(base, found):
            options = space.units[unit].axes[axis]
            assert abs(options.index(found[unit].get(axis)) - options.index(base[unit].get(axis))) <= REACH
        tried.add(found.id)


def test_neighbours_come_best_first_with_their_predicted_loss() -> None:
    prices, space = make(6)
    base = solve(prices, 3 * reachable(prices)[0], execution="float32").candidate
    found = list(neighbours(prices, space, base, budget_bytes=None))
    losses = [loss for _, loss in found]
    assert losses == sorted(losses)
    assert len({c.id for c, _ in found}) == len(found) > 50
    for candidate, loss in found[:200]:
        assert loss == pytest.approx(prices.predicted_kl(candidate), rel=1e-4, abs=1e-9)


def test_residual_changes_the_order() -> None:
    prices, space = make(6)
    base = solve(prices, 3 * reachable(prices)[0], execution="float32").candidate
    ranked = [c for c, _ in neighbours(prices, space, base, budget_bytes=None)][:20]
    liked = ranked[13].id

    class First(np.random.Generator):
        def geometric(self, p: float, size: object = None) -> int:  # type: ignore[override]
            return 1

    rng = First(np.random.PCG64(0))
    found = propose(
        prices, space, base, budget_bytes=None, rng=rng, tried=set(), residual=lambda c: -100.0 * (c.id == liked)
    )
    assert found is not None
    assert found.id == liked


def test_nothing_left_is_none() -> None:
    prices, space = make(2, int8=False)
    base = Candidate({})
    tried: set[str] = set()
    rng = np.random.default_rng(0)
    while (found := propose(prices, space, base, budget_bytes=None, rng=rng, tried=tried)) is not None:
        tried.add(found.id)
        assert len(tried) < 100
    assert len(tried) == 3 + 3 + 3 * 3


def test_a_base_that_was_never_priced_has_no_neighbours() -> None:
    prices, space = make(2)
    base = Candidate({"layer00": Choice((QuantizeWeights(bits=3),))})
    assert propose(prices, space, base, budget_bytes=None, rng=np.random.default_rng(0), tried=set()) is None
