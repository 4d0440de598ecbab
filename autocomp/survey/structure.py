"""Prices of structural decisions: what removing channels or factorising a layer does to the outputs."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from autocomp.core.candidate import Candidate
from autocomp.core.network import Layer, Network
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
from autocomp.transforms.prune import PruneChannels, pruned_modules
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


Made = tuple[Tensor, Parts]
"""Outputs of a changed network, and layer → the weights that take its place."""


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
        unchanged = Entry(kl=0.0, delta=np.zeros(self.effects.length, np.float32), records={})
        found = {c.key(): unchanged for c in choices if c == FLOAT}
        prunes = {c: s for c in choices for s in c.steps if isinstance(s, PruneChannels)}
        factorises = {c: s for c in choices for s in c.steps if isinstance(s, Factorise)}
        if prunes:
            for choice, made in zip(prunes, self._pruned(unit, prunes.values()), strict=True):
                found[choice.key()] = self._entry(unit, choice, made)
        for choice, step in factorises.items():
            found[choice.key()] = self._entry(unit, choice, self._factorised(unit, step))
        return found

    def _entry(self, unit: str, choice: Choice, made: Made | None) -> Entry:
        """The price of what was made; None: of what cannot be."""
        if made is None:
            return Entry(kl=float("inf"), delta=np.zeros(self.effects.length, np.float32), records={})
        outputs, parts = made
        return Entry(
            kl=self.effects.loss(outputs),
            delta=self.effects.vector(outputs),
            records={},
            density=self.coder(Candidate({unit: choice}), parts),
        )

    def _pruned(self, unit: str, steps: Iterable[PruneChannels]) -> Iterator[Made | None]:
        """What each of ``steps`` makes; None where activations are not finite."""
        coupling = self.recipe.coupling()
        roots = [n for n in self.recipe.units[unit] if n in coupling.groups]
        alternatives = [dict.fromkeys(roots, step) for step in steps]
        try:
            modules = pruned_modules(
                self.network,
                alternatives,
                coupling=coupling,
                batches=self.batches,
                multiple=self.recipe.multiple,
                seed=self.seed,
            )
        except DataError:
            yield from [None] * len(alternatives)
            return
        for module in modules:
            parts = {n: (module.get_parameter(layer.weight),) for n, layer in self.network.layers.items()}
            changed = {n: p for n, p in parts.items() if p[0].shape != self.network.layers[n].weight_shape}
            yield self._outputs(module, {}), changed

    def _factorised(self, unit: str, step: Factorise) -> Made | None:
        """What factorising the unit's layers makes; None where no decomposition is stable or inputs are not finite."""
        layers = [self.network.layers[n] for n in self.recipe.units[unit]]
        try:
            parts = {layer.name: self._factors(layer, step) for layer in layers}
        except (UnsupportedError, DataError):
            return None
        tensors = {layer.weight: dense(step.method, parts[layer.name], layer.weight_shape) for layer in layers}
        if len(layers) == 1:
            self.sensitivity.at(layers[0].name)
            return self.sensitivity.run(*tensors.values()).float(), parts
        return self._outputs(self.network.module, tensors), parts

    def _outputs(self, module: nn.Module, tensors: Mapping[str, Tensor]) -> Tensor:
        with torch.inference_mode():
            return first_tensor(torch.func.functional_call(module, dict(tensors), (self.sensitivity.inputs,))).float()

    def _factors(self, layer: Layer, step: Factorise) -> tuple[Tensor, ...]:
        weight = self.network.module.get_parameter(layer.weight)
        return factor_weights(weight, layer, step, self.hessians(layer.name), self.seed)
