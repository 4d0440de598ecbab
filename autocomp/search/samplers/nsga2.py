"""NSGA-II (Deb et al. 2002) with the plan as members of its first generation."""

from __future__ import annotations

from optuna.samplers import NSGAIISampler

from autocomp.search._optuna_private import mark_first_generation
from autocomp.search.sampler import Sampler, SamplerContext
from autocomp.search.samplers._optuna import OptunaSampler

_POPULATION = 24
"""Small, because evaluations are seconds and presets spend 32 to 400 of them."""


def make(context: SamplerContext) -> Sampler:
    """The sampler."""
    return OptunaSampler(
        context,
        lambda seed, _study: NSGAIISampler(seed=seed, population_size=_POPULATION),
        adopt=mark_first_generation,
    )
