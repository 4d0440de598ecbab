"""A compressed network as a file: the manifest that goes with its tensors, and the way back."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from autocomp.coding.container import pack_artifact, read_artifact, write_artifact
from autocomp.coding.tensors import encode_tensor, with_scale
from autocomp.core.candidate import Candidate
from autocomp.core.compressed import ActivationQuantizer, CompressedModel
from autocomp.core.edits import Edit, edit_from_json
from autocomp.core.encodings import ScaledEncoding
from autocomp.core.network import Network
from autocomp.core.workload import Workload


def manifest(workload: Workload, network: Network, compressed: CompressedModel) -> dict[str, Any]:
    """What a reader needs besides the tensors. Hints only: nothing in it is ever executed."""
    return {
        "model": workload.model_spec,
        "classes": workload.classes,
        "input": list(network.input_shape),
        **({"dtype": network.input_dtype} if network.input_dtype != "float32" else {}),
        "folds": [[f.layer, f.norm] for f in network.folds.values()],
        **({"edits": [e.to_json() for e in compressed.edits]} if compressed.edits else {}),
        "activations": {k: q.to_json() for k, q in sorted(compressed.activations.items())},
    }


def activations_of(data: Mapping[str, Any]) -> dict[str, ActivationQuantizer]:
    """Quantizers of a manifest."""
    return {k: ActivationQuantizer.from_json(v) for k, v in data["activations"].items()}


def edits_of(data: Mapping[str, Any]) -> tuple[Edit, ...]:
    """Structural edits of a manifest."""
    return tuple(edit_from_json(e) for e in data.get("edits", ()))


def read_compressed(path: Path, candidate: Candidate) -> CompressedModel:
    """The network in a file."""
    artifact = read_artifact(path)
    return CompressedModel(
        candidate=candidate,
        tensors=artifact.tensors(),
        activations=activations_of(artifact.manifest),
        edits=edits_of(artifact.manifest),
        steps=("loaded",),
    )


def records(compressed: CompressedModel, known: Mapping[str, bytes] | None = None) -> dict[str, bytes]:
    """Coded tensors by name.

    Args:
        compressed: the network.
        known: records of the same symbols under other scales (from the survey): only their scales are
            written anew, the coded symbols are reused.
    """
    out = {}
    for name, encoding in compressed.tensors.items():
        if known is not None and name in known and isinstance(encoding, ScaledEncoding):
            out[name] = with_scale(known[name], encoding)
        else:
            out[name] = encode_tensor(encoding)
    return out


def pack(workload: Workload, network: Network, compressed: CompressedModel, coded: dict[str, bytes]) -> bytes:
    """The bytes of the file."""
    return pack_artifact(manifest(workload, network, compressed), coded)


def save(path: Path, workload: Workload, network: Network, compressed: CompressedModel, coded: dict[str, bytes]) -> int:
    """Write the file atomically; returns ``os.stat(path).st_size``."""
    return write_artifact(path, manifest(workload, network, compressed), coded)
