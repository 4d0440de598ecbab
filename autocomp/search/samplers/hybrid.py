"""The solver first, its neighbours next, Optuna around it.

Behind the plan, rows follow a fixed schedule of four: two neighbours of the best feasible rows, one
row that widens the front over all sizes, one TPE row kept within a step of the best. Where the space can
change the structure, one neighbour in four has a structure one decision away and storage solved anew for it: a
new structure costs as much time as ten other rows.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from optuna.trial import FrozenTrial, TrialState

from autocomp.core.candidate import Candidate
from autocomp.core.space import unit_and_axis
from autocomp.core.steps import STRUCTURE_AXES
from autocomp.errors import InfeasibleError
from autocomp.planner.neighbours import propose
from autocomp.planner.plan import solve
from autocomp.planner.structures import structure_moves
from autocomp.search.front import pareto_mask
from autocomp.search.records import CANDIDATE
from autocomp.search.sampler import Sampler, SamplerContext, derived_seed, next_start, tried_ids, untried_near
from autocomp.search.samplers import tpe
from autocomp.search.samplers._optuna import draw
from autocomp.search.samplers._residual import fit_residual

if TYPE_CHECKING:
    from optuna.study import Study

_BASES = 4
"""So many of the best rows are tried as a base before giving up on neighbours."""
_GREED = 0.5
"""Chance that the best row is the base, then the next, ... (geometric)."""
_ROWS_UNIVARIATE = 100
"""Beyond, TPE has one density for all parameters: one for each costs more than all else together."""
_SIMILAR = 3.0
"""The residual is learnt on rows whose predicted loss is within this factor of the base's."""


@dataclass(frozen=True)
class _Known:
    """A candidate with its predicted loss and bytes, NaN where a choice was never priced."""

    candidate: Candidate
    loss: float
    file_bytes: float


@dataclass(frozen=True)
class _Rows:
    """Completed rows: what is known of them, values [n, objectives], violation [n] (0 where feasible)."""

    known: list[_Known]
    values: NDArray[np.float64]
    violation: NDArray[np.float64]

    @property
    def candidates(self) -> list[Candidate]:
        return [k.candidate for k in self.known]

    def best_first(self) -> list[int]:
        """Feasible rows by rising loss, then the others by rising violation."""
        return list(np.lexsort((self.values[:, 1], self.values[:, 0], self.violation)))

    def front_by_size(self) -> list[int]:
        """Rows of the front in loss and bytes, by rising bytes, one a size."""
        plane = self.values[:, :2]
        _, first = np.unique(plane, axis=0, return_index=True)
        on_front = first[pareto_mask(plane[first])]
        return list(on_front[np.argsort(plane[on_front, 1], kind="stable")])


def _greedy(rng: np.random.Generator, count: int) -> int:
    """An index below ``count``: 0 with the chance :data:`_GREED`, else the next, ... (geometric)."""
    return min(int(rng.geometric(_GREED)) - 1, count - 1)


def _execution(candidate: Candidate) -> str:
    """How solutions beside ``candidate`` are to be executed."""
    found = [c.precision for c in candidate.values() if c.precision is not None]
    return max(found, key=found.count, default="float32")


