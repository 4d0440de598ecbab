"""Coded bytes a weight of what a structure leaves of a layer, relative to the whole layer's.

Fewer channels and low-rank factors are distributed otherwise than the weight they come from, and an adaptive coder
has fewer of them to learn from. So a few of a unit's storage choices are really coded, rounded to nearest.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from torch import Tensor

from autocomp.coding.container import stored_bytes
from autocomp.coding.tensors import encode_tensor
from autocomp.core.candidate import Candidate
from autocomp.core.network import Layer, Network
from autocomp.core.prices import Prices
from autocomp.core.space import SearchSpace, Unit
from autocomp.core.steps import Choice
from autocomp.transforms.problem import LayerProblem
from autocomp.transforms.weights import compress_layer

CHOICES = 4
"""Storage choices of a unit that are coded, spread evenly over all in their order; others lie between."""

MAX_WEIGHTS = 1 << 16
"""Weights of a tensor that are coded: the first output channels stand for the rest."""

Parts = Mapping[str, tuple[Tensor, ...]]
"""Layer → the weights that take the place of its own."""


@dataclass(frozen=True, kw_only=True, eq=False)
class DensityCoder:
    """Codes what structures leave.

    Attributes:
        network: folded, unchanged.
        space: gives the units' storage choices.
        seed: of random initial values.
    """

    network: Network
    space: SearchSpace
    seed: int = 0
    _whole: dict[str, dict[Choice, float]] = field(default_factory=dict, init=False, repr=False)

    def __call__(self, structure: Candidate, parts: Parts) -> dict[str, dict[str, float]]:
        """Unit → storage choice's key → density, for the units and choices that are legal with ``structure``."""
        found = {}
        for unit in self.space.units.values():
            if any(name in parts for name in unit.layers):
                choices = [c for c in self._choices(unit) if self._legal(structure, unit, c)]
                found[unit.name] = self._densities(unit, parts, choices)
        return found

    def _choices(self, unit: Unit) -> list[Choice]:
        every = self.space.storage_choices(unit)
        places = np.linspace(0, len(every) - 1, CHOICES).round().astype(int)
        return [every[i] for i in dict.fromkeys(places.tolist())]

    def _legal(self, structure: Candidate, unit: Unit, choice: Choice) -> bool:
        whole = structure.replace({unit.name: Choice((*structure[unit.name].steps, *choice.steps))})
        return self.space.rules is None or self.space.rules.reason(whole) is None

    def _densities(self, unit: Unit, parts: Parts, choices: Sequence[Choice]) -> dict[str, float]:
        layers = [self.network.layers[name] for name in unit.layers]
        own = {layer.name: (self.network.module.get_parameter(layer.weight),) for layer in layers}
        left = {name: parts.get(name, weights) for name, weights in own.items()}
        shrinks = _count(own) / max(1, _count(left))
        if unit.name not in self._whole:
            every = self._choices(unit)
            self._whole[unit.name] = dict(zip(every, self._bytes(layers, own, every), strict=True))
        whole, coded = self._whole[unit.name], self._bytes(layers, left, choices)
        return {c.key(): b * shrinks / whole[c] for c, b in zip(choices, coded, strict=True)}

    def _bytes(self, layers: Sequence[Layer], weights: Parts, choices: Sequence[Choice]) -> list[float]:
        """Bytes of all these weights in each choice."""
        total = np.zeros(len(choices))
        for layer in layers:
            for i, weight in enumerate(weights[layer.name]):
                axis = layer.channel_axis
                rows = max(1, MAX_WEIGHTS * weight.shape[axis] // max(1, weight.numel()))
                first = weight.detach().narrow(axis, 0, min(rows, weight.shape[axis])).contiguous()
                problem = LayerProblem(
                    name=layer.name,
                    weight=first,
                    axis=axis,
                    channel_scales=layer.name in self.network.folds and i == len(weights[layer.name]) - 1,
                    seed=self.seed,
                )
                sizes = [stored_bytes(len(encode_tensor(e))) for e in compress_layer(problem, choices)]
                total += np.array(sizes) * (weight.numel() / max(1, first.numel()))
        return [float(t) for t in total]


def interpolated(prices: Prices, coded: Mapping[str, float]) -> np.ndarray:
    """float64 [choices]: densities of all of a unit's storage choices from those coded, along the log of their bytes.

    Args:
        prices: the unit's.
        coded: choice key → density.
    """
    keys = [choice.key() for choice in prices.choices]
    known = sorted((float(np.log(prices.bytes[keys.index(k)])), density) for k, density in coded.items() if k in keys)
    if not known:
        return np.ones(len(keys))
    places, densities = zip(*known, strict=True)
    return np.asarray(np.interp(np.log(prices.bytes), places, densities))


def _count(weights: Parts) -> int:
    return sum(w.numel() for every in weights.values() for w in every)
