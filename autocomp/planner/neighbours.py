"""Candidates one or two exchanges away from a good one, by predicted loss."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
from numpy.typing import NDArray

from autocomp.core.candidate import Candidate
from autocomp.core.prices import PriceTable
from autocomp.core.space import SearchSpace
from autocomp.core.steps import Choice
from autocomp.planner.quadratic import Exchanges, IntArray, Surrogate, exchanges, surrogate

REACH = 3
"""A unit moves at most so many choices along its list, so that the surrogate stays local."""
SHORTLIST = 64
"""So many of the best exchanges are given to ``residual`` and drawn from."""
GREED = 0.15
"""Chance that the best remaining one is taken, then the next, ... (geometric)."""


def propose(
    prices: PriceTable,
    space: SearchSpace,
    base: Candidate,
    *,
    budget_bytes: int | None,
    rng: np.random.Generator,
    tried: set[str],
    residual: Callable[[Candidate], float] | None = None,
) -> Candidate | None:
    """One new candidate near ``base``: good by predicted loss, inside the budget, not tried.

    Args:
        prices: the table.
        space: what is legal.
        base: where to start.
        budget_bytes: largest predicted file; None keeps the size of ``base``.
        rng: the draw among the best.
        tried: ids never to return.
        residual: candidate → expected (true − predicted) loss, nats; default 0.

    Returns:
        A candidate, or None where every exchange was tried or none fits.
    """
    place = int(rng.geometric(GREED)) - 1
    enough = SHORTLIST if residual is not None else min(SHORTLIST, place + 1)  # they come best first
    shortlist: list[tuple[float, Candidate]] = []
    for candidate, predicted in neighbours(prices, space, base, budget_bytes=budget_bytes):
        if candidate.id in tried:
            continue
        shortlist.append((predicted + (residual(candidate) if residual else 0.0), candidate))
        if len(shortlist) == enough:
            break
    if not shortlist:
        return None
    shortlist.sort(key=lambda pair: (pair[0], pair[1].id))
    return shortlist[min(place, len(shortlist) - 1)][1]


def neighbours(
    prices: PriceTable, space: SearchSpace, base: Candidate, *, budget_bytes: int | None
) -> Iterator[tuple[Candidate, float]]:
    """Exchanges of one and two units around ``base`` within the budget, with their predicted KL, best first.

    The structure stays that of ``base``. Exchanges that only lower the loss by spending bytes compete with
    those that trade bytes between units; ``base`` itself is not among them. Nothing is yielded where ``base``
    was never priced.
    """
    try:
        table = surrogate(prices.under(base))
        items = table.items(base)
    except KeyError:
        return
    budget = table.file_bytes(items) if budget_bytes is None else budget_bytes
    around = exchanges(table, items, allowed=_nearby(table, items))
    loss = table.loss(items)
    for a, b in _ranked(around, budget - table.file_bytes(items)):
        move = around.move(a, None if a == b else b)
        changed = items.copy()
        for item in move.items:
            changed[table.owner[item]] = item
        candidate = table.candidate(changed)
        units = {table.variables[table.owner[item]][0] for item in move.items}
        if all(_runs(candidate[u], base[u]) for u in units) and candidate != base and candidate in space:
            yield candidate, loss + move.loss


def _nearby(table: Surrogate, items: IntArray) -> NDArray[np.bool_]:
    """Mask of the items at most :data:`REACH` from the current one; dominated detours included."""
    return np.asarray(np.abs(np.arange(len(table.owner)) - items[table.owner]) <= REACH)


def _ranked(around: Exchanges, room: int) -> Iterator[tuple[int, int]]:
    """(a, b) of the feasible exchanges by rising loss; a == b means the single change a."""
    loss = np.where(around.pair_bytes <= room, around.pair_loss, np.inf)
    single = np.where(around.single_bytes <= room, around.single_loss, np.inf)
    np.fill_diagonal(loss, single)
    flat = loss.ravel()
    feasible = int(np.isfinite(flat).sum())
    count = min(feasible, 8 * SHORTLIST)
    while count:
        best = np.argpartition(flat, count - 1)[:count] if count < flat.size else np.arange(flat.size)
        best = best[np.isfinite(flat[best])]
        for index in best[np.argsort(flat[best], kind="stable")].tolist():
            yield divmod(index, len(around.singles))
        flat[best] = np.inf
        feasible -= len(best)
        count = min(feasible, 8 * SHORTLIST)


def _runs(choice: Choice, before: Choice) -> bool:
    """Whether a unit changed to 8-bit execution, or to other weights under it, has weights that fit."""
    return choice.precision is None or choice.precision in choice.kernels or choice == before
