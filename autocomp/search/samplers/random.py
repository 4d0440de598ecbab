"""Uniform draws from the whole space: the baseline every other sampler must beat. No warm start."""

from __future__ import annotations

from optuna.samplers import RandomSampler

from autocomp.search.sampler import Sampler, SamplerContext
from autocomp.search.samplers._optuna import OptunaSampler


def make(context: SamplerContext) -> Sampler:
    """The sampler."""
    return OptunaSampler(context, lambda seed, _study: RandomSampler(seed=seed), warm=False)
