from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import weight_norm

from autocomp.errors import DataError
from autocomp.graph.capture import first_tensor
from autocomp.graph.program import Program
from autocomp.graph.trace import build_network
from autocomp.testing.networks import EXAMPLES, MLP, PlainCNN, example, randomised

ROUNDING = 1e-5  # float32 sums of at most a few hundred terms of order one


@pytest.mark.parametrize("name", EXAMPLES)
def test_outputs_are_the_original_ones(traced, name):
    model, network, inputs = traced(name)
    expected = first_tensor(model(inputs))
    torch.testing.assert_close(first_tensor(network.module(inputs)), expected, rtol=ROUNDING, atol=ROUNDING)
    if network.graph is not None:
        for batch in (inputs, inputs[:1]):
            out = Program(network.graph).run(batch)
            torch.testing.assert_close(out, expected[: len(batch)], rtol=ROUNDING, atol=ROUNDING)


@pytest.mark.parametrize("name", EXAMPLES)
def test_shapes_and_parameters(traced, name):
    model, network, inputs = traced(name)
    state = network.module.state_dict()
    for layer in network.layers.values():
        assert layer.weight_shape == tuple(state[layer.weight].shape)
        bias = state[layer.bias].numel() if layer.bias else 0
        assert layer.parameters == math.prod(layer.weight_shape) + bias
        assert layer.name not in {s.name for s in network.skipped}
    assert network.input_shape == tuple(inputs.shape[1:])
    assert not any(p.requires_grad for p in network.module.parameters())
    assert all(p.requires_grad for p in model.parameters() if p.is_floating_point())


def test_macs_by_hand(traced):
    layers = traced("plain")[1].layers
    assert layers["conv1"].macs == 8 * 8 * 8 * 3 * 9
    assert layers["conv2"].macs == 12 * 3 * 3 * 8 * 9
    assert layers["fc"].macs == 48 * 5
    assert traced("depthwise")[1].layers["depthwise.0"].macs == 12 * 8 * 8 * 9
    # each of the 12 x 8 x 8 inputs reaches 2 outputs of its group through a 2 x 2 kernel
    assert traced("depthwise")[1].layers["up"].macs == 12 * 64 * 2 * 4
    assert traced("shared")[1].layers["again"].macs == 2 * 36
    assert traced("attention")[1].layers["qkv"].macs == 7 * 8 * 24


def test_folding(traced):
    model, network, _ = traced("residual")
    assert set(network.folds) == set(network.layers) - {"fc"}
    fold = network.folds["layer1.0.conv1"]
    norm = model.layer1[0].bn1
    assert torch.equal(fold.mean, norm.bias)
    assert torch.equal(fold.std, norm.weight.abs())
    assert isinstance(network.module.layer1[0].bn1, nn.Identity)
    assert isinstance(norm, nn.BatchNorm2d)
    plain = traced("plain")[1].folds["conv2"]  # without affine parameters
    assert torch.equal(plain.mean, torch.zeros(12))
    assert torch.equal(plain.std, torch.ones(12))


def test_pre_activation_norm_stays(traced):
    network = traced("preactivation")[1]
    assert set(network.folds) == {"conv1"}
    reasons = {s.name: s.reason for s in network.skipped}
    assert "other readers" in reasons["bn1"]
    assert isinstance(network.module.bn1, nn.BatchNorm2d)


def test_zero_gamma_folds():
    model = randomised(PlainCNN())
    model.bn1.weight.data[3] = 0.0
    inputs = torch.randn(2, 3, 8, 8)
    network = build_network(model, inputs)
    assert not network.module.conv1.weight[3].any()
    torch.testing.assert_close(network.module(inputs), model(inputs), rtol=ROUNDING, atol=ROUNDING)


def test_shared_and_reused(traced):
    network = traced("shared")[1]
    assert list(network.layers) == ["first", "again", "fc"]
    assert network.layers["first"].aliases == ("second",)
    assert network.layers["first"].calls == network.layers["again"].calls == 2
    tied = traced("tokens")[1].layers["head"]
    assert (tied.kind, tied.weight, tied.aliases, tied.calls) == ("linear", "embed.weight", ("embed",), 1)


def test_data_dependent_branch_has_layers_but_no_graph(traced, capfd):
    network = build_network(*example("branch"))
    assert network.graph is None
    assert "data-dependent" in network.no_graph
    assert "\n" not in network.no_graph
    assert network.layers["conv"].output_shape == (8, 6, 6)
    assert network.layers["conv"].macs == 8 * 36 * 27
    assert not network.folds
    assert "without a graph" in {s.name: s.reason for s in network.skipped}["bn"]
    assert capfd.readouterr() == ("", "")


