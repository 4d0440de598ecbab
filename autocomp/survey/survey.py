"""The survey: every unit and every choice priced once, in one walk through the network."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from autocomp.core.compressed import ActivationQuantizer
from autocomp.core.hardware import HardwareProfile
from autocomp.core.network import Network
from autocomp.core.progress import Progress, Silent
from autocomp.core.run_folder import storage_errors, write_atomic
from autocomp.core.space import SearchSpace, unit_and_axis
from autocomp.core.steps import Choice
from autocomp.graph.capture import first_tensor
from autocomp.graph.partial import PrefixRunner
from autocomp.survey.database import Database, add_to_unit, write_unit
from autocomp.survey.density import DensityCoder
from autocomp.survey.effects import Effects
from autocomp.survey.execution import candidate_values, executed_units, price_execution
from autocomp.survey.hessians import Hessians
from autocomp.survey.kept import Kept
from autocomp.survey.keys import FORMAT, together_key
from autocomp.survey.order import Order
from autocomp.survey.overheads import overheads
from autocomp.survey.pricing import Pricer
from autocomp.survey.stored import INDEX, Survey, load_survey
from autocomp.survey.structure import StructurePricer
from autocomp.survey.together import sizes_together
from autocomp.transforms.calibrate import calibrate_activations
from autocomp.transforms.recipe import recipe_of
from autocomp.transforms.stitch import float_encodings


def survey(order: Order, progress: Progress | None = None) -> Survey:
    """Price every (unit, choice) of the space: coded bytes, KL and logit change.

    Each unit's tensors and prices are written when they are done. Another call goes on from there, and a
    space with other choices prices only those that are new.

    Args:
        order: what is priced, and where the results lie.
        progress: one step a unit.

    Raises:
        DataError: outputs that are not finite.
        StorageError: the cache cannot be written.
    """
    progress = progress or Silent()
    kept = Kept()
    missing = len(order.missing_units()) + len(order.missing_structures()) + order.missing_execution()
    progress.stage("survey", total=order.total(), done=order.total() - missing)
    price(order, progress=progress, kept=kept)
    network, space = order.network, order.space
    quantizers = _calibrated(network, space, order.profile, order.calibration)
    if order.execution is not None and order.missing_execution():
        begin = time.perf_counter()
        runner = PrefixRunner(network, order.few)
        priced = price_execution(network, space, order.profile.placement, quantizers, runner, _effects(order))
        write_unit(order.execution, priced, time.perf_counter() - begin)
        progress.advance()
    together = order.folder / f"{together_key(order.units, order.choices)}.json"
    sizes = sizes_together(network, order.choices, Database(order.units, kept), order.calibration[:1], together)
    tensors = float_encodings(network)
    fixed, lines = overheads(order.workload, network, space, tensors, quantizers, order.profile.placement)
    index = {
        "format": FORMAT,
        # relative: a folder that holds both may be moved; and no ".." may lead through a link
        "folder": os.path.relpath(os.path.realpath(order.folder), os.path.realpath(order.cache)),
        "units": {name: path.name for name, path in order.units.items()},
        "execution": order.execution.name if order.execution is not None else None,
        "structure": {name: path.name for name, path in order.structures.items()},
        "quantizers": [[k, q.to_json()] for (k, _), q in quantizers.items()],
        "bytes": sizes,
        "fixed_bytes": fixed,
        "lines": [[[sorted(names) for names in line.owners], line.bytes] for line in lines],
    }
    with storage_errors(order.cache):
        write_atomic(order.cache / INDEX, json.dumps(index).encode())
    found = load_survey(network, space, order.cache, kept)
    for unit, prices in found.prices.storage.items():
        lost = len(space.storage_choices(space.units[unit])) - len(prices.choices)
        if lost:
            progress.note(f"{unit}: {lost} choices left out: the network's outputs are not finite with them")
    return found


def unpriced(order: Order) -> list[str]:
    """Units and structural decisions ("<unit>:<axis>") that :func:`price` would price."""
    return [*order.missing_units(), *order.missing_structures()]


def price(
    order: Order,
    *,
    names: Collection[str] | None = None,
    progress: Progress | None = None,
    kept: Kept | None = None,
) -> None:
    """Price what is missing of the units and structural decisions, and write it.

    Args:
        order: what is priced, and where the results lie.
        names: of units and structural decisions; None: all of them.
        progress: one step each.
        kept: gets the tensors.
    """
    progress = progress or Silent()
    units = {n: c for n, c in order.missing_units().items() if names is None or n in names}
    structures = [n for n in order.missing_structures() if names is None or n in names]
    if not units and not structures:
        return
    network, seed, few = order.network, order.seed, order.few
    hessians = Hessians(network, order.images, seed=seed)
    effects = _effects(order)
    if units:
        pricer = Pricer(
            network=network,
            float_tensors=float_encodings(network),
            hessians=hessians,
            sensitivity=PrefixRunner(network, few),
            images=few,
            effects=effects,
            kept=kept or Kept(),
            seed=seed,
        )
        _price_units(pricer, order.space, units, order.units, progress)
        del pricer
    if structures:
        _price_structures(
            StructurePricer(
                network=network,
                recipe=recipe_of(order.space),
                hessians=hessians,
                sensitivity=PrefixRunner(network, few),
                batches=order.calibration[:1],
                effects=effects,
                coder=DensityCoder(network=network, space=order.space, seed=seed),
                seed=seed,
            ),
            {n: order.structural[n] for n in structures},
            order.structures,
            progress,
        )


def _effects(order: Order) -> Effects:
    with torch.inference_mode():
        reference = first_tensor(order.network.module(order.few)).float()
    return Effects(reference=reference, classes=order.workload.classes, seed=order.seed)


# the walk


def _price_units(
    pricer: Pricer,
    space: SearchSpace,
    missing: Mapping[str, list[Choice]],
    files: Mapping[str, Path],
    progress: Progress,
) -> None:
    """Visit the layers in order of execution; write each unit's file when its prices are known."""
    owner = {layer: unit for unit in space.units.values() for layer in unit.layers}
    spent: dict[str, float] = {}
    for name, layer in pricer.network.layers.items():
        unit = owner.get(name)
        if unit is None or unit.name not in missing:
            continue
        begin = time.perf_counter()
        entries = pricer.visit(layer, unit, missing[unit.name])
        spent[unit.name] = spent.get(unit.name, 0.0) + time.perf_counter() - begin
        if entries is not None:
            if not add_to_unit(files[unit.name], {c.key(): e for c, e in entries.items()}, spent[unit.name]):
                pricer.kept.forget(unit.name)  # the file's tensors are another process's
            progress.advance(unit=unit.name)


def _price_structures(
    pricer: StructurePricer,
    choices: Mapping[str, tuple[Choice, ...]],
    files: Mapping[str, Path],
    progress: Progress,
) -> None:
    """Measure structural decisions; write each one's file when it is known."""
    for name, options in choices.items():
        begin = time.perf_counter()
        entries = pricer.price(unit_and_axis(name)[0], options)
        write_unit(files[name], entries, time.perf_counter() - begin)
        progress.advance(unit=name)


def _calibrated(
    network: Network, space: SearchSpace, profile: HardwareProfile, calibration: Sequence[Tensor]
) -> dict[tuple[str, str], ActivationQuantizer]:
    """(value, precision) → quantizer, of every value that a candidate may quantize so."""
    found = {}
    for precision in executed_units(space):
        values = candidate_values(network, space, profile.placement, precision)
        made = calibrate_activations(network, values, calibration, symmetric=profile.placement.symmetric)
        found.update({(key, precision): quantizer for key, quantizer in made.items()})
    return found
