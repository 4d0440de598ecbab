"""Optuna's samplers behind our protocol: warm-started, seeded by row number, without repetitions."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
from optuna.samplers import BaseSampler

from autocomp.core.space import SearchSpace
from autocomp.search import _optuna_private
from autocomp.search.sampler import SamplerContext, derived_seed, distributions, next_start, tried_ids, untried_near

if TYPE_CHECKING:
    from optuna.study import Study

_DRAWS = 8


class OptunaSampler:
    """Suggests the plan first, then what an Optuna sampler draws.

    Optuna's samplers keep a random state that no storage holds, so a new one is made for each row
    from (seed, number): a resumed study goes on exactly as it would have.

    Args:
        context: space, plan, seed.
        build: (seed, study) → the Optuna sampler.
        warm: whether the plan comes first.
        adopt: called for each row of the plan, so that the sampler counts it as its own.
    """

    def __init__(
        self,
        context: SamplerContext,
        build: Callable[[int, Study], BaseSampler],
        *,
        warm: bool = True,
        adopt: Callable[[Study, int], None] | None = None,
    ) -> None:
        self._context = context
        self._build = build
        self._starts = context.starts() if warm else ()
        self._adopt = adopt

    def suggest(self, study: Study, number: int) -> dict[str, int] | None:
        """See :class:`autocomp.search.sampler.Sampler`."""
        space, tried = self._context.space, tried_ids(study)
        start = next_start(self._starts, tried)
        if start is not None:
            if self._adopt is not None:
                self._adopt(study, number)
            return space.encode(start)
        sampler = self._build(derived_seed(self._context.seed, number), study)
        params: dict[str, int] = {}
        for _ in range(_DRAWS):
            params = draw(sampler, study, number, space)
            if space.decode(params).id not in tried:
                return params
        rng = np.random.default_rng(derived_seed(self._context.seed, number, "untried"))
        return untried_near(space, params, tried, rng)


def draw(sampler: BaseSampler, study: Study, number: int, space: SearchSpace) -> dict[str, int]:
    """What ``sampler`` suggests for the open row ``number``; nothing is written but its own attributes."""
    _optuna_private.forget_cached_trials(study)
    trial = _optuna_private.trial_of(study, number)
    sampler.before_trial(study, trial)
    common = sampler.infer_relative_search_space(study, trial)
    drawn = dict(sampler.sample_relative(study, trial, common))
    for name, distribution in distributions(space).items():
        if name not in drawn:
            drawn[name] = sampler.sample_independent(study, trial, name, distribution)
    return {name: int(drawn[name]) for name in space.parameters()}
