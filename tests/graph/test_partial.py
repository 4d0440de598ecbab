from __future__ import annotations

import pytest
import torch

from autocomp.core.candidate import Candidate
from autocomp.core.compressed import ActivationQuantizer, CompressedModel
from autocomp.core.hardware import Placement
from autocomp.errors import UnsupportedError
from autocomp.graph.capture import first_tensor
from autocomp.graph.partial import PrefixRunner
from autocomp.graph.program import Program
from autocomp.graph.simulate import simulated
from autocomp.testing.candidates import int8_candidate
from autocomp.testing.networks import EXAMPLES

PLAIN = CompressedModel(candidate=Candidate({}), tensors={})


@pytest.mark.parametrize("name", EXAMPLES)
def test_suffix_runs_equal_full_runs(traced, name):
    _, network, inputs = traced(name)
    state = network.module.state_dict()
    runner = PrefixRunner(network, inputs)
    assert runner.layers() == list(network.layers)
    for layer in network.layers.values():
        runner.at(layer.name)
        changed = {layer.weight: state[layer.weight].sign() * 0.1}
        if layer.bias:
            changed[layer.bias] = state[layer.bias] + 0.5
        expected = first_tensor(torch.func.functional_call(network.module, changed, (inputs,)))
        out = runner.run(changed[layer.weight], changed.get(layer.bias or ""))
        torch.testing.assert_close(out, expected, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(runner.run(), first_tensor(network.module(inputs)), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["residual", "shared", "branch", "tokens"])
def test_layer_inputs_and_output(traced, name):
    _, network, inputs = traced(name)
    state = network.module.state_dict()
    runner = PrefixRunner(network, inputs)
    for layer in network.layers.values():
        runner.at(layer.name)
        seen = runner.layer_inputs()
        assert len(seen) == layer.calls
        assert tuple(seen[0].shape[1:]) == layer.input_shape
        module = network.module.get_submodule(layer.name)
        torch.testing.assert_close(runner.layer_output()[0], module(seen[0]), rtol=1e-5, atol=1e-5)
        if layer.aliases:
            continue  # another reader of the weight changes what this layer reads
        doubled = runner.layer_output(2 * state[layer.weight])[0]
        bias = state[layer.bias] if layer.bias else torch.zeros(())
        bias = bias.reshape(-1, *[1] * (doubled.dim() - 2)) if layer.kind.startswith("conv") else bias
        torch.testing.assert_close(doubled - bias, 2 * (module(seen[0]) - bias), rtol=1e-4, atol=1e-4)


def test_values_in_any_order(traced):
    _, network, inputs = traced("residual")
    runner = PrefixRunner(network, inputs)
    quantizer = ActivationQuantizer(scale=0.3, zero_point=10, low=0, high=255)
    for key in [*network.values, *reversed(network.values)]:
        expected = simulated(network, PLAIN.replace(activations={key: quantizer}))(inputs)
        torch.testing.assert_close(runner.run_value(key, quantizer), expected)
    pair = dict.fromkeys(list(network.values)[2:9:3], quantizer)
    expected = simulated(network, PLAIN.replace(activations=pair))(inputs)
    torch.testing.assert_close(runner.run_values(pair), expected)


def test_on_top_of_a_compressed_network(traced):
    _, network, inputs = traced("residual")
    base = int8_candidate(network, inputs, Placement(symmetric=True))  # on uint8, biases are rounded as well
    runner = PrefixRunner(network, inputs, base)
    expected = simulated(network, base)(inputs)
    for name in runner.layers():
        runner.at(name)
        torch.testing.assert_close(runner.run(), expected)


def test_replace_stays_for_later_layers(traced):
    _, network, inputs = traced("plain")
    state = network.module.state_dict()
    runner = PrefixRunner(network, inputs)
    changed = {}
    for layer in network.layers.values():
        runner.at(layer.name)
        changed[layer.weight] = state[layer.weight].sign() * 0.1
        runner.replace(changed[layer.weight])
        expected = torch.func.functional_call(network.module, changed, (inputs,))
        torch.testing.assert_close(runner.run(), expected, rtol=1e-5, atol=1e-5)


def test_values_need_a_graph(traced):
    _, network, inputs = traced("branch")
    with pytest.raises(UnsupportedError, match="graph"):
        PrefixRunner(network, inputs).run_value("input", ActivationQuantizer(scale=1, zero_point=0, low=0, high=255))


def test_watching_ends_behind_the_last_value_watched(traced):
    _, network, inputs = traced("residual")
    program = Program(network.graph)
    watched = program.nodes[len(program.nodes) // 2]
    seen, expected = [], []
    program.run(inputs, observe={watched: lambda _node, result: expected.append(result)})
    *_, last = network.layers.values()
    nothing = {last.weight: torch.zeros(0)}  # no layer runs with it
    program.watch(inputs, {watched: lambda _node, result: seen.append(result)}, tensors=nothing)
    assert torch.equal(*seen, *expected)
    with pytest.raises(RuntimeError):
        program.run(inputs, tensors=nothing)
