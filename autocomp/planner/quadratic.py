"""The cross-layer surrogate as a quadratic form, and local search on it.

With the whitened logit changes u of the price table, a candidate's predicted KL is ½‖Σu‖². Its
matrix of pairwise terms G = UUᵀ is all that the search needs: a change of one or two units is priced
by a few entries of G, so hundreds of thousands of changes are compared in one vector operation.
The objective is CLADO's (Deng et al. 2023, integer quadratic program over pairwise terms); the terms
come from the survey's vectors instead of pairwise forward passes and are positive semi-definite as
they are.
"""

from __future__ import annotations

import copy
import weakref
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from autocomp.core.candidate import Candidate
from autocomp.core.prices import Prices, PriceTable
from autocomp.core.space import unit_and_axis
from autocomp.core.steps import FLOAT, Choice

IntArray = NDArray[np.int64]
FloatArray = NDArray[np.float64]

CROSS_WEIGHT = 0.25
"""Part of the cross terms that :func:`refine` believes. Minimising over them picks those that the few
calibration images make too negative. ResNet-20, 256 images, KL on 2,000 other images at 102, 85 and 68 KB, one
seed: none .0069 / .0148 / .0334, a quarter .0064 / .0147 / .0328, all .0065 / .0166 / .0359."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Move:
    """Changes of one or two variables, priced.

    Attributes:
        items: rows of the surrogate that become the picks of their variables.
        loss: change of the predicted KL, nats.
        bytes: change of the file size.
    """

    items: tuple[int, ...]
    loss: float
    bytes: int


class Surrogate:
    """A price table flattened: one variable a (unit, axis group), one item a choice of it.

    Structure is no variable: the table is one of :meth:`PriceTable.under`, where each structural decision
    has the one choice that was made (its logit change stays, as a constant part).

    Args:
        prices: the table; its ``delta`` arrays are [choices, d].

    Attributes:
        variables: (unit, "storage", "execution" or a structural axis) in table order, storage first.
        choices: the choices of each variable.
        first: index of each variable's first item; one more entry at the end.
        owner: int64 [items], the variable of each item.
        bytes: int64 [items].
        kl: float64 [items], measured KL of the item alone.
        gram: float64 [items, items], G = UUᵀ.
        fixed_bytes: bytes that no variable decides.
    """

    def __init__(self, prices: PriceTable) -> None:
        tables: list[tuple[tuple[str, str], Prices]] = []
        for name, group in (("storage", prices.storage), ("execution", prices.execution)):
            tables += [((unit, name), p) for unit, p in group.items()]
        for name, structure in prices.structure.items():
            unit, axis = unit_and_axis(name)
            tables.append(((unit, axis), structure))
        self.variables = [key for key, _ in tables]
        self.choices: list[tuple[Choice, ...]] = [p.choices for _, p in tables]
        counts = [len(c) for c in self.choices]
        self.first = np.concatenate(([0], np.cumsum(counts, dtype=np.int64)))
        self.owner = np.repeat(np.arange(len(counts), dtype=np.int64), counts)
        self.bytes: IntArray = np.concatenate([np.zeros(0, np.int64), *(p.bytes for _, p in tables)]).astype(np.int64)
        self.kl: FloatArray = np.concatenate([np.zeros(0), *(p.kl for _, p in tables)]).astype(np.float64)
        width = max((p.delta.shape[1] for _, p in tables), default=0)
        deltas = np.concatenate([np.zeros((0, width), np.float32), *(p.delta for _, p in tables)])
        self.gram: FloatArray = (deltas @ deltas.T).astype(np.float64)
        self.fixed_bytes = prices.fixed_bytes

    def shrunk(self, cross: float) -> Surrogate:
        """This surrogate with the terms between different variables multiplied by ``cross``."""
        out = copy.copy(self)
        between = self.owner[:, None] != self.owner[None, :]
        out.gram = np.where(between, cross * self.gram, self.gram)
        return out

    def items(self, candidate: Candidate) -> IntArray:
        """int64 [variables]: the item each variable has in ``candidate``; KeyError where never priced."""
        out = np.empty(len(self.variables), dtype=np.int64)
        for v, (unit, group) in enumerate(self.variables):
            part = _part(candidate[unit], group)
            try:
                out[v] = self.first[v] + self.choices[v].index(part)
            except ValueError:
                raise KeyError(f"{unit}: choice {part.label()} was not priced") from None
        return out

    def candidate(self, items: IntArray) -> Candidate:
        """Inverse of :meth:`items`."""
        merged: dict[str, Choice] = {}
        for v, (unit, _) in enumerate(self.variables):
            part = self.choices[v][int(items[v] - self.first[v])]
            known = merged.get(unit, FLOAT)
            merged[unit] = part if known == FLOAT else Choice((*known.steps, *part.steps))
        return Candidate(merged)

    def loss(self, items: IntArray) -> float:
        """Predicted KL ½‖Σu‖², nats."""
        return 0.5 * float(self.gram[np.ix_(items, items)].sum())

    def file_bytes(self, items: IntArray) -> int:
        """Predicted file size."""
        return self.fixed_bytes + int(self.bytes[items].sum())

    def change(self, items: IntArray) -> FloatArray:
        """float64 [items]: change of the predicted KL when this item replaces its variable's current one."""
        current = items[self.owner]
        toward = self.gram[:, items].sum(axis=1)
        own = np.diagonal(self.gram)
        square = own + own[current] - 2.0 * self.gram[np.arange(len(own)), current]
        return np.asarray(toward - toward[current] + 0.5 * square)

    def interaction(self, items: IntArray, moves: IntArray) -> FloatArray:
        """float64 [m, m]: what two of ``moves`` together add to the sum of their changes."""
        current = items[self.owner[moves]]
        ga, gb = self.gram[np.ix_(moves, moves)], self.gram[np.ix_(moves, current)]
        return np.asarray(ga - gb - gb.T + self.gram[np.ix_(current, current)])


