"""Step sizes meant for a refitted network: the budget, smoothness, what stays as it is."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from autocomp.core.candidate import Candidate
from autocomp.core.prices import PriceTable
from autocomp.core.steps import Choice
from autocomp.planner import spacing
from autocomp.planner.plan import reachable, solve
from autocomp.planner.spacing import respaced
from autocomp.transforms.quantize import QuantizeActivations, QuantizeWeights
from tests.planner.tables import make


def steps_of(candidate: Candidate) -> dict[str, float]:
    found = {u: c.get("weights") for u, c in candidate.items()}
    return {u: s.step for u, s in found.items() if isinstance(s, QuantizeWeights) and s.step is not None}


def predicted(prices: PriceTable, steps: dict[str, float]) -> float:
    """Bytes by the table, linear in the logarithm of the step."""
    total = float(prices.fixed_bytes)
    for unit, p in prices.storage.items():
        known = [(c.steps[0].step, b) for c, b in zip(p.choices, p.bytes, strict=True) if c.label().startswith("k")]
        total += float(np.interp(np.log(steps[unit]), *np.log([k for k, _ in known])[None], [b for _, b in known]))
    return total


@pytest.mark.parametrize("place", [0.1, 0.3, 0.5])
def test_new_steps_fill_the_budget(place: float) -> None:
    prices, _ = make(int8=False)
    low = reachable(prices)[0]
    high = solve(prices, 10**9).file_bytes
    budget = int(low + place * (min(high, 8 * low) - low))
    made = respaced(prices, solve(prices, budget).candidate, budget)
    assert made is not None
    steps = steps_of(made)
    changed = [
        u for u in prices.storage if u in steps and getattr(made[u].get("weights"), "granularity", "") == "tensor"
    ]
    assert changed
    rest = sum(
        int(prices.storage[u].bytes[prices.storage[u].index(made[u])]) for u in prices.storage if u not in changed
    )
    part = dataclasses.replace(prices, storage={u: prices.storage[u] for u in changed})
    assert predicted(part, steps) + rest == pytest.approx(budget, rel=0.01)


def test_sensitive_units_get_finer_steps_and_power_nought_one_for_all(monkeypatch: pytest.MonkeyPatch) -> None:
    prices, _ = make(int8=False)
    budget = 3 * reachable(prices)[0]
    start = Candidate({u: Choice((QuantizeWeights(step=0.5),)) for u in prices.storage})
    made = respaced(prices, start, budget)
    assert made is not None
    steps = steps_of(made)
    # the table's KL is quadratic in the step: KL a byte says what the order must be
    order = sorted(steps, key=lambda u: prices.storage[u].kl[-2] / prices.storage[u].bytes[0], reverse=True)
    assert [steps[u] for u in order] == sorted(steps.values())
    assert max(steps.values()) > 1.5 * min(steps.values())
    monkeypatch.setattr(spacing, "TEMPER", 0.0)
    even = respaced(prices, start, budget)
    assert even is not None
    assert len(set(steps_of(even).values())) == 1


def test_other_decisions_stay() -> None:
    prices, _ = make()
    names = list(prices.storage)
    choices = {u: Choice((QuantizeWeights(bits=8), QuantizeActivations())) for u in names}
    choices[names[0]] = Choice()
    choices[names[1]] = Choice((QuantizeWeights(bits=16),))
    start = Candidate(choices)
    budget = int(0.8 * prices.file_bytes(start))
    made = respaced(prices, start, budget)
    assert made is not None
    assert all(made[u] == start[u] for u in names[:2])
    assert all(made[u].get("activations") == QuantizeActivations() for u in names[2:])
    assert set(steps_of(made)) == set(names[2:])
    assert start[names[2]].get("weights") == QuantizeWeights(bits=8)


def test_nothing_to_change_is_none() -> None:
    prices, _ = make(int8=False)
    half = Candidate({u: Choice((QuantizeWeights(bits=16),)) for u in prices.storage})
    assert respaced(prices, half, 10**6) is None
    stepped = Candidate({u: Choice((QuantizeWeights(step=0.5),)) for u in prices.storage})
    assert respaced(prices, stepped, reachable(prices)[0] // 2) is None
