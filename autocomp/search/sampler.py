"""What a sampler is given and gives: the next point of the space, from what the study has seen."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np
from optuna.distributions import BaseDistribution, IntDistribution

from autocomp.core.candidate import Candidate
from autocomp.core.prices import PriceTable
from autocomp.core.space import SearchSpace
from autocomp.search.records import CANDIDATE

if TYPE_CHECKING:
    from optuna.study import Study

PACKAGE = "autocomp.search.samplers"


@dataclass(frozen=True, kw_only=True)
class SamplerContext:
    """Everything a sampler may build on.

    Attributes:
        space: where to stay.
        prices: the survey's price table, or None.
        plan: the planner's candidates, the best to try first.
        budget_bytes: the file may have this many bytes, or None.
        seed: of the study.
    """

    space: SearchSpace
    prices: PriceTable | None = None
    plan: tuple[Candidate, ...] = ()
    budget_bytes: int | None = None
    seed: int = 0

    def starts(self) -> tuple[Candidate, ...]:
        """The plan without repetitions and without what lies outside the space."""
        return tuple(c for c in dict.fromkeys(self.plan) if c in self.space)


class Sampler(Protocol):
    """One module in ``autocomp/search/samplers`` exposes ``make(context) -> Sampler``.

    Contract (``autocomp.testing.sampler_contract``): suggestions stay in the space, are no
    repetitions while untried points remain, and depend on nothing but the context, the rows of the
    study and the number, so that a resumed search goes on as if it had never stopped.
    """

    def suggest(self, study: Study, number: int) -> dict[str, int] | None:
        """Parameters (option indices) for row ``number``, which is already open in ``study``.

        None where there is nothing left to suggest.
        """
        ...


def make_sampler(name: str, context: SamplerContext) -> Sampler:
    """The sampler called ``name``; :class:`UnknownNameError` with the nearest names where there is none."""
    from autocomp.core import plugins

    make: Callable[[SamplerContext], Sampler] = plugins.find(PACKAGE, "sampler", name).make
    return make(context)


def derived_seed(seed: int, *salt: object) -> int:
    """32 bits of SHA-256 over ``seed`` and ``salt``: one stream for each row, whatever ran before."""
    text = "/".join(str(part) for part in (seed, *salt))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big")


def distributions(space: SearchSpace) -> dict[str, BaseDistribution]:
    """Optuna's view of the space: options are ordered by strength, so each parameter is an integer."""
    return {name: IntDistribution(0, count - 1) for name, count in space.parameters().items()}


def tried_ids(study: Study) -> set[str]:
    """Ids of all candidates in the study, those under way included."""
    return {t.user_attrs[CANDIDATE] for t in study.get_trials(deepcopy=False) if CANDIDATE in t.user_attrs}


def next_start(starts: Sequence[Candidate], tried: set[str]) -> Candidate | None:
    """The first candidate of the plan that was not tried: a study asked again for another budget has a new plan."""
    return next((c for c in starts if c.id not in tried), None)


def untried_near(
    space: SearchSpace, params: Mapping[str, int], tried: set[str], rng: np.random.Generator
) -> dict[str, int] | None:
    """An untried point, close to ``params`` where there is one; None when the space is exhausted.

    First a random walk of growing reach; then points in order from a random one on: among one more
    than were tried, at least one is new.
    """
    counts = space.parameters()
    names = list(counts)
    for attempt in range(32 if names else 0):
        point = {name: int(params.get(name, 0)) for name in names}
        for name in rng.choice(names, size=min(1 + attempt // 8, len(names)), replace=False):
            point[str(name)] = int(rng.integers(counts[str(name)]))
        if space.decode(point).id not in tried:
            return point
    size = math.prod(counts.values())
    offset = sum(int(rng.integers(counts[n])) * math.prod(counts[m] for m in names[:i]) for i, n in enumerate(names))
    for step in range(min(size, len(tried) + 1)):
        point, rest = {}, (offset + step) % size
        for name in names:
            rest, point[name] = divmod(rest, counts[name])
        if space.decode(point).id not in tried:
            return point
    return None
