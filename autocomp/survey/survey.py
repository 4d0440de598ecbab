"""The survey: every unit and every choice priced once, in one walk through the network."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping, Sequence
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
from autocomp.core.workload import Workload
from autocomp.errors import DataError
from autocomp.graph.capture import first_tensor
from autocomp.graph.partial import PrefixRunner
from autocomp.survey.database import Database, add_to_unit, readable, write_unit
from autocomp.survey.density import DensityCoder
from autocomp.survey.effects import Effects
from autocomp.survey.execution import candidate_values, executed_units, price_execution
from autocomp.survey.hessians import Hessians
from autocomp.survey.kept import Kept
from autocomp.survey.keys import FORMAT, execution_key, settings_key, structure_key, together_key, unit_key
from autocomp.survey.overheads import overheads
from autocomp.survey.pricing import Pricer
from autocomp.survey.stored import INDEX, Survey, load_survey
from autocomp.survey.structure import StructurePricer, structure_choices
from autocomp.survey.together import sizes_together
from autocomp.transforms.calibrate import calibrate_activations
from autocomp.transforms.recipe import recipe_of
from autocomp.transforms.stitch import float_encodings


def survey(
    workload: Workload,
    network: Network,
    space: SearchSpace,
    profile: HardwareProfile,
    *,
    calibration: Sequence[Tensor],
    sensitivity: int,
    cache: Path,
    shared: Path | None = None,
    progress: Progress | None = None,
    seed: int = 0,
) -> Survey:
    """Price every (unit, choice) of the space: coded bytes, KL and logit change.

    Each unit's tensors and prices are written when they are done. Another call goes on from there, and a
    space with other choices prices only those that are new.

    Args:
        workload: gives the number of classes and what the file's manifest says.
        network: folded and traced from the workload's model.
        space: what to price.
        profile: gives the placement of activation quantizers.
        calibration: inputs [n, ...] in batches, for Hessians, statistics and ranges.
        sensitivity: logit changes are measured on the first so many of them.
        cache: the run's folder; the index of the results goes there.
        shared: folder of the results, named by what they depend on: other runs may use it at the same time;
            default: ``cache``.
        progress: one step a unit.
        seed: of the sketch and of sampled positions.

    Raises:
        DataError: no calibration images, or outputs that are not finite.
        StorageError: the cache cannot be written.
    """
    progress = progress or Silent()
    if not calibration or not sum(len(b) for b in calibration):
        raise DataError("no calibration images; give at least one")
    images = torch.cat(list(calibration))
    few = images[:sensitivity]
    key = settings_key(workload, network, images, len(few), seed)
    folder = (shared or cache) / "survey"
    files = {unit.name: folder / f"{unit_key(key, network, unit)}.unit" for unit in space.units.values()}
    choices = {unit.name: space.storage_choices(unit) for unit in space.units.values()}
    missing = {name: _missing(files[name], choices[name]) for name in files}
    activations = folder / f"{execution_key(key, network, space, profile)}.unit"
    executes = bool(executed_units(space))
    todo = [name for name, unknown in missing.items() if unknown]
    structural = structure_choices(space)
    structures = {n: folder / f"{structure_key(key, network, space, n)}.unit" for n in structural}
    unpriced = [n for n, file in structures.items() if _missing(file, structural[n])]
    execution_done = not executes or readable(activations) is not None
    total = len(files) + executes + len(structural)
    left = len(todo) + (executes and not execution_done) + len(unpriced)
    progress.stage("survey", total=total, done=total - left)
    tensors, kept = float_encodings(network), Kept()
    hessians = Hessians(network, images, seed=seed)
    if todo or unpriced or not execution_done:
        with torch.inference_mode():
            reference = first_tensor(network.module(few)).float()
        effects = Effects(reference=reference, classes=workload.classes, seed=seed)
    if todo:
        pricer = Pricer(
            network=network,
            float_tensors=tensors,
            hessians=hessians,
            sensitivity=PrefixRunner(network, few),
            images=few,
            effects=effects,
            kept=kept,
            seed=seed,
        )
        _price_units(pricer, space, missing, files, progress)
        del pricer
    if unpriced:
        _price_structures(
            StructurePricer(
                network=network,
                recipe=recipe_of(space),
                hessians=hessians,
                sensitivity=PrefixRunner(network, few),
                batches=calibration[:1],
                effects=effects,
                coder=DensityCoder(network=network, space=space, seed=seed),
                seed=seed,
            ),
            {n: structural[n] for n in unpriced},
            structures,
            progress,
        )
    del hessians
    quantizers = _calibrated(network, space, profile, calibration)
    if not execution_done:
        begin = time.perf_counter()
        runner = PrefixRunner(network, few)
        priced = price_execution(network, space, profile.placement, quantizers, runner, effects)
        write_unit(activations, priced, time.perf_counter() - begin)
        progress.advance()
    together = folder / f"{together_key(files, choices)}.json"
    sizes = sizes_together(network, choices, Database(files, kept), calibration[:1], together)
    fixed, lines = overheads(workload, network, space, tensors, quantizers, profile.placement)
    index = {
        "format": FORMAT,
        # relative: a folder that holds both may be moved; and no ".." may lead through a link
        "folder": os.path.relpath(os.path.realpath(folder), os.path.realpath(cache)),
        "units": {name: path.name for name, path in files.items()},
        "execution": activations.name if executes else None,
        "structure": {name: path.name for name, path in structures.items()},
        "quantizers": [[k, q.to_json()] for (k, _), q in quantizers.items()],
        "bytes": sizes,
        "fixed_bytes": fixed,
        "lines": [[[sorted(names) for names in line.owners], line.bytes] for line in lines],
    }
    with storage_errors(cache):
        write_atomic(cache / INDEX, json.dumps(index).encode())
    found = load_survey(network, space, cache, kept)
    for unit, prices in found.prices.storage.items():
        lost = len(space.storage_choices(space.units[unit])) - len(prices.choices)
        if lost:
            progress.note(f"{unit}: {lost} choices left out: the network's outputs are not finite with them")
    return found


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
        if unit is None or not missing[unit.name]:
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


def _missing(path: Path, choices: Sequence[Choice]) -> list[Choice]:
    """Choices that the file does not hold."""
    file = readable(path)
    return [c for c in choices if file is None or c.key() not in file]
