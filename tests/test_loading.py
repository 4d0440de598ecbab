"""Files of networks with token ids and shared weights, loaded into another instance of their class."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from autocomp.core.candidate import Candidate
from autocomp.core.compressed import CompressedModel
from autocomp.core.workload import Workload
from autocomp.errors import CorruptFileError, DataError
from autocomp.evaluators import artifact
from autocomp.graph.simulate import simulated
from autocomp.graph.trace import build_network, stand_in
from autocomp.loading import load
from autocomp.testing.networks import EXAMPLES, MLP, example
from autocomp.transforms.stitch import float_encodings
from autocomp.workloads.metrics import mse
from autocomp.workloads.splits import TensorSplit


def written(name: str, path: Path, **changes: object) -> torch.Tensor:
    """Write a float32 network of the examples; returns its outputs."""
    model, inputs = example(name)
    network = build_network(model, inputs)
    compressed = CompressedModel(candidate=Candidate({}), tensors=float_encodings(network))
    with torch.no_grad():
        outputs: torch.Tensor = simulated(network, compressed)(inputs)
    split = TensorSplit(inputs=inputs, targets=outputs)
    workload = Workload(
        name=name, model=model, model_spec=name, calibration=split, search=split, test=split, metric=mse()
    )
    manifest = {**artifact.manifest(workload, network, compressed), **changes}
    path.write_bytes(artifact.pack_artifact(manifest, artifact.records(compressed)))
    return outputs


@pytest.mark.parametrize("name", ["tokens", "shared", "residual"])
def test_another_instance_computes_the_same_with_the_files_weights(name: str, tmp_path: Path) -> None:
    expected = written(name, tmp_path / "x.autocomp")
    other, _ = example(name, seed=5)
    _, inputs = example(name)
    loaded = load(tmp_path / "x.autocomp", into=other)
    with torch.no_grad():
        assert torch.equal(loaded(inputs), expected)
        assert not torch.allclose(other(inputs), expected)


def test_the_type_of_inputs_is_in_the_file_where_it_is_not_float32(tmp_path: Path) -> None:
    written("tokens", tmp_path / "tokens.autocomp")
    written("mlp", tmp_path / "mlp.autocomp")
    assert artifact.read_artifact(tmp_path / "tokens.autocomp").manifest["dtype"] == "int64"
    assert "dtype" not in artifact.read_artifact(tmp_path / "mlp.autocomp").manifest
    written("mlp", tmp_path / "mlp.autocomp", dtype="complex64")
    with pytest.raises(CorruptFileError, match="complex64"):
        load(tmp_path / "mlp.autocomp", into=MLP())


def test_a_weight_that_only_the_file_shares_is_missed(tmp_path: Path) -> None:
    written("shared", tmp_path / "x.autocomp")
    untied = EXAMPLES["shared"][0]()
    untied.second.weight = torch.nn.Parameter(untied.second.weight.detach().clone())
    with pytest.raises(DataError, match=re.escape("holds no second.weight (and 0 more)")):
        load(tmp_path / "x.autocomp", into=untied)


def test_stand_in_inputs_are_ids_that_every_embedding_has() -> None:
    model, inputs = example("tokens")
    network = build_network(model, inputs)
    assert network.input_dtype == "int64"
    ids = stand_in(network, 50)
    assert ids.dtype == torch.int64
    assert set(ids.flatten().tolist()) == set(range(11))
    assert stand_in(build_network(*example("mlp")), 2).dtype == torch.float32
