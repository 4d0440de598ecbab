"""Structures worth a try: which channels to remove and which layers to factorise, from mild to strong."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import numpy as np

from autocomp.core.candidate import Candidate
from autocomp.core.prices import PriceTable, StructurePrices
from autocomp.core.space import unit_and_axis
from autocomp.core.steps import Choice

UNCHANGED = Candidate({})
"""Every layer as it is."""


def structures(prices: PriceTable, *, count: int) -> list[Candidate]:
    """Structures along the trade of predicted loss against multiply-accumulates, the mildest first.

    Each decision takes the choice that minimises KL + λ · MACs for one λ; λ runs over the values at which a
    decision changes, so the structures lie on the convex hull of the additive model. UNCHANGED is not among
    them.

    Args:
        prices: the table.
        count: at most so many, spread over the hull.
    """
    if not prices.structure or count < 1:
        return []
    rates = sorted({rate for p in prices.structure.values() for rate in _rates(prices, p) if rate > 0})
    found: dict[str, Candidate] = {}
    for rate in rates:
        candidate = _at(prices, rate * (1 + 1e-9))
        if len(candidate):
            found.setdefault(candidate.id, candidate)
    hull = list(found.values())
    if len(hull) <= count:
        return hull
    macs = np.array([sum(prices.remaining_macs(c).values()) for c in hull], dtype=np.float64)
    wanted = np.linspace(macs.max(), macs.min(), count + 1)[1:]
    picks = dict.fromkeys(int(np.abs(macs - w).argmin()) for w in wanted)
    return [hull[i] for i in sorted(picks, key=lambda i: -macs[i])]


def smallest_structure(prices: PriceTable) -> Candidate:
    """Every decision at the choice that leaves the fewest bytes of float32 weights."""

    def left(decision: StructurePrices) -> np.ndarray:
        total = np.zeros(len(decision.choices))
        for changed, shares in decision.shares.items():
            total += float(prices.storage[changed].bytes.max()) * np.asarray(shares, dtype=np.float64)
        return total

    return _each_at_its_least(prices, left)


def saved_macs(prices: PriceTable, decision: StructurePrices) -> np.ndarray:
    """float64 [choices]: multiply-accumulates that each choice of one decision saves, made alone."""
    saved = np.zeros(len(decision.choices))
    for unit, shares in decision.shares.items():
        saved += prices.macs.get(unit, 0) * (1.0 - np.asarray(shares, dtype=np.float64))
    return saved


def _rates(prices: PriceTable, decision: StructurePrices) -> list[float]:
    """λ at which the decision moves on along its lower hull: nats a multiply-accumulate."""
    saved, loss = saved_macs(prices, decision), decision.kl
    rates: list[float] = []
    at = 0
    while True:
        better = [i for i in range(len(saved)) if saved[i] > saved[at] and np.isfinite(loss[i])]
        if not better:
            return rates
        slope = {i: max(0.0, float(loss[i] - loss[at])) / float(saved[i] - saved[at]) for i in better}
        at = min(better, key=lambda i: (slope[i], -saved[i]))
        rates.append(max(slope[at], 1e-30))


def _at(prices: PriceTable, rate: float) -> Candidate:
    """Every decision at its minimum of KL - λ · MACs saved."""
    return _each_at_its_least(
        prices, lambda d: np.where(np.isfinite(d.kl), d.kl, np.inf) - rate * saved_macs(prices, d)
    )


def _each_at_its_least(prices: PriceTable, cost: Callable[[StructurePrices], np.ndarray]) -> Candidate:
    """The candidate that takes, in every decision, the choice of least cost [choices]."""
    picks: dict[str, Choice] = {}
    for name, decision in prices.structure.items():
        unit, _ = unit_and_axis(name)
        chosen = decision.choices[int(cost(decision).argmin())]
        picks[unit] = Choice((*picks.get(unit, Choice()).steps, *chosen.steps))
    return Candidate(picks)


def structure_moves(prices: PriceTable, base: Candidate) -> list[Candidate]:
    """Structures one decision away from ``base``'s, the most promising first.

    Steps that save multiply-accumulates come by rising loss a multiply-accumulate saved; steps back come by the
    loss they take away a multiply-accumulate, and the two lists take turns. None where ``base`` was never priced
    (a decomposition without a stable solution, say).

    Args:
        prices: the table.
        base: only its structure counts.
    """
    structure = base.structure()
    try:
        at = {n: _place(d, n, structure) for n, d in prices.structure.items()}
    except KeyError:
        return []
    onward: list[tuple[float, Candidate]] = []
    back: list[tuple[float, Candidate]] = []
    for name, decision in prices.structure.items():
        unit, axis = unit_and_axis(name)
        now = at[name]
        saved, loss = saved_macs(prices, decision), decision.kl
        for step in (now - 1, now + 1):
            if not 0 <= step < len(decision.choices):
                continue
            changed = structure.replace(
                {unit: Choice((*structure[unit].without(axis).steps, *decision.choices[step].steps))}
            )
            macs, nats = float(saved[step] - saved[now]), float(loss[step] - loss[now])
            (onward if macs > 0 else back).append((nats / max(1.0, abs(macs)), changed))
    lists = [[c for _, c in sorted(side, key=lambda pair: (pair[0], pair[1].id))] for side in (onward, back)]
    both = itertools.zip_longest(*lists)
    return [c for pair in both for c in pair if c is not None]


def _place(decision: StructurePrices, name: str, candidate: Candidate) -> int:
    """Position of the choice that ``candidate`` makes in "<unit>:<axis>"; KeyError where it was never priced."""
    unit, axis = unit_and_axis(name)
    return decision.index(candidate[unit].only(axis))
