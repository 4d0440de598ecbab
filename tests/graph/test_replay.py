from __future__ import annotations

import pytest
import torch

from autocomp.core.candidate import Candidate
from autocomp.core.compressed import CompressedModel
from autocomp.core.encodings import FloatTensor
from autocomp.errors import DataError
from autocomp.graph.capture import first_tensor
from autocomp.graph.replay import attach
from autocomp.graph.simulate import simulated
from autocomp.testing.networks import EXAMPLES, PlainCNN, ResidualNet


@pytest.mark.parametrize("name", EXAMPLES)
def test_fresh_module_takes_the_stored_tensors(traced, name):
    model, network, inputs = traced(name)
    fresh = EXAMPLES[name][0]()
    folds = [(f.layer, f.norm) for f in network.folds.values()]
    again = attach(fresh, folds, network.input_shape, inputs.dtype)
    assert again.layers == network.layers
    assert list(again.values) == list(network.values)
    stored = {k: FloatTensor(values=v) for k, v in network.module.state_dict().items() if v.is_floating_point()}
    small = simulated(again, CompressedModel(candidate=Candidate({}), tensors=stored))
    torch.testing.assert_close(first_tensor(small(inputs)), first_tensor(model(inputs)), rtol=1e-5, atol=1e-5)


def test_only_recorded_norms_are_folded():
    network = attach(PlainCNN(), [("conv2", "bn2")], (3, 8, 8))
    assert isinstance(network.module.bn1, torch.nn.BatchNorm2d)
    assert network.layers["conv1"].bias is None
    assert network.layers["conv2"].bias == "conv2.bias"


@pytest.mark.parametrize(
    ("folds", "shape", "message"),
    [
        ([("conv9", "bn1")], (3, 8, 8), "conv9"),
        ([("conv1", "bn2")], (3, 8, 8), "12 channels"),
        ([("conv1", "fc")], (3, 8, 8), "Linear"),
        ([], (4, 8, 8), "does not run"),
    ],
)
def test_another_architecture(folds, shape, message):
    with pytest.raises(DataError, match=message):
        attach(PlainCNN(), folds, shape)
    with pytest.raises(DataError):
        attach(ResidualNet(), [("layer1.0.conv3", "layer1.0.bn3")], (3, 12, 12))
