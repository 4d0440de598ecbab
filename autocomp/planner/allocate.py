"""Multiple-choice knapsack: one choice a unit, least loss, at most so many bytes.

Everything here is additive over units; :mod:`autocomp.planner.quadratic` adds the cross terms.
Costs are integers (bytes), losses are floats (nats).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from autocomp.errors import InfeasibleError

IntArray = NDArray[np.int64]
FloatArray = NDArray[np.float64]


def undominated(costs: IntArray, loss: FloatArray) -> IntArray:
    """Indices of choices that no other choice beats in cost and loss, by rising cost.

    Args:
        costs: int64 [choices], bytes.
        loss: float64 [choices].
    """
    order = np.lexsort((loss, costs))
    best = np.minimum.accumulate(np.concatenate(([np.inf], loss[order][:-1])))
    return np.asarray(order[loss[order] < best], dtype=np.int64)


def lower_hull(costs: IntArray, loss: FloatArray) -> IntArray:
    """Indices of the choices on the lower convex hull of (cost, loss), by rising cost and falling loss."""
    hull: list[int] = []
    for i in undominated(costs, loss).tolist():
        while len(hull) >= 2:
            a, b = hull[-2], hull[-1]
            # b stays only while it lies strictly below the segment from a to i
            if (loss[b] - loss[a]) * float(costs[i] - costs[a]) < (loss[i] - loss[a]) * float(costs[b] - costs[a]):
                break
            hull.pop()
        hull.append(i)
    return np.asarray(hull, dtype=np.int64)


def allocate(costs: Sequence[IntArray], loss: Sequence[FloatArray], budget: int, *, buckets: int = 10_000) -> list[int]:
    """Exact multiple-choice knapsack by dynamic programming over cost buckets.

    Costs above each unit's cheapest choice are rounded *up* to whole buckets, so the answer never
    exceeds the budget (SPDY, Frantar and Alistarh 2022, rounds to nearest and can). Where the slack
    over the cheapest setting has at most ``buckets`` bytes the answer is the optimum; else it is at
    most one bucket a unit away, and the slack that rounding left is filled greedily afterwards.

    Args:
        costs: one int64 [choices] array a unit, bytes.
        loss: one float64 [choices] array a unit.
        budget: most bytes all units together may take.
        buckets: resolution.

    Returns:
        One choice index a unit.

    Raises:
        InfeasibleError: even the cheapest choices exceed ``budget``.
    """
    least = [int(c.min()) for c in costs]
    slack = int(budget) - sum(least)
    if slack < 0:
        message = f"the smallest setting of all units takes {sum(least)} bytes, the budget leaves {budget}"
        raise InfeasibleError(message, {"file_bytes": float(sum(least))})
    size = max(1, -(-slack // buckets))
    capacity = slack // size
    kept = [undominated(c, v) for c, v in zip(costs, loss, strict=True)]
    best = np.zeros(capacity + 1)
    taken = np.zeros((len(costs), capacity + 1), dtype=np.int16)
    for unit, options in enumerate(kept):
        best, taken[unit] = _add_unit(best, -(-(costs[unit][options] - least[unit]) // size), loss[unit][options])
    picks = [0] * len(costs)
    room = capacity
    for unit in range(len(costs) - 1, -1, -1):
        option = int(kept[unit][taken[unit, room]])
        picks[unit] = option
        room -= int(-(-(costs[unit][option] - least[unit]) // size))
    return _fill(costs, loss, picks, int(budget)) if size > 1 else picks


def _add_unit(best: FloatArray, weights: IntArray, loss: FloatArray) -> tuple[FloatArray, NDArray[np.int16]]:
    """One stage of the recursion: ``best[b]`` is the least loss of the units so far within b buckets."""
    out = np.full_like(best, np.inf)
    taken = np.zeros(len(best), dtype=np.int16)
    for i, weight in enumerate(weights.tolist()):
        if weight >= len(best):
            break
        value = best[: len(best) - weight] + loss[i]
        better = value < out[weight:]
        out[weight:][better] = value[better]
        taken[weight:][better] = i
    return out, taken


def _fill(costs: Sequence[IntArray], loss: Sequence[FloatArray], picks: list[int], budget: int) -> list[int]:
    """Spend the slack on the single changes that lower the loss most, while any fits."""
    picks = list(picks)
    spent = sum(int(c[p]) for c, p in zip(costs, picks, strict=True))
    while True:
        best = (0.0, -1, -1)
        for unit, (c, v) in enumerate(zip(costs, loss, strict=True)):
            gain = np.where(c - c[picks[unit]] <= budget - spent, v[picks[unit]] - v, -np.inf)
            option = int(gain.argmax())
            best = max(best, (float(gain[option]), unit, option))
        gain_of_best, unit, option = best
        if gain_of_best <= 0.0:
            return picks
        spent += int(costs[unit][option] - costs[unit][picks[unit]])
        picks[unit] = option


@dataclass(frozen=True, kw_only=True, eq=False)
class LagrangianFront:
    """Every minimiser of loss + λ·bytes, from the cheapest setting (λ → ∞) to the best (λ = 0).

    Attributes:
        bytes: int64 [points], rising.
        loss: float64 [points], falling.
        picks: int64 [points, units].
    """

    bytes: IntArray
    loss: FloatArray
    picks: IntArray

    def bound(self, budget: int) -> float:
        """Dual bound: no allocation within ``budget`` bytes has a lower loss; inf where none exists.

        It is the linear relaxation of the knapsack: the front's points joined by straight lines.
        """
        if budget < self.bytes[0]:
            return float("inf")
        return float(np.interp(budget, self.bytes, self.loss))


def lagrangian_sweep(costs: Sequence[IntArray], loss: Sequence[FloatArray]) -> LagrangianFront:
    """The whole Lagrangian sweep at once.

    Each unit moves along its own lower hull; the edges of all hulls sorted by loss saved a byte give
    every breakpoint of λ (Sinha and Zoltners 1979, the relaxed multiple-choice knapsack), so no λ has
    to be guessed and none is missed.

    Args:
        costs: one int64 [choices] array a unit, bytes.
        loss: one float64 [choices] array a unit.
    """
    hulls = [lower_hull(c, v) for c, v in zip(costs, loss, strict=True)]
    current = [int(h[0]) for h in hulls]
    edges: list[tuple[float, int, int]] = []
    for unit, hull in enumerate(hulls):
        for rank, (a, b) in enumerate(zip(hull[:-1].tolist(), hull[1:].tolist(), strict=True)):
            saved = float(loss[unit][a] - loss[unit][b]) / float(costs[unit][b] - costs[unit][a])
            edges.append((-saved, unit, rank + 1))
    total_bytes = [sum(int(c[p]) for c, p in zip(costs, current, strict=True))]
    total_loss = [float(sum(v[p] for v, p in zip(loss, current, strict=True)))]
    rows = [list(current)]
    for _, unit, rank in sorted(edges, key=lambda e: (e[0], e[1], e[2])):
        new, old = int(hulls[unit][rank]), current[unit]
        current[unit] = new
        total_bytes.append(total_bytes[-1] + int(costs[unit][new] - costs[unit][old]))
        total_loss.append(total_loss[-1] + float(loss[unit][new] - loss[unit][old]))
        rows.append(list(current))
    return LagrangianFront(
        bytes=np.asarray(total_bytes, dtype=np.int64),
        loss=np.asarray(total_loss),
        picks=np.asarray(rows, dtype=np.int64),
    )
