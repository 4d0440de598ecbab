"""The recipe of a candidate: which steps are legal together, and what they leave of each layer.

Order: prune (10), factorise (20), sparsify (30), quantise or share (40), activations (50). Everything here
looks at shapes only; nothing is computed.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from autocomp.core.candidate import Candidate
from autocomp.core.network import Layer, Network
from autocomp.core.space import SearchSpace
from autocomp.core.steps import Choice
from autocomp.graph.coupling import ChannelGroup, Coupling
from autocomp.transforms.low_rank import Factorise, factor_specs, legal_factorise
from autocomp.transforms.prune import PruneChannels, kept_entries, legal_prune
from autocomp.transforms.weights import legal_weights

_Loss = tuple[str, int | None, int]


@dataclass(frozen=True, kw_only=True, eq=False)
class Recipe:
    """The rules of one network.

    Attributes:
        network: folded, unchanged.
        coupling: gives its groups of channels; asked only where a candidate prunes.
        units: unit → its layers.
        multiple: channel counts are kept at multiples of it.
    """

    network: Network
    coupling: Callable[[], Coupling]
    units: Mapping[str, tuple[str, ...]]
    multiple: int = 1
    # a search asks for the same few thousand combinations again and again
    _prunes: dict[tuple[str, PruneChannels], str | None] = field(default_factory=dict, init=False, repr=False)
    _losses: dict[tuple[str, int], tuple[_Loss, ...]] = field(default_factory=dict, init=False, repr=False)
    _obstacles: dict[Any, tuple[str, str] | None] = field(default_factory=dict, init=False, repr=False)

    def reason(self, candidate: Candidate) -> str | None:
        """Why the candidate is illegal (one line), or None."""
        found = self._first_obstacle(candidate)
        return None if found is None else f"{found[0]}: {found[2]}"

    def legal(self, candidate: Candidate) -> Candidate:
        """``candidate`` without the steps that are illegal in it; itself where it is legal."""
        while (found := self._first_obstacle(candidate)) is not None:
            unit, axis, _ = found
            candidate = candidate.replace({unit: candidate[unit].without(axis)})
        return candidate

    def follows(self, unit: str) -> bool:
        """Whether the unit's channels are removed with another unit's, so that it has no decision of its own."""
        coupling = self.coupling()
        roots = {n for g in coupling.groups.values() for n in g.layers} - set(coupling.groups)
        return all(name in roots for name in self.units[unit])

    def _first_obstacle(self, candidate: Candidate) -> tuple[str, str, str] | None:
        """(unit, axis, reason) of the first step that cannot be carried out."""
        unknown = [u for u in candidate if u not in self.units]
        if unknown:
            return unknown[0], "", "the network has no such unit"
        for unit, choice in candidate.items():
            step = choice.get("prune")
            if isinstance(step, PruneChannels):
                reason = self._prune_obstacle(unit, step)
                if reason is not None:
                    return unit, "prune", reason
        shapes = self._pruned(candidate)
        for unit, choice in candidate.items():
            for name in self.units[unit]:
                obstacle = self._layer_obstacle(shapes.get(name, self.network.layers[name]), choice)
                if obstacle is not None:
                    return unit, *obstacle
        return None

    def _prune_obstacle(self, unit: str, step: PruneChannels) -> str | None:
        if (unit, step) not in self._prunes:
            self._prunes[unit, step] = self._found_prune_obstacle(unit, step)
        return self._prunes[unit, step]

    def _found_prune_obstacle(self, unit: str, step: PruneChannels) -> str | None:
        groups = self.coupling().groups
        roots = [n for n in self.units[unit] if n in groups]
        if not roots:
            refused = {s.name: s.reason for s in self.coupling().refused}
            known = next((refused[n] for n in self.units[unit] if n in refused), None)
            return known or "its channels are removed with another layer's"
        reasons = (legal_prune(groups[n], step.ratio, self.multiple) for n in roots)
        return next((r.partition(": ")[2] for r in reasons if r is not None), None)

    def _layer_obstacle(self, layer: Layer, choice: Choice) -> tuple[str, str] | None:
        """(axis, reason) for a layer of the pruned shape."""
        steps = (choice.get("rank"), choice.get("sparsity"), choice.get("weights"))
        if steps == (None, None, None):
            return None
        key = (layer.name, layer.weight_shape, layer.groups, steps)
        if key not in self._obstacles:
            self._obstacles[key] = self._found_obstacle(layer, choice)
        return self._obstacles[key]

    def _found_obstacle(self, layer: Layer, choice: Choice) -> tuple[str, str] | None:
        parts = [layer]
        step = choice.get("rank")
        if isinstance(step, Factorise):
            reason = legal_factorise(layer, step, self.network)
            if reason is not None:
                return "rank", reason
            parts = self._factors(layer, step)
        for part in parts:
            reason = legal_weights(part, choice.storage())
            if reason is not None:
                axis = "sparsity" if choice.get("sparsity") is not None else "weights"
                return axis, reason
        return None

    def _factors(self, layer: Layer, step: Factorise) -> list[Layer]:
        """The layers of a chain."""
        made = []
        for spec in factor_specs(layer, step, self.network.module.get_submodule(layer.name)):
            shape = (spec.outputs, spec.inputs // spec.groups, *spec.kernel)
            made.append(dataclasses.replace(layer, weight_shape=shape, groups=spec.groups))
        return made

    def _pruned(self, candidate: Candidate) -> dict[str, Layer]:
        """Layers whose shape the candidate's pruning changes."""
        lost: dict[str, dict[int | None, int]] = {}
        for unit, choice in candidate.items():
            step = choice.get("prune")
            if not isinstance(step, PruneChannels):
                continue
            for root in self.units[unit]:
                group = self.coupling().groups.get(root)
                if group is None:
                    continue
                for name, axis, count in self._removed(group, kept_entries(group, step.ratio, self.multiple)):
                    axes = lost.setdefault(name, {})
                    # groups never claim the same index, so what they take from an axis adds up
                    axes[axis] = axes.get(axis, 0) + count
        found = {}
        for name, axes in lost.items():
            layer = self.network.layers[name]
            shape = tuple(size - axes.get(axis, 0) for axis, size in enumerate(layer.weight_shape))
            found[name] = dataclasses.replace(layer, weight_shape=shape, groups=layer.groups - axes.get(None, 0))
        return found

    def _removed(self, group: ChannelGroup, kept: int) -> tuple[_Loss, ...]:
        """(layer, axis of its weight, or None for its convolution groups, how many go) with ``kept`` entries left."""
        key = (group.root, kept)
        if key not in self._losses:
            found = []
            for cut in group.cuts:
                wanted = (cut.axis is None) == (cut.name == "groups") and cut.name in ("weight", "groups")
                if wanted and cut.path in self.network.layers:
                    found.append((cut.path, cut.axis, int((cut.entries >= kept).sum())))
            self._losses[key] = tuple(found)
        return self._losses[key]

    def legal_shares(self, candidate: Candidate) -> dict[str, float]:
        """:meth:`shares` of what is legal of the candidate."""
        return self.shares(self.legal(candidate))

    def outputs(self, candidate: Candidate) -> dict[str, float]:
        """Unit → share of its output channels that the candidate's pruning keeps, for units where it is not all."""
        shapes = self._pruned(candidate)
        out = {}
        for unit, layers in self.units.items():
            before = sum(_outputs(self.network.layers[name]) for name in layers)
            after = sum(_outputs(shapes.get(name, self.network.layers[name])) for name in layers)
            if after != before:
                out[unit] = after / before
        return out

    def shares(self, candidate: Candidate) -> dict[str, float]:
        """Unit → share of its weights that the candidate's structure keeps, for units where it is not all."""
        shapes = self._pruned(candidate)
        out = {}
        for unit, layers in self.units.items():
            before = after = 0
            for name in layers:
                layer = shapes.get(name, self.network.layers[name])
                step = candidate[unit].get("rank")
                parts = self._factors(layer, step) if isinstance(step, Factorise) else [layer]
                before += math.prod(self.network.layers[name].weight_shape)
                after += sum(math.prod(p.weight_shape) for p in parts)
            if after != before:
                out[unit] = after / before
        return out


def _outputs(layer: Layer) -> int:
    """Output channels; a transposed convolution counts those of one of its groups."""
    return layer.weight_shape[layer.channel_axis] * (layer.groups if layer.channel_axis else 1)


def recipe_of(space: SearchSpace) -> Recipe:
    """The rules of a space that changes structure."""
    assert isinstance(space.rules, Recipe)
    return space.rules
