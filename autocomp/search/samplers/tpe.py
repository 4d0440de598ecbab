"""Tree-structured Parzen estimator (Bergstra et al. 2011; multi-objective: Ozaki et al. 2022), warm-started."""

from __future__ import annotations

from typing import TYPE_CHECKING

from optuna.samplers import BaseSampler, TPESampler

from autocomp.search.sampler import Sampler, SamplerContext
from autocomp.search.samplers._optuna import OptunaSampler

if TYPE_CHECKING:
    from optuna.study import Study

ROWS_UNIVARIATE = 500
"""Beyond, one density for all parameters: the cost of one for each grows to seconds a suggestion."""


def build(seed: int, study: Study, rows_univariate: int = ROWS_UNIVARIATE) -> BaseSampler:
    """Optuna's TPE for this many rows."""
    many = len(study.get_trials(deepcopy=False)) > rows_univariate
    return TPESampler(seed=seed, multivariate=True) if many else TPESampler(seed=seed)


def make(context: SamplerContext) -> Sampler:
    """The sampler."""
    return OptunaSampler(context, build)