def _part(choice: Choice, group: str) -> Choice:
    """What of ``choice`` a variable of this group decides."""
    if group == "storage":
        return choice.storage()
    return choice.execution() if group == "execution" else choice.only(group)


_surrogates: weakref.WeakKeyDictionary[PriceTable, Surrogate] = weakref.WeakKeyDictionary()


def surrogate(prices: PriceTable) -> Surrogate:
    """The table's surrogate, made once a table."""
    found = _surrogates.get(prices)
    if found is None:
        found = _surrogates[prices] = Surrogate(prices)
    return found


@dataclass(kw_only=True)
class Exchanges:
    """All exchanges of one and two variables around a point, priced together.

    Attributes:
        singles: int64 [m], the items considered.
        single_loss, single_bytes: their changes, [m].
        pair_loss: float64 [m, m], changes of two together; inf on and below the diagonal and where both
            belong to one variable.
        pair_bytes: int64 [m, m].
    """

    singles: IntArray
    single_loss: FloatArray
    single_bytes: IntArray
    pair_loss: FloatArray = field(repr=False)
    pair_bytes: IntArray = field(repr=False)

    def move(self, a: int, b: int | None = None) -> Move:
        """The exchange at row ``a`` (and column ``b``)."""
        if b is None:
            return Move(items=(int(self.singles[a]),), loss=float(self.single_loss[a]), bytes=int(self.single_bytes[a]))
        return Move(
            items=(int(self.singles[a]), int(self.singles[b])),
            loss=float(self.pair_loss[a, b]),
            bytes=int(self.pair_bytes[a, b]),
        )


def exchanges(table: Surrogate, items: IntArray, *, allowed: NDArray[np.bool_], limit: int = 1024) -> Exchanges:
    """Price every exchange of one or two variables around ``items``.

    Args:
        table: the surrogate.
        items: int64 [variables], the current point.
        allowed: bool [items], what a variable may be set to.
        limit: at most so many single changes are paired (pairs cost limit² numbers); where there are
            more, each variable keeps its choices nearest to the current one in bytes order.
    """
    current = items[table.owner]
    everything = np.arange(len(table.owner))
    distance = np.abs(everything - current)
    usable = allowed & (distance > 0)
    reach = int(distance.max(initial=0))
    while reach > 1 and int((usable & (distance <= reach)).sum()) > limit:
        reach -= 1
    moves = everything[usable & (distance <= reach)]
    loss = table.change(items)[moves]
    size = table.bytes[moves] - table.bytes[current[moves]]
    pair = table.interaction(items, moves) + loss[:, None] + loss[None, :]
    owner = table.owner[moves]
    pair[(owner[:, None] == owner[None, :]) | np.tri(len(moves), dtype=bool)] = np.inf
    return Exchanges(
        singles=moves,
        single_loss=loss,
        single_bytes=size,
        pair_loss=pair,
        pair_bytes=size[:, None] + size[None, :],
    )


def refine(
    prices: PriceTable,
    items: IntArray,
    budget: int,
    *,
    allowed: NDArray[np.bool_] | None = None,
    cross: float = CROSS_WEIGHT,
    rounds: int = 200,
) -> IntArray:
    """Steepest descent on the predicted KL by exchanges of one and two variables, within the budget.

    Args:
        prices: the table.
        items: int64 [variables], a start as :meth:`Surrogate.items` gives it, within the budget.
        budget: largest predicted file size, bytes.
        allowed: bool [items], what may be chosen; default everything.
        cross: weight of the cross terms, 1 for ½‖Σu‖² as it was measured.
        rounds: at most so many exchanges.

    Returns:
        int64 [variables]: a point that no allowed exchange of one or two variables improves.
    """
    table = surrogate(prices).shrunk(cross)
    items = items.copy()
    free = np.ones(len(table.owner), dtype=bool) if allowed is None else allowed
    for _ in range(rounds):
        room = budget - table.file_bytes(items)
        around = exchanges(table, items, allowed=free)
        tolerance = 1e-9 * max(table.loss(items), 1e-12)
        best = best_exchange(around, room)
        if best is None or best.loss >= -tolerance:
            break
        for item in best.items:
            items[table.owner[item]] = item
    return items


def best_exchange(around: Exchanges, room: int) -> Move | None:
    """The exchange of least loss that adds at most ``room`` bytes, or None where none fits."""
    if not len(around.singles):
        return None
    single = np.where(around.single_bytes <= room, around.single_loss, np.inf)
    pair = np.where(around.pair_bytes <= room, around.pair_loss, np.inf)
    a = int(single.argmin())
    b, c = (int(i) for i in np.unravel_index(int(pair.argmin()), pair.shape))
    if min(single[a], pair[b, c]) == np.inf:
        return None
    return around.move(a) if single[a] <= pair[b, c] else around.move(b, c)
