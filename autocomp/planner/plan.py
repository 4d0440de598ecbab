"""Warm-start candidates: the price table solved for many budgets before anything is evaluated."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray

from autocomp.core.candidate import Candidate
from autocomp.core.prices import PriceTable
from autocomp.core.space import SearchSpace
from autocomp.core.steps import EXECUTION_AXES, Choice
from autocomp.errors import InfeasibleError
from autocomp.planner.allocate import allocate, lagrangian_sweep
from autocomp.planner.quadratic import FloatArray, IntArray, Surrogate, refine, surrogate
from autocomp.planner.structures import UNCHANGED, smallest_structure, structures

BUDGET_STEPS = (1.0, 0.985, 0.95, 0.9)
"""Fractions of the asked budget that get a plan of their own: the answer lies at or just below it."""


STRUCTURE_EVERY = 6
"""One warm start in so many changes the structure: each costs as much time as ten changes of storage."""

_Wish = Callable[[], Candidate]


@dataclass(frozen=True, kw_only=True)
class Solution:
    """The planner's answer for one budget.

    Attributes:
        candidate: the allocation.
        file_bytes: its predicted size, at most the budget.
        kl: its predicted KL with cross terms, nats.
        additive_kl: the sum of its units' KL, which the knapsack minimised first.
        bound: dual bound on ``additive_kl``: no allocation within the budget has less.
    """

    candidate: Candidate
    file_bytes: int
    kl: float
    additive_kl: float
    bound: float


def reachable(prices: PriceTable) -> tuple[int, int]:
    """Smallest and largest predicted file size, bytes; the smallest with the strongest structure."""
    strongest = prices.under(smallest_structure(prices))
    low = min(t.fixed_bytes + sum(int(p.bytes.min()) for p in t.storage.values()) for t in (prices, strongest))
    high = sum(int(p.bytes.max()) for p in prices.storage.values())
    return low, prices.fixed_bytes + high


def smallest(prices: PriceTable) -> Candidate:
    """The candidate of the smallest predicted file; of equal choices the one with the lower KL."""
    structure = smallest_structure(prices)
    picks = {}
    for unit, p in prices.under(structure).storage.items():
        picks[unit] = p.choices[int(np.lexsort((p.kl, p.bytes))[0])]
    return _restructured(picks, structure)


def solve(
    prices: PriceTable,
    budget_bytes: int,
    *,
    execution: str = "float32",
    cross: bool = True,
    structure: Candidate = UNCHANGED,
) -> Solution:
    """The best allocation the price table knows for one budget.

    Storage is solved exactly on the additive loss, then refined on the quadratic one with the
    execution's and the structure's own logit changes as a constant part.

    Args:
        prices: the table.
        budget_bytes: largest predicted file size.
        execution: "float32": no activation is quantized; "int8" or "float8": every unit that may.
        cross: refine with cross terms; False keeps the knapsack's answer.
        structure: its structural part is kept as it is.

    Raises:
        InfeasibleError: the smallest candidate is larger than the budget.
    """
    prices = prices.under(structure)
    table = surrogate(prices)
    storage = list(prices.storage.values())
    usable = [_usable(prices, unit, execution) for unit in prices.storage]
    costs = [p.bytes[u].astype(np.int64) for p, u in zip(storage, usable, strict=True)]
    loss = [p.kl[u].astype(np.float64) for p, u in zip(storage, usable, strict=True)]
    room = budget_bytes - prices.fixed_bytes - _quantizer_bytes(prices, execution)
    picks = allocate(costs, loss, room)
    chosen = [int(u[p]) for u, p in zip(usable, picks, strict=True)]
    candidate = _restructured(
        {unit: prices.storage[unit].choices[i] for unit, i in zip(prices.storage, chosen, strict=True)}, structure
    )
    additive = float(sum(p.kl[i] for p, i in zip(storage, chosen, strict=True)))
    items = table.items(_executed(prices, candidate, execution))
    if cross:
        items = refine(prices, items, budget_bytes, allowed=_storage_items(table, usable))
    return Solution(
        candidate=table.candidate(items),
        file_bytes=table.file_bytes(items),
        kl=table.loss(items),
        additive_kl=additive,
        bound=lagrangian_sweep(costs, loss).bound(room),
    )


def _quantizer_bytes(prices: PriceTable, execution: str) -> int:
    """What the file says about activations where every unit that may executes so."""
    found = (zip(p.choices, p.bytes, strict=True) for p in prices.execution.values())
    return sum(int(size) for unit in found for choice, size in unit if choice.precision == execution)


def _usable(prices: PriceTable, unit: str, execution: str) -> IntArray:
    """Indices of the unit's storage choices that can run as ``execution`` asks; all where none can."""
    choices = prices.storage[unit].choices
    if unit in prices.execution and any(c.precision == execution for c in prices.execution[unit].choices):
        fitting = [i for i, c in enumerate(choices) if execution in c.kernels]
        if fitting:
            return np.asarray(fitting, dtype=np.int64)
    return np.arange(len(choices), dtype=np.int64)


