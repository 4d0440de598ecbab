"""The network of a structure: the recipe's structural steps carried out in order, prune before factorise."""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping
from typing import TypeVar

import torch

from autocomp.core.candidate import Candidate
from autocomp.core.steps import StepConfig
from autocomp.core.variant import Variant
from autocomp.search.session import Session
from autocomp.survey.hessians import Hessians
from autocomp.transforms.compensate import Hessian
from autocomp.transforms.low_rank import Factorise, factorise
from autocomp.transforms.prune import PruneChannels, prune_channels
from autocomp.transforms.recipe import recipe_of

_Step = TypeVar("_Step", bound=StepConfig)


def make_variant(
    session: Session, structure: Candidate, hessians: Hessians, known: MutableMapping[str, Hessian] | None = None
) -> Variant:
    """The session's network with the structural part of ``structure``, weights fitted to the calibration images.

    Args:
        session: what is searched.
        structure: only its structural axes are looked at.
        hessians: of the session's own network.
        known: what pruning measured of the session's own network for other structures; more is added.
    """
    variant = Variant.base(session.network)
    seed = session.settings.seed
    pruned = _by_layer(session, structure, "prune", PruneChannels)
    if pruned:
        variant = prune_channels(
            variant,
            pruned,
            coupling=session.coupling(),
            batches=session.calibration[:1],
            multiple=recipe_of(session.space).multiple,
            known=known,
            seed=seed,
        )
    ranks = _by_layer(session, structure, "rank", Factorise)
    if ranks:
        own = hessians if not pruned else Hessians(variant.network, torch.cat(list(session.calibration)), seed=seed)
        variant = factorise(variant, ranks, hessians=own, seed=seed)
    return variant


def _by_layer(session: Session, structure: Candidate, axis: str, kind: type[_Step]) -> Mapping[str, _Step]:
    """Layer → its step on ``axis``."""
    found: dict[str, _Step] = {}
    for unit in session.space.units.values():
        step = structure[unit.name].get(axis)
        if isinstance(step, kind):
            found.update(dict.fromkeys(unit.layers, step))
    return found
