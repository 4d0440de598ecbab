"""Load an artifact as a PyTorch network. Nothing in the file is executed."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from autocomp.errors import CorruptFileError, DataError

if TYPE_CHECKING:
    from torch import nn


def load(path: str | Path, *, into: nn.Module | None = None, activations: bool = True) -> nn.Module:
    """The network that the file holds, in evaluation mode.

    Args:
        path: an ``.autocomp`` file.
        into: an untrained instance of your own class; the file's structure (folded BatchNorms) and
            tensors are put on a copy of it. Not needed for built-in models: they are rebuilt by name.
        activations: also simulate the 8-bit activations the network was searched with (what the report
            scored; on a target that works in float16 the report rounded every other result to that as well).
            False: compressed weights in float32 execution.

    Returns:
        A module with the same inputs and outputs as the trained one.

    Raises:
        CorruptFileError: the file is damaged.
        DataError: ``into`` has other layers than the file, or is needed and missing.
    """
    import torch

    from autocomp.coding.container import read_artifact
    from autocomp.core.candidate import Candidate
    from autocomp.core.compressed import CompressedModel
    from autocomp.evaluators.artifact import activations_of, edits_of
    from autocomp.graph.replay import attach
    from autocomp.graph.simulate import simulated
    from autocomp.workloads.load import rebuild_model

    artifact = read_artifact(Path(path))
    try:
        folds = [(str(a), str(b)) for a, b in artifact.manifest["folds"]]
        shape = tuple(int(n) for n in artifact.manifest["input"])
        dtype = {"float32": torch.float32, "int64": torch.int64, "int32": torch.int32}[
            artifact.manifest.get("dtype", "float32")
        ]
        quantizers, edits = activations_of(artifact.manifest), edits_of(artifact.manifest)
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise CorruptFileError(f"{path}: the manifest lacks or garbles {error}; get the file again") from error
    if into is None:
        into = rebuild_model(str(artifact.manifest.get("model")), artifact.manifest.get("classes"))
    network = attach(into, folds, shape, dtype, edits=edits)
    tensors = artifact.tensors()
    state = network.module.state_dict(keep_vars=True)
    for name, encoding in tensors.items():
        if name not in state:
            raise DataError(
                f"{path} holds {name}, which the given network does not have: pass the class it was made from"
            )
        if state[name].shape != encoding.decode().shape:
            raise DataError(
                f"{path}: {name} is {list(encoding.decode().shape)}, the given network's is {list(state[name].shape)}"
            )
    held = {id(state[name]) for name in tensors}  # a shared tensor is stored under one of its names
    missing = [n for n, t in state.items() if t.is_floating_point() and id(t) not in held]
    if missing:
        raise DataError(f"{path} holds no {missing[0]} (and {len(missing) - 1} more): the given network is another one")
    compressed = CompressedModel(
        candidate=Candidate({}), tensors=tensors, activations=quantizers if activations else {}, steps=("loaded",)
    )
    return simulated(network, compressed).eval()