def _restructured(storage: Mapping[str, Choice], structure: Candidate) -> Candidate:
    """Storage choices with the structural part of ``structure``."""
    return Candidate({u: Choice((*structure[u].structure().steps, *c.storage().steps)) for u, c in storage.items()})


def _executed(prices: PriceTable, candidate: Candidate, execution: str) -> Candidate:
    """``candidate`` with its activations set: as asked where that is priced and the weights fit, else as comes first.

    In floating point comes first, where a unit may.
    """
    changes = {}
    for unit, p in prices.execution.items():
        fits = execution in candidate[unit].kernels
        way = next((c for c in p.choices if fits and c.precision == execution), p.choices[0])
        changes[unit] = Choice((*candidate[unit].without(*EXECUTION_AXES).steps, *way.steps))
    return candidate.replace(changes)


def _storage_items(table: Surrogate, usable: Sequence[IntArray]) -> NDArray[np.bool_]:
    """Mask of the storage items that may be picked; execution items stay as they are."""
    allowed = np.zeros(len(table.owner), dtype=bool)
    for v, indices in enumerate(usable):
        allowed[table.first[v] + indices] = True
    return allowed


def plan(
    prices: PriceTable,
    space: SearchSpace,
    *,
    budget_bytes: int | None,
    count: int,
    executions: Sequence[str] | None = None,
) -> list[Candidate]:
    """Warm starts, the most useful first: any prefix of the list is a sensible start.

    The asked budget in each execution; slightly below it (the file decides, not the prediction);
    uniform settings; then a geometric ladder of budgets from the smallest reachable file to the
    largest quantized one, coarse rungs before fine ones.

    Where channels can be removed or layers factorised, every sixth one has another structure: from the
    mildest to the strongest, at the asked budget.

    Args:
        prices: the table.
        space: candidates outside it are left out.
        budget_bytes: the asked budget, or None.
        count: at most so many.
        executions: ways to execute, the preferred one first; None: the 8-bit precisions that are priced, then
            "float32".

    Raises:
        InfeasibleError: ``budget_bytes`` is below the smallest reachable file.
    """
    if executions is None:
        priced = (c.precision for p in prices.execution.values() for c in p.choices)
        executions = [*dict.fromkeys(p for p in priced if p is not None), "float32"]
    low, _ = reachable(prices)
    if budget_bytes is not None and budget_bytes < low:
        raise InfeasibleError(
            f"the smallest file of space {space.name} takes about {low} bytes, the budget is {budget_bytes}; "
            f"raise the budget or give the space coarser choices",
            {"file_bytes": float(low)},
        )
    out: dict[str, Candidate] = {}
    plain = _wishes(prices, budget_bytes, count, executions)
    changed = _structural_wishes(prices, space, budget_bytes, count, executions)
    for make in _interleaved(plain, changed):
        if len(out) >= count:
            break
        try:
            candidate = make()
        except InfeasibleError:  # 8-bit kernels need weights that fit: their smallest file can be the larger one
            continue
        if candidate in space:
            out.setdefault(candidate.id, candidate)
    return list(out.values())