def test_keys_do_not_depend_on_node_names(traced):
    values = traced("residual")[1].values
    assert list(values)[:4] == ["input", "conv1:conv2d:0", "relu:relu:0", "maxpool:max_pool2d:0"]
    assert values["layer1.0.relu:relu:1"].producers == ("layer1.0:add:0",)
    assert values["layer1.0:add:0"].producers == ("layer1.0.conv2:conv2d:0", "maxpool:max_pool2d:0")
    assert values["layer1.0.relu:relu:1"].nonnegative
    assert values["avgpool:adaptive_avg_pool2d:0"].nonnegative
    assert not values["layer1.0:add:0"].nonnegative
    layer = traced("residual")[1].layers["layer1.0.conv1"]
    assert (layer.input_value, layer.output_value) == ("maxpool:max_pool2d:0", "layer1.0.relu:relu:0")


class InPlace(nn.Module):
    """Later readers of a tensor see what was written into it, also through views."""

    def __init__(self, through_view: bool) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 1)
        self.out = nn.Conv2d(4, 4, 1)
        self.through_view = through_view

    def forward(self, x):
        y = self.conv(x)
        z = y.flatten(2) if self.through_view else y
        z.relu_()
        y.add_(1.0)
        return self.out(y) + y


@pytest.mark.parametrize("through_view", [False, True])
def test_in_place_operations_become_functional(through_view):
    model, inputs = randomised(InPlace(through_view)), torch.randn(3, 3, 4, 4)
    network = build_network(model, inputs)
    assert network.graph is not None
    torch.testing.assert_close(Program(network.graph).run(inputs), model(inputs), rtol=ROUNDING, atol=ROUNDING)
    names = [str(n.target) for n in network.graph.graph.nodes]
    assert not any("_." in name for name in names)
    assert set(network.layers) == {"conv", "out"}


class Counting(nn.Module):
    """Changes a buffer in eval mode."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 4)
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, x):
        self.seen += 1
        return self.fc(x) + self.seen * 0


class Odd(nn.Module):
    """Parts that cannot be compressed by name."""

    def __init__(self) -> None:
        super().__init__()
        self.normed = weight_norm(nn.Linear(4, 4))
        self.lstm = nn.LSTM(4, 4, batch_first=True)
        self.outside = nn.Linear(4, 4)
        self.unused = nn.Linear(4, 4)
        self.raw = nn.Parameter(torch.ones(4, 4))
        self.shared_norm = nn.BatchNorm1d(4)
        self.a = nn.Linear(4, 4)
        self.b = nn.Linear(4, 4)

    def forward(self, x):
        x = self.normed(x) + self.outside(x) * self.outside.weight.mean()
        x = self.lstm(x[:, None])[0][:, 0] @ self.raw
        return self.shared_norm(self.a(x)) + self.shared_norm(self.b(x))


def test_what_cannot_be_handled_is_named():
    model = randomised(Odd())
    inputs = torch.randn(2, 4)
    network = build_network(model, inputs)
    reasons = {s.name: s.reason for s in network.skipped}
    assert set(network.layers) == {"a", "b"}
    assert not network.folds
    assert "other parameters" in reasons["normed"]
    assert "LSTM" in reasons["lstm"]
    assert "outside" in reasons["outside"]
    assert "does not run" in reasons["unused"]
    assert "more than once" in reasons["shared_norm"]
    torch.testing.assert_close(network.module(inputs), model(inputs), rtol=ROUNDING, atol=ROUNDING)


def test_module_with_state_has_no_graph():
    network = build_network(randomised(Counting()), torch.randn(2, 4))
    assert network.graph is None
    assert "writes in place" in network.no_graph
    assert list(network.layers) == ["fc"]


def test_second_reader_of_a_weight_prevents_folding():
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 3, 1, bias=False)
            self.bn = nn.BatchNorm2d(3)

        def forward(self, x):
            return self.bn(self.conv(F.relu(self.conv(x))))

    model, inputs = randomised(Twice()), torch.randn(2, 3, 4, 4)
    network = build_network(model, inputs)
    assert not network.folds
    assert network.layers["conv"].calls == 2
    torch.testing.assert_close(network.module(inputs), model(inputs))


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_weights_that_are_not_finite(value):
    model = MLP()
    model.layers[1].weight.data[0, 0] = value
    with pytest.raises(DataError, match=r"layers\.1\.weight"):
        build_network(model, torch.randn(1, 1, 4, 4))


def test_input_that_does_not_fit():
    with pytest.raises(DataError, match=r"\(1, 5, 8, 8\)") as caught:
        build_network(PlainCNN(), torch.randn(1, 5, 8, 8))
    assert "\n" not in str(caught.value)


def test_training_mode_and_half_precision_models():
    model = randomised(PlainCNN()).train().half()
    network = build_network(model, torch.randn(1, 3, 8, 8).half())
    assert model.training
    assert network.module.conv1.weight.dtype == torch.float32
    assert set(network.folds) == {"conv1", "conv2"}