class HybridSampler:
    """See the module.

    Args:
        context: space, price table, plan, budget, seed. Without a price table neighbours are random steps.
    """

    def __init__(self, context: SamplerContext) -> None:
        self._context = context
        self._starts = context.starts()
        self._memory: dict[str, _Known] = {}

    def suggest(self, study: Study, number: int) -> dict[str, int] | None:
        """See :class:`autocomp.search.sampler.Sampler`."""
        context, tried = self._context, tried_ids(study)
        start = next_start(self._starts, tried)
        if start is not None:
            return context.space.encode(start)
        rng = np.random.default_rng(derived_seed(context.seed, number))
        rows = self._rows(study)
        near, across, drawn = self._near_budget, self._across_sizes, self._optuna
        orders: tuple[tuple[Callable[..., Candidate | None], ...], ...] = (
            (near, across),
            (across, near),
            (self._restructured, near, across),
            (drawn, near),
            (near, across),
            (across, near),
            (near, across),
            (drawn, near),
        )
        for source in orders[number % len(orders)] if rows.candidates else (self._optuna,):
            candidate = source(study, number, rows, tried, rng)
            if candidate is not None and candidate.id not in tried:
                return context.space.encode(candidate)
        base = context.space.encode(rows.candidates[rows.best_first()[0]]) if rows.candidates else {}
        return untried_near(context.space, base, tried, rng)

    def _rows(self, study: Study) -> _Rows:
        trials = [
            t
            for t in study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
            if CANDIDATE in t.user_attrs and t.values is not None
        ]
        return _Rows(
            known=[self._recall(t) for t in trials],
            values=np.array([t.values for t in trials], dtype=np.float64).reshape(len(trials), len(study.directions)),
            violation=np.array([sum(max(0.0, v) for v in t.constraints.values()) for t in trials], dtype=np.float64),
        )

    def _recall(self, trial: FrozenTrial) -> _Known:
        """The row's candidate and its prices, worked out once a process."""
        key = trial.user_attrs[CANDIDATE]
        if key not in self._memory:
            candidate, prices = self._context.space.decode(trial.params), self._context.prices
            loss = size = math.nan
            if prices is not None:
                with contextlib.suppress(KeyError):
                    loss, size = prices.predicted_kl(candidate), float(prices.file_bytes(candidate))
            self._memory[key] = _Known(candidate, loss, size)
        return self._memory[key]

    def _near_budget(
        self, _study: Study, _number: int, rows: _Rows, tried: set[str], rng: np.random.Generator
    ) -> Candidate | None:
        """A neighbour, inside the budget, of one of the best rows."""
        order = rows.best_first()
        start = _greedy(rng, len(order))
        for index in (order[start:] + order[:start])[:_BASES]:
            changed = bool(len(rows.candidates[index].structure()))
            found = self._neighbour(rows, index, self._predicted_budget(rows, changed), tried, rng)
            if found is not None:
                return found
        return None

    def _restructured(
        self, _study: Study, _number: int, rows: _Rows, tried: set[str], rng: np.random.Generator
    ) -> Candidate | None:
        """One of the best rows with one structural decision changed and its storage solved anew; None without any."""
        prices, space = self._context.prices, self._context.space
        if prices is None or not prices.structure:
            return None
        order = rows.best_first()
        base = rows.known[order[_greedy(rng, len(order))]]
        budget = self._predicted_budget(rows, True) or base.file_bytes
        moves = [m for m in structure_moves(prices, base.candidate) if m in space]
        while moves and math.isfinite(budget):
            structure = moves.pop(_greedy(rng, len(moves)))
            try:
                found = solve(prices, int(budget), execution=_execution(base.candidate), structure=structure).candidate
            except InfeasibleError:
                continue
            if found.id not in tried and found in space:
                return found
        return None

    def _across_sizes(
        self, _study: Study, _number: int, rows: _Rows, tried: set[str], rng: np.random.Generator
    ) -> Candidate | None:
        """The solver's answer in the middle of the front's widest gap, else a neighbour of any front row."""
        front, prices = rows.front_by_size(), self._context.prices
        sizes = rows.values[front, 1]
        if prices is not None and len(front) > 1:
            gap = int(np.argmax(np.diff(np.log(np.maximum(sizes, 1.0)))))
            middle = int(np.sqrt(sizes[gap] * sizes[gap + 1]))
            base = rows.candidates[front[gap]]
            try:
                found = solve(prices, middle, execution=_execution(base), structure=base).candidate
            except InfeasibleError:
                found = None
            if found is not None and found.id not in tried and found in self._context.space:
                return found
        return self._neighbour(rows, front[int(rng.integers(len(front)))], None, tried, rng)

    def _optuna(
        self, study: Study, number: int, rows: _Rows, _tried: set[str], _rng: np.random.Generator
    ) -> Candidate | None:
        """TPE's draw, each parameter at most one step from the best row: the full range never comes near it."""
        space = self._context.space
        params = draw(
            tpe.build(derived_seed(self._context.seed, number, "tpe"), study, _ROWS_UNIVARIATE), study, number, space
        )
        if rows.candidates:
            base = space.encode(rows.candidates[rows.best_first()[0]])
            # a structure costs seconds to realise and is not changed in many places at once
            reach = {name: 0 if unit_and_axis(name)[1] in STRUCTURE_AXES else 1 for name in params}
            params = {n: min(max(value, base[n] - reach[n]), base[n] + reach[n]) for n, value in params.items()}
        return space.decode(params)

    def _neighbour(
        self, rows: _Rows, index: int, budget_bytes: int | None, tried: set[str], rng: np.random.Generator
    ) -> Candidate | None:
        base, context = rows.candidates[index], self._context
        if context.prices is None:
            params = untried_near(context.space, context.space.encode(base), tried, rng)
            return None if params is None else context.space.decode(params)
        return propose(
            context.prices,
            context.space,
            base,
            budget_bytes=budget_bytes,
            rng=rng,
            tried=tried,
            residual=self._residual(rows, index),
        )

    def _residual(self, rows: _Rows, index: int) -> Callable[[Candidate], float] | None:
        """The learnt error of the prediction among rows like ``index``."""
        center = rows.known[index].loss
        like = [i for i, k in enumerate(rows.known) if center / _SIMILAR <= k.loss <= center * _SIMILAR]
        errors = [float(rows.values[i, 0] - rows.known[i].loss) for i in like]
        return fit_residual(self._context.space, [rows.known[i].candidate for i in like], errors)

    def _predicted_budget(self, rows: _Rows, changed: bool) -> int | None:
        """The budget in predicted bytes: less what nine files in ten took beyond their prediction.

        Args:
            rows: what was written so far.
            changed: of candidates with a changed structure, whose sizes are only estimated, or of the others.
        """
        budget = self._context.budget_bytes
        alike = np.array([bool(len(k.candidate.structure())) == changed for k in rows.known], dtype=bool)
        beyond = (rows.values[:, 1] - np.array([k.file_bytes for k in rows.known]))[alike]
        beyond = beyond[np.isfinite(beyond)]
        if budget is None or not len(beyond):
            return budget
        return budget - max(0, math.ceil(float(np.quantile(beyond, 0.9))))


def make(context: SamplerContext) -> Sampler:
    """The sampler."""
    return HybridSampler(context)