def _wishes(
    prices: PriceTable, budget_bytes: int | None, count: int, executions: Sequence[str]
) -> Iterator[Callable[[], Candidate]]:
    """Candidates to make, the most useful first; made only when asked for."""

    def at(budget: float, execution: str) -> Callable[[], Candidate]:
        return lambda: solve(prices, int(budget), execution=execution).candidate

    if budget_bytes is not None:
        yield from (at(budget_bytes, e) for e in executions)
    yield from (lambda b=bits: _uniform(prices, b, executions[0]) for bits in (8, 4))
    if budget_bytes is not None:
        yield from (at(budget_bytes * s, executions[0]) for s in BUDGET_STEPS[1:])
    least = prices.fixed_bytes + sum(int(p.bytes.min()) for p in prices.storage.values())  # of the whole structure
    low, high = least + _quantizer_bytes(prices, executions[0]), _largest_quantized(prices)
    rungs = max(4, count)
    for rung in _coarse_first(rungs):
        yield at(low * (high / low) ** (rung / (rungs - 1)) + 1, executions[0])
    for rung in _coarse_first(rungs):
        yield from (at(low * (high / low) ** (rung / (rungs - 1)) + 1, e) for e in executions[1:])


def _structural_wishes(
    prices: PriceTable, space: SearchSpace, budget_bytes: int | None, count: int, executions: Sequence[str]
) -> Iterator[Callable[[], Candidate]]:
    """Candidates of changed structure, at the asked budget (or at the size of 8 bits)."""
    for structure in structures(prices, count=max(1, count // STRUCTURE_EVERY)):
        if structure not in space:
            continue
        under = prices.under(structure)
        budget = _largest_quantized(under) if budget_bytes is None else min(budget_bytes, _largest_quantized(under))
        yield partial(_solved, prices, budget, executions[0], structure)


def _solved(prices: PriceTable, budget: int, execution: str, structure: Candidate) -> Candidate:
    return solve(prices, budget, execution=execution, structure=structure).candidate


def _interleaved(plain: Iterator[_Wish], changed: Iterator[_Wish]) -> Iterator[_Wish]:
    """Mostly ``plain``, every few one of ``changed``."""
    for position, wish in enumerate(plain, start=1):
        if position % STRUCTURE_EVERY == 0:
            yield from itertools.islice(changed, 1)
        yield wish
    yield from changed


def _largest_quantized(prices: PriceTable) -> int:
    """File size with every unit at its largest setting for 8-bit kernels; the float32 file where there is none."""
    total = prices.fixed_bytes
    for p in prices.storage.values():
        sizes = [int(b) for c, b in zip(p.choices, p.bytes, strict=True) if c.kernels]
        total += max(sizes, default=int(p.bytes.min()))
    return total


def _uniform(prices: PriceTable, bits: int, execution: str) -> Candidate:
    """Every unit at its setting of so many bits, or at the one nearest in size to it."""
    picks = {}
    for unit, p in prices.storage.items():
        at_bits = [i for i, c in enumerate(p.choices) if getattr(c.get("weights"), "bits", None) == bits]
        target = float(p.bytes[0]) * bits / 32.0
        picks[unit] = p.choices[at_bits[0] if at_bits else int(np.abs(p.bytes - target).argmin())]
    return _executed(prices, Candidate(picks), execution)


def _coarse_first(count: int) -> list[int]:
    """0 … count-1 with the ends first and every prefix spread out (farthest point next)."""
    order = [0, count - 1]
    distance: FloatArray = np.minimum(np.arange(count), count - 1 - np.arange(count)).astype(np.float64)
    while len(order) < count:
        nearest = int(distance.argmax())
        order.append(nearest)
        distance = np.minimum(distance, np.abs(np.arange(count) - nearest))
    return order
