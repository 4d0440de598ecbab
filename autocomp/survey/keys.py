"""Names of the survey's files: hashes of everything that what is in them depends on."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import autocomp
from autocomp.coding.tensors import encode_tensor
from autocomp.core.encodings import QuantizedTensor
from autocomp.core.hardware import HardwareProfile
from autocomp.core.network import Network
from autocomp.core.space import SearchSpace, Unit, unit_and_axis
from autocomp.core.steps import Choice
from autocomp.core.workload import Workload
from autocomp.survey.execution import executed_layers, executed_units
from autocomp.transforms.recipe import recipe_of

FORMAT = 3  # of what is priced and how; another value prices everything anew


def _digest(*parts: Any) -> str:
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()[:24]


def _tensors(network: Network) -> hashlib._Hash:
    """Hash, to be continued, of names and values of everything that the module holds."""
    content = hashlib.sha256()
    for name, tensor in network.module.state_dict().items():
        content.update(name.encode())
        content.update(tensor.detach().cpu().contiguous().numpy().data)
    return content


def coupling_key(network: Network) -> str:
    """Of the coupled groups of a network with a graph: its classes and sizes, operations, weights and inputs."""
    assert network.graph is not None
    form = (repr(network.module), str(network.graph.graph), network.input_shape, network.input_dtype)
    versions = (FORMAT, autocomp.__version__, torch.__version__, version("torch-pruning"))
    return _digest("coupling", _tensors(network).hexdigest(), form, versions)


def settings_key(workload: Workload, network: Network, images: Tensor, sensitivity: int, seed: int) -> str:
    """Hash of everything but the space that prices depend on."""
    content = _tensors(network)
    content.update(images.contiguous().numpy().data)
    # records are read back later, perhaps by another version: another coder's output is another key
    probe = QuantizedTensor(symbols=torch.arange(-40, 41, dtype=torch.int16) // 5, scale=torch.ones(1))
    versions = (FORMAT, autocomp.__version__, torch.__version__, encode_tensor(probe).hex())
    return _digest(content.hexdigest(), workload.fingerprint, workload.classes, sensitivity, seed, versions)


def unit_key(key: str, network: Network, unit: Unit) -> str:
    """Of a unit's tensors and prices."""
    return _digest(key, [(n, network.layers[n].weight) for n in unit.layers])


def structure_key(key: str, network: Network, space: SearchSpace, name: str) -> str:
    """Of the prices of one structural decision ("<unit>:<axis>")."""
    unit, axis = unit_and_axis(name)
    options = [None if o is None else o.to_json() for o in space.units[unit].axes[axis]]
    return _digest(key, "structure", space.units[unit].layers, axis, options, recipe_of(space).multiple)


def together_key(files: Mapping[str, Path], choices: Mapping[str, Sequence[Choice]]) -> str:
    """Of the sizes of restored tensors: they depend on what all units may become."""
    return _digest("together", {u: [path.name, [c.key() for c in choices[u]]] for u, path in files.items()})


def execution_key(key: str, network: Network, space: SearchSpace, profile: HardwareProfile) -> str:
    """Of the prices of 8-bit execution."""
    units = executed_units(space)
    layers = [executed_layers(space, named, precision) for precision, named in units.items()]
    members = {precision: [(u, space.units[u].layers) for u in named] for precision, named in units.items()}
    return _digest(key, "execution", layers, members, repr(profile.placement))
