from __future__ import annotations

import ml_dtypes
import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from onnx import numpy_helper

from autocomp.core.candidate import Candidate
from autocomp.core.compressed import ActivationQuantizer, CompressedModel
from autocomp.core.encodings import FloatTensor
from autocomp.errors import UnsupportedError
from autocomp.graph.capture import first_tensor
from autocomp.graph.integers import integer_bias
from autocomp.graph.program import fake_quantize
from autocomp.graph.simulate import simulated
from autocomp.testing.candidates import int8_candidate, rounded_weight
from autocomp.testing.networks import EXAMPLES

PLAIN = CompressedModel(candidate=Candidate({}), tensors={})


@given(
    st.lists(st.floats(-1e4, 1e4, width=32), min_size=1, max_size=20),
    st.floats(2**-10, 64, width=32),
    st.integers(0, 255),
)
def test_fake_quantize_is_onnx_quantize_dequantize(values, scale, zero_point):
    quantizer = ActivationQuantizer(scale=scale, zero_point=zero_point, low=0, high=255)
    x = np.array(values, np.float32)
    q = np.clip(np.rint(x / np.float32(scale)) + zero_point, 0, 255)
    expected = (q - zero_point).astype(np.float32) * np.float32(scale)
    np.testing.assert_array_equal(fake_quantize(torch.from_numpy(x), quantizer).numpy(), expected)


@given(st.integers(0, 255), st.floats(2**-10, 64, width=32), st.integers(0, 255))
def test_fake_quantize_keeps_what_lies_on_the_grid(symbol, scale, zero_point):
    quantizer = ActivationQuantizer(scale=scale, zero_point=zero_point, low=0, high=255)
    x = torch.tensor([float(symbol - zero_point)]) * torch.tensor(scale)
    assert torch.equal(fake_quantize(x, quantizer), x)


@pytest.mark.parametrize("scale", [2.0**-9, 0.0123, 3.0])
def test_float8_is_onnx_quantize_dequantize(scale):
    """Against ONNX Runtime, bit for bit: numbers of all sizes, ties, and what saturates."""
    graph = onnx.parser.parse_graph(
        "g (float[n] x) => (float[n] y) <float scale, float8e4m3fn zero>"
        "{ q = QuantizeLinear(x, scale, zero)  y = DequantizeLinear(q, scale, zero) }"
    )
    number = np.float32(scale)
    graph.initializer.append(numpy_helper.from_array(np.asarray(number), "scale"))
    graph.initializer.append(numpy_helper.from_array(np.zeros((), ml_dtypes.float8_e4m3fn), "zero"))
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 19)], ir_version=10)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(20000, generator=generator) * torch.logspace(-6, 4, 20000)
    halves = torch.arange(-600, 600) * 0.5 * torch.tensor(scale)
    x = torch.cat([x, halves, torch.tensor([0.0, 464.0, 465.0, -1e30]) * torch.tensor(scale)])
    found = fake_quantize(x, ActivationQuantizer.float8(float(number)))
    np.testing.assert_array_equal(found.numpy(), session.run(None, {"x": x.numpy()})[0])


@pytest.mark.parametrize("name", EXAMPLES)
def test_nothing_compressed_changes_nothing(traced, name):
    model, network, inputs = traced(name)
    out = first_tensor(simulated(network, PLAIN)(inputs))
    torch.testing.assert_close(out, first_tensor(model(inputs)), rtol=1e-5, atol=1e-5)


def test_decoded_weights_with_and_without_a_graph(traced):
    for name in ("residual", "branch", "shared"):
        _, network, inputs = traced(name)
        state = network.module.state_dict()
        tensors = {la.weight: rounded_weight(state[la.weight], bits=3) for la in network.layers.values()}
        compressed = PLAIN.replace(tensors=tensors)
        decoded = {key: encoding.decode() for key, encoding in tensors.items()}
        expected = torch.func.functional_call(network.module, decoded, (inputs,))
        assert torch.equal(simulated(network, compressed)(inputs), expected)
        assert torch.equal(network.module.state_dict()[next(iter(tensors))], state[next(iter(tensors))])


def test_a_quantized_value_is_quantized_for_all_its_readers(traced):
    model, network, inputs = traced("preactivation")
    quantizer = ActivationQuantizer(scale=0.11, zero_point=120, low=0, high=255)
    out = simulated(network, PLAIN.replace(activations={"stem:conv2d:0": quantizer}))(inputs)
    stem = fake_quantize(network.module.stem(inputs), quantizer)
    y = network.module.conv1(torch.relu(network.module.bn1(stem)))
    x = stem + network.module.conv2(torch.relu(y))
    torch.testing.assert_close(out, model.fc(x.mean((2, 3))), rtol=1e-5, atol=1e-5)


def test_bias_of_an_integer_layer_is_rounded(traced):
    _, network, inputs = traced("plain")
    compressed = int8_candidate(network, inputs)
    rough = compressed.replace(
        activations={"input": ActivationQuantizer(scale=8.0, zero_point=128, low=0, high=255)},
        tensors={"conv1.weight": compressed.tensors["conv1.weight"], "conv1.bias": FloatTensor(values=torch.ones(8))},
    )
    rounded = integer_bias(torch.ones(8), compressed.tensors["conv1.weight"], 8.0)
    assert rounded is not None
    bias = (rounded[0] * rounded[1].double()).float()
    assert (bias - 1).abs().max() > 0
    zeros = torch.zeros_like(inputs)
    weights = {"conv1.weight": compressed.tensors["conv1.weight"].decode(), "conv1.bias": bias}
    expected = torch.func.functional_call(network.module, weights, (zeros,))
    torch.testing.assert_close(simulated(network, rough)(zeros), expected)
    weights["conv1.bias"] = torch.ones(8)
    expected = torch.func.functional_call(network.module, weights, (zeros,))
    symmetric = {"input": ActivationQuantizer(scale=8.0, zero_point=0, low=-128, high=127)}
    torch.testing.assert_close(simulated(network, rough.replace(activations=symmetric))(zeros), expected)


def test_activations_without_a_graph_or_value(traced):
    quantizer = ActivationQuantizer(scale=1.0, zero_point=0, low=0, high=255)
    with pytest.raises(UnsupportedError, match="graph"):
        simulated(traced("branch")[1], PLAIN.replace(activations={"input": quantizer}))
    with pytest.raises(UnsupportedError, match="nowhere"):
        simulated(traced("plain")[1], PLAIN.replace(activations={"nowhere": quantizer}))
