"""Prices of 8-bit execution: what quantizing activations does to the outputs."""

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


def executed_units(space: SearchSpace) -> dict[str, list[str]]:
    """8-bit precision → units that may execute in it."""
    found: dict[str, list[str]] = {}
    for unit, choices in execution_choices(space).items():
        for choice in choices:
            if choice.precision is not None:
                found.setdefault(choice.precision, []).append(unit)
    return found


def executed_layers(space: SearchSpace, units: Sequence[str], precision: str) -> dict[str, QuantizeActivations]:
    """Layer → step, with the named units executed in ``precision``."""
    layers: dict[str, QuantizeActivations] = {}
    for name in units:
        for choice in space.units[name].choices(axes=("activations",)):
            step = choice.get("activations")
            if isinstance(step, QuantizeActivations) and step.precision == precision:
                layers.update(dict.fromkeys(space.units[name].layers, step))
    return layers


def candidate_values(
    network: Network, space: SearchSpace, placement: Placement, precision: str
) -> dict[str, QuantizeActivations]:
    """Value → step, for every value that some candidate quantizes in ``precision``.

    More 8-bit units only ever add combinations of quantized values and drop inputs that lie on a grid
    already, so all units together and each alone show every value there is.
    """
    units = executed_units(space).get(precision, [])
    values = quantized_values(network, executed_layers(space, units, precision), placement)
    for unit in units:
        values = {**quantized_values(network, executed_layers(space, [unit], precision), placement), **values}
    return {key: values[key] for key in network.values if key in values}


def value_owners(
    network: Network, space: SearchSpace, placement: Placement, precision: str
) -> dict[str, tuple[str, ...]]:
    """Value → units that have it quantized when they execute in ``precision``.

    A value between two units belongs to both. What only the combination of units quantizes (a sum of two
    int8 values) belongs to the unit whose values precede it in order of execution.
    """
    units = executed_units(space).get(precision, [])
    own = {u: set(quantized_values(network, executed_layers(space, [u], precision), placement)) for u in units}
    owners: dict[str, tuple[str, ...]] = {}
    latest: tuple[str, ...] = tuple(units[:1])
    for key in quantized_values(network, executed_layers(space, units, precision), placement):
        found = tuple(u for u in units if key in own[u])
        latest = found[-1:] or latest
        owners[key] = found or latest
    return owners


def price_execution(
    network: Network,
    space: SearchSpace,
    placement: Placement,
    quantizers: Mapping[tuple[str, str], ActivationQuantizer],
    runner: PrefixRunner,
    effects: Effects,
) -> dict[str, Entry]:
    """:func:`price_name` of a unit and a precision → price of executing the unit in it, on float32 weights.

    The logit change of a value that several units quantize is divided among them, so that the sum over all
    units is the sum over all values, each counted once: exact where everything runs in one precision, the case that
    plans start from; a unit that is int8 alone is under-estimated. ``kl`` is measured with exactly the
    unit's own values quantized.

    Args:
        network, space, placement: of the search.
        quantizers: (value, precision) → quantizer.
        runner, effects: of the float32 network.
    """
    entries = {}
    for precision in executed_units(space):
        known = {key: q for (key, p), q in quantizers.items() if p == precision}
        entries.update(_priced(network, space, placement, precision, known, runner, effects))
    return entries


def price_name(unit: str, precision: str) -> str:
    """Names the price of executing a unit in a precision."""
    return f"{precision} {unit}"


def _priced(
    network: Network,
    space: SearchSpace,
    placement: Placement,
    precision: str,
    quantizers: Mapping[str, ActivationQuantizer],
    runner: PrefixRunner,
    effects: Effects,
) -> dict[str, Entry]:
    owners = value_owners(network, space, placement, precision)
    deltas: dict[str, np.ndarray] = {}
    for key, units in owners.items():
        share = effects.vector(runner.run_values({key: quantizers[key]})) / len(units)
        for unit in units:
            deltas[unit] = deltas[unit] + share if unit in deltas else share
    entries = {}
    for unit in executed_units(space)[precision]:
        own = quantized_values(network, executed_layers(space, [unit], precision), placement)
        kl = effects.loss(runner.run_values({key: quantizers[key] for key in own})) if own else 0.0
        delta = deltas.get(unit, np.zeros(effects.length, np.float32))
        entries[price_name(unit, precision)] = Entry(kl=kl, delta=delta, records={})
    return entries
