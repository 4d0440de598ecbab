from __future__ import annotations

from autocomp.core.hardware import Placement
from autocomp.graph.placement import quantized_values


def test_residual_network_for_onnx_runtime(traced):
    network = traced("residual")[1]
    chosen = quantized_values(network, dict.fromkeys(network.layers, "mse"), Placement())
    assert list(chosen) == [
        "input",
        "relu:relu:0",  # max pooling moves its elements: the same grid
        "layer1.0.relu:relu:0",
        "layer1.0.conv2:conv2d:0",
        "layer1.0.relu:relu:1",  # behind the addition
        "layer1.1.downsample.0:conv2d:0",
        "layer1.1.relu:relu:0",
        "layer1.1.conv2:conv2d:0",
        "layer1.1.relu:relu:1",
        "avgpool:adaptive_avg_pool2d:0",
    ]
    assert set(chosen.values()) == {"mse"}


def test_inputs_only(traced):
    network = traced("residual")[1]
    placement = Placement(outputs=False, elementwise=False, symmetric=True)
    chosen = quantized_values(network, {"layer1.0.conv2": "entropy", "fc": "minmax"}, placement)
    assert chosen == {"layer1.0.relu:relu:0": "entropy", ":flatten:0": "minmax"}


def test_one_layer_alone_does_not_quantize_the_addition(traced):
    network = traced("residual")[1]
    chosen = quantized_values(network, {"layer1.0.conv2": "mse"}, Placement())
    assert chosen == {"layer1.0.relu:relu:0": "mse", "layer1.0.conv2:conv2d:0": "mse"}


def test_concatenation_and_pooling(traced):
    network = traced("concat")[1]
    chosen = quantized_values(network, dict.fromkeys(network.layers, "mse"), Placement())
    assert ":cat:0" in chosen
    assert ":avg_pool2d:0" in chosen
    assert ":cat:0" not in quantized_values(network, {"left": "mse"}, Placement())


def test_the_output_stays_float(traced):
    for name in ("plain", "mlp", "attention", "shared"):
        network = traced(name)[1]
        chosen = quantized_values(network, dict.fromkeys(network.layers, "mse"), Placement())
        assert list(network.values)[-1] not in chosen


def test_both_calls_of_a_reused_module(traced):
    network = traced("shared")[1]
    chosen = quantized_values(network, {"again": "mse"}, Placement(outputs=False))
    assert list(chosen) == [":relu:1", ":relu:2"]


def test_without_a_graph(traced):
    assert quantized_values(traced("branch")[1], {"conv": "mse"}, Placement()) == {}
