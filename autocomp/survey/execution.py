"""Prices of int8 execution: what quantizing activations does to the outputs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from autocomp.core.compressed import ActivationQuantizer
from autocomp.core.hardware import Placement
from autocomp.core.network import Network
from autocomp.core.space import SearchSpace
from autocomp.core.steps import FLOAT, Choice
from autocomp.graph.partial import PrefixRunner
from autocomp.graph.placement import quantized_values
from autocomp.survey.database import Entry
from autocomp.survey.effects import Effects
from autocomp.transforms.quantize import QuantizeActivations


def execution_choices(space: SearchSpace) -> dict[str, list[Choice]]:
    """Unit → its activation choices, float first; only units that have any besides float."""
    out = {}
    for unit in space.units.values():
        choices = unit.choices(axes=("activations",))
        if any(c != FLOAT for c in choices):
            out[unit.name] = sorted(choices, key=lambda c: c != FLOAT)
    return out


def int8_layers(space: SearchSpace, units: Sequence[str]) -> dict[str, str]:
    """Layer → calibrator, with the named units executed in int8."""
    layers: dict[str, str] = {}
    for name in units:
        for choice in space.units[name].choices(axes=("activations",)):
            step = choice.get("activations")
            if isinstance(step, QuantizeActivations):
                layers.update(dict.fromkeys(space.units[name].layers, step.calibrator))
    return layers


def candidate_values(network: Network, space: SearchSpace, placement: Placement) -> dict[str, str]:
    """Value → calibrator, for every value that some candidate quantizes.

    More int8 units only ever add combinations of quantized values and drop inputs that lie on a grid
    already, so all units together and each alone show every value there is.
    """
    units = list(execution_choices(space))
    values = quantized_values(network, int8_layers(space, units), placement)
    for unit in units:
        values = {**quantized_values(network, int8_layers(space, [unit]), placement), **values}
    return {key: values[key] for key in network.values if key in values}


def value_owners(network: Network, space: SearchSpace, placement: Placement) -> dict[str, tuple[str, ...]]:
    """Value → units that have it quantized when they execute in int8.

    A value between two units belongs to both. What only the combination of units quantizes (a sum of two
    int8 values) belongs to the unit whose values precede it in order of execution.
    """
    units = list(execution_choices(space))
    own = {u: set(quantized_values(network, int8_layers(space, [u]), placement)) for u in units}
    owners: dict[str, tuple[str, ...]] = {}
    latest: tuple[str, ...] = tuple(units[:1])
    for key in quantized_values(network, int8_layers(space, units), placement):
        found = tuple(u for u in units if key in own[u])
        latest = found[-1:] or latest
        owners[key] = found or latest
    return owners


def price_execution(
    network: Network,
    space: SearchSpace,
    placement: Placement,
    quantizers: Mapping[str, ActivationQuantizer],
    runner: PrefixRunner,
    effects: Effects,
) -> dict[str, Entry]:
    """Unit → price of executing it in int8, on float32 weights.

    The logit change of a value that several units quantize is divided among them, so that the sum over all
    units is the sum over all values, each counted once: exact where everything runs in int8, the case that
    plans start from; a unit that is int8 alone is under-estimated. ``kl`` is measured with exactly the
    unit's own values quantized.
    """
    owners = value_owners(network, space, placement)
    deltas: dict[str, np.ndarray] = {}
    for key, units in owners.items():
        share = effects.vector(runner.run_values({key: quantizers[key]})) / len(units)
        for unit in units:
            deltas[unit] = deltas[unit] + share if unit in deltas else share
    entries = {}
    for unit in execution_choices(space):
        own = quantized_values(network, int8_layers(space, [unit]), placement)
        kl = effects.loss(runner.run_values({key: quantizers[key] for key in own})) if own else 0.0
        delta = deltas.get(unit, np.zeros(effects.length, np.float32))
        entries[unit] = Entry(kl=kl, delta=delta, records={})
    return entries
