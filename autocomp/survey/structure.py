"""Prices of structural decisions: what removing channels or factorising a layer does to the outputs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from autocomp.core.candidate import Candidate
from autocomp.core.network import Network
from autocomp.core.prices import Prices, StructurePrices
from autocomp.core.space import SearchSpace, unit_and_axis
from autocomp.core.steps import FLOAT, STRUCTURE_AXES, Choice
from autocomp.errors import DataError, UnsupportedError
from autocomp.graph.capture import first_tensor
from autocomp.graph.partial import PrefixRunner
from autocomp.survey.database import Entry
from autocomp.survey.density import DensityCoder, Parts, interpolated
from autocomp.survey.effects import Effects
from autocomp.survey.hessians import Hessians
from autocomp.transforms._factors import dense
from autocomp.transforms.low_rank import Factorise, factor_weights
from autocomp.transforms.prune import PruneChannels, pruned_module
from autocomp.transforms.recipe import Recipe


def structure_choices(space: SearchSpace) -> dict[str, tuple[Choice, ...]]:
    """ "<unit>:<axis>" → its choices, the unchanged one first; only where there is a choice."""
    out = {}
    for unit in space.units.values():
        for axis in STRUCTURE_AXES:
            options = unit.axes.get(axis, ())
            if any(o is not None for o in options):
                out[f"{unit.name}:{axis}"] = tuple(FLOAT if o is None else Choice((o,)) for o in options)
    return out


def structure_prices(
    space: SearchSpace,
    recipe: Recipe,
    entries: Mapping[str, Mapping[str, Entry]],
    storage: Mapping[str, Prices],
) -> dict[str, StructurePrices]:
    """The price table's structural part: "<unit>:<axis>" → prices, from what was measured and from shapes.

    Args:
        space: units and choices.
        recipe: knows what a structure leaves of each unit.
        entries: "<unit>:<axis>" → choice key → entry.
        storage: unit → prices of its storage choices.
    """
    out = {}
    for name, choices in structure_choices(space).items():
        unit, _ = unit_and_axis(name)
        measured = [entries[name][c.key()] for c in choices]
        usable = [i for i, e in enumerate(measured) if np.isfinite(e.kl)]
        kept = [recipe.shares(Candidate({unit: choices[i]})) for i in usable]
        outputs = [recipe.outputs(Candidate({unit: choices[i]})) for i in usable]
        changed = dict.fromkeys(u for shares in kept for u in shares)
        out[name] = StructurePrices(
            choices=tuple(choices[i] for i in usable),
            bytes=np.zeros(len(usable), dtype=np.int64),
            kl=np.array([measured[i].kl for i in usable], dtype=np.float64),
            delta=np.stack([measured[i].delta for i in usable]),
            shares={u: np.array([shares.get(u, 1.0) for shares in kept]) for u in changed},
            outputs={u: np.array([shares.get(u, 1.0) for shares in outputs]) for u in changed},
            density={
                u: np.stack([interpolated(storage[u], measured[i].density.get(u, {})) for i in usable]) for u in changed
            },
        )
    return out


@dataclass(kw_only=True, eq=False)
class StructurePricer:
    """Measures structural choices one by one on float32 weights.

    Attributes:
        network: folded, unchanged.
        recipe: gives the groups of channels and the target's multiple.
        hessians: of the layers' inputs.
        sensitivity: runs a changed layer on to the outputs, on the first calibration images.
        batches: calibration inputs that pruned layers are refitted on.
        effects: turns outputs into prices.
        coder: codes what is left.
        seed: of what is random.
    """

    network: Network
    recipe: Recipe
    hessians: Hessians
    sensitivity: PrefixRunner
    batches: Sequence[Tensor]
    effects: Effects
    coder: DensityCoder
    seed: int = 0

    def price(self, unit: str, choices: Sequence[Choice]) -> dict[str, Entry]:
        """Choice key → price of each of a unit's choices on one structural axis."""
        return {c.key(): self._entry(unit, c) for c in choices}

    def _entry(self, unit: str, choice: Choice) -> Entry:
        if choice == FLOAT:
            return Entry(kl=0.0, delta=np.zeros(self.effects.length, np.float32), records={})
        try:
            outputs, parts = self._made(unit, choice)
        except (UnsupportedError, DataError):  # no stable decomposition, or activations that are not finite
            return Entry(kl=float("inf"), delta=np.zeros(self.effects.length, np.float32), records={})
        return Entry(
            kl=self.effects.loss(outputs),
            delta=self.effects.vector(outputs),
            records={},
            density=self.coder(Candidate({unit: choice}), parts),
        )

    def _made(self, unit: str, choice: Choice) -> tuple[Tensor, Parts]:
        """Outputs of the changed network, and layer → the weights that take its place."""
        step = choice.steps[0]
        module = self.network.module
        tensors: dict[str, Tensor] = {}
        parts: Parts = {}
        if isinstance(step, PruneChannels):
            roots = [n for n in self.recipe.units[unit] if n in self.recipe.coupling().groups]
            module = pruned_module(
                self.network,
                dict.fromkeys(roots, step),
                coupling=self.recipe.coupling(),
                batches=self.batches,
                multiple=self.recipe.multiple,
                seed=self.seed,
            )
            parts = {n: (module.get_parameter(layer.weight),) for n, layer in self.network.layers.items()}
            parts = {n: p for n, p in parts.items() if p[0].shape != self.network.layers[n].weight_shape}
        elif isinstance(step, Factorise):
            names = self.recipe.units[unit]
            parts = {n: self._factors(n, step) for n in names}
            for layer in map(self.network.layers.__getitem__, names):
                tensors[layer.weight] = dense(step.method, parts[layer.name], layer.weight_shape)
            if len(names) == 1:
                self.sensitivity.at(names[0])
                return self.sensitivity.run(tensors[self.network.layers[names[0]].weight]).float(), parts
        with torch.inference_mode():
            run = torch.func.functional_call(module, tensors, (self.sensitivity.inputs,))
        return first_tensor(run).float(), parts

    def _factors(self, name: str, step: Factorise) -> tuple[Tensor, ...]:
        layer = self.network.layers[name]
        weight = self.network.module.get_parameter(layer.weight)
        return factor_weights(weight, layer, step, self.hessians(name), self.seed)
