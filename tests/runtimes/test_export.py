from __future__ import annotations

import dataclasses
import functools
import logging
from collections import Counter

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from onnx import numpy_helper
from torch import nn

from autocomp.core.candidate import Candidate
from autocomp.core.compressed import ActivationQuantizer, CompressedModel
from autocomp.core.encodings import Float8Tensor, FloatTensor, QuantizedTensor
from autocomp.core.hardware import Placement
from autocomp.core.network import Network
from autocomp.errors import UnsupportedError
from autocomp.graph.capture import first_tensor
from autocomp.graph.placement import quantized_values
from autocomp.graph.simulate import simulated
from autocomp.graph.trace import build_network
from autocomp.runtimes._float16 import to_float16
from autocomp.runtimes.export import OnnxExporter
from autocomp.testing.candidates import float8_candidate, int8_candidate, rounded_candidate, rounded_weight
from autocomp.testing.families import make_family
from autocomp.testing.networks import example, randomised

PLAIN = CompressedModel(candidate=Candidate({}), tensors={})
ORT = Placement()


@functools.cache
def exported(name: str) -> tuple[Network, OnnxExporter, torch.Tensor]:
    model, inputs = example(name, samples=64)
    network = build_network(model, inputs[:2])
    return network, OnnxExporter(network), inputs


def session(data: bytes, path: str = "", *, optimised: bool = True) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    if not optimised:  # ONNX Runtime moves float8 pairs through pooling, for which it then has no float8 kernel
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    if path:
        options.optimized_model_filepath = path
    return ort.InferenceSession(
        data, options, providers=["CPUExecutionProvider"], disabled_optimizers=["WeightBiasQuantization"]
    )


def run(data: bytes, inputs: torch.Tensor, *, optimised: bool = True) -> np.ndarray:
    onnx.checker.check_model(onnx.load_model_from_string(data), full_check=True)
    return session(data, optimised=optimised).run(None, {"input": inputs.numpy()})[0]


@pytest.mark.parametrize("name", ["plain", "residual", "depthwise", "concat", "shared", "attention", "tokens"])
def test_float_export_agrees(name):
    network, exporter, inputs = exported(name)
    expected = first_tensor(network.module(inputs)).numpy()
    for batch_size in (None, 3):
        data = exporter.export(PLAIN, ORT, set(), batch_size)
        batch = inputs[:3]
        np.testing.assert_allclose(run(data, batch), expected[:3], rtol=1e-4, atol=1e-4)
    assert b"autocomp/" not in data  # no file names of the machine that exported
    assert b"/site-packages" not in data


@pytest.mark.parametrize("name", ["plain", "residual", "depthwise", "concat", "shared"])
def test_int8_engine_agrees_with_the_simulation(name):
    """Integer kernels and the simulation round the same sums; float32 order of summation is what is left.

    A sum that lies within 1e-5 of a tie may go the other way and move a value by one step; on 64 inputs
    that reaches few outputs, and none by more than the int8 error itself.
    """
    network, exporter, inputs = exported(name)
    compressed = int8_candidate(network, inputs)
    out = run(exporter.export(compressed, ORT, set(network.layers)), inputs)
    with torch.inference_mode():
        expected = simulated(network, compressed)(inputs).numpy()
        error = float(np.abs(expected - first_tensor(network.module(inputs)).numpy()).max())
    difference = np.abs(out - expected)
    assert float(np.mean(difference.max(axis=1) > 1e-4)) <= (0.5 if name == "shared" else 0.1)
    assert float(difference.max()) <= error
    close = np.sort(expected, axis=1)
    clear = close[:, -1] - close[:, -2] > 2 * difference.max(axis=1)
    assert (out.argmax(1) == expected.argmax(1))[clear].all()


def test_onnx_runtime_fuses_the_whole_residual_network(tmp_path):
    network, exporter, inputs = exported("residual")
    compressed = int8_candidate(network, inputs)
    assert set(exporter.executes(compressed, ORT, set(network.layers)).values()) == {"int8"}
    path = str(tmp_path / "optimised.onnx")
    session(exporter.export(compressed, ORT, set(network.layers)), path)
    found = Counter(node.op_type for node in onnx.load(path).graph.node)
    assert found["QLinearConv"] == 6
    assert found["QLinearAdd"] == 2
    assert found["QGemm"] == 1
    assert not {"Conv", "FusedConv", "Gemm", "Add", "Relu", "DequantizeLinear"} & set(found)


def test_clip_of_relu6_fuses(tmp_path):
    network, exporter, inputs = exported("plain")
    path = str(tmp_path / "optimised.onnx")
    session(exporter.export(int8_candidate(network, inputs * 10), ORT, set(network.layers)), path)
    found = Counter(node.op_type for node in onnx.load(path).graph.node)
    assert found["QLinearConv"] == 2
    assert not {"Clip", "FusedConv"} & set(found)


def test_weights_arrive_as_stored():
    network, exporter, inputs = exported("plain")
    compressed = int8_candidate(network, inputs)
    model = onnx.load_model_from_string(exporter.export(compressed, ORT, {"conv1", "fc"}))
    found = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    encoding = compressed.tensors["conv1.weight"]
    assert isinstance(encoding, QuantizedTensor)
    assert found["conv1.weight"].dtype == np.int8
    np.testing.assert_array_equal(found["conv1.weight"], encoding.symbols.numpy())
    np.testing.assert_array_equal(found["conv1.weight:scale"], encoding.scale.numpy())
    assert found["conv2.weight"].dtype == np.float32
    np.testing.assert_array_equal(found["conv2.weight"], compressed.tensors["conv2.weight"].decode().numpy())
    assert found["fc.weight"].dtype == np.int8


def test_every_tensor_of_the_candidate_is_used():
    """Norm parameters, raw parameters and tied embeddings are replaced like any weight."""
    for name in ("depthwise", "tokens"):
        network, exporter, inputs = exported(name)
        generator = torch.Generator().manual_seed(5)
        tensors = {
            key: FloatTensor(values=(value + 0.1 * torch.rand(value.shape, generator=generator)))
            for key, value in network.module.state_dict().items()
            if value.is_floating_point()
        }
        compressed = PLAIN.replace(tensors=tensors)
        expected = simulated(network, compressed)(inputs).detach().numpy()
        assert not np.allclose(expected, simulated(network, PLAIN)(inputs).detach().numpy(), atol=1e-2)
        np.testing.assert_allclose(run(exporter.export(compressed, ORT, set()), inputs), expected, rtol=1e-4, atol=1e-4)


def test_layers_that_cannot_run_on_integers_stay_float():
    network, exporter, inputs = exported("plain")
    compressed = int8_candidate(network, inputs)
    state = network.module.state_dict()
    wide = rounded_weight(state["conv2.weight"], bits=12)
    shifted = rounded_weight(state["fc.weight"])
    shifted = QuantizedTensor(
        symbols=shifted.symbols, scale=shifted.scale, zero_point=torch.full(shifted.scale.shape, 3, dtype=torch.int16)
    )
    mixed = compressed.replace(tensors={**compressed.tensors, "conv2.weight": wide, "fc.weight": shifted})
    assert exporter.executes(mixed, ORT, set(network.layers)) == {"conv1": "int8", "conv2": "float32", "fc": "float32"}
    with torch.inference_mode():
        expected = simulated(network, mixed)(inputs).numpy()
    out = run(exporter.export(mixed, ORT, set(network.layers)), inputs)
    assert np.median(np.abs(out - expected)) < 1e-4
    blind = compressed.replace(activations={})
    assert set(exporter.executes(blind, ORT, set(network.layers)).values()) == {"float32"}


def test_float_biases_for_tensorrt():
    network, exporter, inputs = exported("residual")
    symmetric = Placement(outputs=False, elementwise=False, symmetric=True)
    compressed = int8_candidate(network, inputs, symmetric)
    model = onnx.load_model_from_string(exporter.export(compressed, symmetric, set(network.layers)))
    types = {t.data_type for t in model.graph.initializer}
    assert onnx.TensorProto.INT32 not in types
    assert onnx.TensorProto.UINT8 not in types
    with pytest.raises(UnsupportedError, match="zero point"):
        exporter.export(int8_candidate(network, inputs), symmetric, set(network.layers))


def test_structure_key():
    network, exporter, inputs = exported("plain")
    layers = set(network.layers)
    one = int8_candidate(network, inputs)
    other = int8_candidate(network, inputs * 1.5)
    other = other.replace(tensors={k: e if k != "fc.weight" else e.with_gain(2.0) for k, e in other.tensors.items()})
    key = exporter.structure_key(one, ORT, 1, layers)
    assert exporter.structure_key(other, ORT, 1, layers) == key
    assert exporter.structure_key(one, ORT, 8, layers) != key
    assert exporter.structure_key(one, ORT, 1, layers - {"fc"}) != key
    fewer = dict(list(one.activations.items())[:-1])
    assert exporter.structure_key(one.replace(activations=fewer), ORT, 1, layers) != key
    assert exporter.structure_key(PLAIN, ORT, 1) == exporter.structure_key(PLAIN, ORT, 1, set())


def test_export_is_quiet_and_deterministic(capfd):
    network, exporter, _ = exported("shared")
    before = logging.getLogger("torch.onnx._internal.exporter._registration").level
    first = OnnxExporter(network).export(PLAIN, ORT, set())
    assert exporter.export(PLAIN, ORT, set()) == first
    assert capfd.readouterr() == ("", "")
    assert logging.getLogger("torch.onnx._internal.exporter._registration").level == before


def test_no_graph_and_unknown_values():
    model, inputs = example("branch")
    with pytest.raises(UnsupportedError, match="ONNX"):
        OnnxExporter(build_network(model, inputs))
    network, exporter, _ = exported("plain")
    quantizer = ActivationQuantizer(scale=1.0, zero_point=0, low=0, high=255)
    with pytest.raises(UnsupportedError, match="nowhere"):
        exporter.export(PLAIN.replace(activations={"nowhere": quantizer}), ORT, set())
    assert network.graph is not None


TENSORRT = Placement(
    outputs=False, elementwise=False, symmetric=True, residual=True, depthwise=False, int4_blocks=(128, 64, 32, 16)
)


@functools.cache
def family(name: str) -> tuple[Network, OnnxExporter, torch.Tensor]:
    model, made = make_family(name)
    inputs = made.inputs(16)
    network = build_network(model, inputs[:2])
    return network, OnnxExporter(network), inputs


def outputs(network: Network, compressed: CompressedModel, inputs: torch.Tensor) -> np.ndarray:
    with torch.inference_mode():
        return simulated(network, compressed)(inputs).numpy()


def pairs(data: bytes) -> set[str]:
    """Values that are quantized in an exported model."""
    graph = onnx.load_model_from_string(data).graph
    return {node.name.removesuffix(":q") for node in graph.node if node.op_type == "QuantizeLinear"}


@pytest.mark.parametrize("name", ["resnet", "mobilenet_v2", "vit"])
def test_symmetric_export_computes_what_is_simulated(name):
    """As for ONNX Runtime's own placement: order of summation is all that is left; float biases, no int32."""
    network, exporter, inputs = family(name)
    compressed = int8_candidate(network, inputs, TENSORRT)
    data = exporter.export(compressed, TENSORRT, set(network.layers))
    expected = outputs(network, compressed, inputs)
    difference = np.abs(run(data, inputs) - expected)
    assert float(np.mean(difference.max(axis=1) > 1e-4)) <= 0.2
    assert float(difference.max()) <= float(np.abs(expected - network.module(inputs).detach().numpy()).max())


@pytest.mark.parametrize("name", ["resnet", "vit"])
def test_float8_export_computes_what_is_simulated(name):
    """ONNX Runtime's CPU executes float8 Q/DQ pairs as the operators say; its sums alone have another order."""
    network, exporter, inputs = family(name)
    compressed = float8_candidate(network, inputs, TENSORRT)
    assert set(exporter.executes(compressed, TENSORRT, set(network.layers)).values()) == {"float8"}
    data = exporter.export(compressed, TENSORRT, set(network.layers))
    model = onnx.load_model_from_string(data)
    types = {t.name: t.data_type for t in model.graph.initializer}
    weights = {types[layer.weight] for layer in network.layers.values()}
    assert weights == {onnx.TensorProto.FLOAT8E4M3FN}
    assert onnx.TensorProto.INT8 not in types.values()
    expected = outputs(network, compressed, inputs)
    difference = np.abs(run(data, inputs, optimised=False) - expected)
    assert float(np.mean(difference.max(axis=1) > 1e-4)) <= 0.2
    assert float(difference.max()) <= float(np.abs(expected - network.module(inputs).detach().numpy()).max())


def test_float8_weights_arrive_bit_for_bit():
    network, exporter, inputs = family("resnet")
    compressed = float8_candidate(network, inputs, TENSORRT)
    model = onnx.load_model_from_string(exporter.export(compressed, TENSORRT, set(network.layers)))
    found = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    for layer in network.layers.values():
        encoding = compressed.tensors[layer.weight]
        assert isinstance(encoding, Float8Tensor)
        stored = found[layer.weight].astype(np.float32)
        stored = stored.T if stored.shape != encoding.symbols.shape else stored
        scale = found[f"{layer.weight}:scale"].reshape(-1, *[1] * (stored.ndim - 1))
        np.testing.assert_array_equal(stored * scale, encoding.decode().numpy())


def test_int8_beside_float8():
    """Each layer in the precision of its inputs; where two ask for one value, the first has it."""
    network, exporter, inputs = family("resnet")
    asked = dict.fromkeys(network.layers, "int8") | {"layer1.1.conv2": "float8", "fc": "float8"}
    eight, numbers = int8_candidate(network, inputs, TENSORRT), float8_candidate(network, inputs, TENSORRT)
    values = quantized_values(network, asked, TENSORRT)
    weights = {network.layers[name].weight: precision for name, precision in asked.items()}
    compressed = PLAIN.replace(
        tensors={k: (eight if p == "int8" else numbers).tensors[k] for k, p in weights.items()},
        activations={k: (eight if p == "int8" else numbers).activations[k] for k, p in values.items()},
    )
    assert exporter.executes(compressed, TENSORRT, set(network.layers)) == asked
    data = exporter.export(compressed, TENSORRT, set(network.layers))
    difference = np.abs(run(data, inputs, optimised=False) - outputs(network, compressed, inputs))
    assert float(np.mean(difference.max(axis=1) > 1e-4)) <= 0.2
    first, second = "layer2.0.conv1", "layer2.0.downsample.0"  # both read the block's input
    assert network.layers[first].input_value == network.layers[second].input_value
    both = quantized_values(network, {first: "float8", second: "int8"}, TENSORRT)
    assert both[network.layers[first].input_value] == "float8"
    torn = eight.replace(
        activations={k: (eight if p == "int8" else numbers).activations[k] for k, p in both.items() if k in values},
        tensors={**eight.tensors, network.layers[first].weight: numbers.tensors[network.layers[first].weight]},
    )
    executes = exporter.executes(torn, TENSORRT, {first, second})
    assert (executes[first], executes[second]) == ("float8", "float32")


def test_where_tensorrt_gets_its_pairs():
    """Inputs of convolutions and the shortcut's result, nothing behind convolutions; one pair a value."""
    network, exporter, inputs = family("resnet")
    compressed = int8_candidate(network, inputs, TENSORRT)
    data = exporter.export(compressed, TENSORRT, set(network.layers))
    shortcut = network.layers["layer2.0.downsample.0"].output_value
    reads = {layer.input_value for layer in network.layers.values()}
    assert pairs(data) == reads | {shortcut}
    plain = dataclasses.replace(TENSORRT, residual=False)
    assert pairs(exporter.export(int8_candidate(network, inputs, plain), plain, set(network.layers))) == reads
    identity = network.layers["layer1.1.conv1"].input_value  # read by conv1 and by the addition
    assert sum(name == f"{identity}:dequantized" for node in graph_nodes(data) for name in node.input) == 2


def graph_nodes(data: bytes) -> list[onnx.NodeProto]:
    return list(onnx.load_model_from_string(data).graph.node)


def test_shortcut_is_quantized_also_where_only_the_last_convolution_is_int8():
    network, _, _ = family("resnet")
    found = quantized_values(network, {"layer1.1.conv2": "minmax"}, TENSORRT)
    layer = network.layers
    assert set(found) == {layer["layer1.1.conv2"].input_value, layer["layer1.1.conv1"].input_value}
    found = quantized_values(network, {"layer2.0.downsample.0": "minmax"}, TENSORRT)
    assert layer["layer2.0.conv2"].output_value in found  # the other operand of the addition it is fused with


def test_depthwise_convolutions_stay_float():
    network, exporter, inputs = family("mobilenet_v2")
    executes = exporter.executes(int8_candidate(network, inputs, TENSORRT), TENSORRT, set(network.layers))
    depthwise = {n for n, layer in network.layers.items() if layer.groups > 1}
    assert {n for n, precision in executes.items() if precision == "float32"} == depthwise
    able = dataclasses.replace(TENSORRT, depthwise=True)
    assert set(exporter.executes(int8_candidate(network, inputs, able), able, set(network.layers)).values()) == {"int8"}


@pytest.mark.parametrize("name", ["resnet", "mobilenet_v2", "vit"])
def test_float16_export(name):
    """float16 has 11 significant bits; tens of layers deep a percent of the largest output is ten times that."""
    network, exporter, inputs = family(name)
    half = dataclasses.replace(TENSORRT, float_type="float16")
    data = exporter.export(PLAIN, half, set())
    model = onnx.load_model_from_string(data)
    assert not [t.name for t in model.graph.initializer if t.data_type == onnx.TensorProto.FLOAT]
    types = {i.type.tensor_type.elem_type for i in (*model.graph.input, *model.graph.output)}
    assert types == {onnx.TensorProto.FLOAT}
    expected = network.module(inputs).detach().numpy()
    np.testing.assert_allclose(run(data, inputs), expected, rtol=0, atol=0.01 * float(np.abs(expected).max()))
    assert set(exporter.executes(PLAIN, half, set()).values()) == {"float16"}
    assert exporter.structure_key(PLAIN, half) != exporter.structure_key(PLAIN, TENSORRT)


def test_float16_beside_int8():
    """Rounding to float16 in front of a quantizer moves values by a step here and there: no more than int8 itself."""
    network, exporter, inputs = family("resnet")
    half = dataclasses.replace(TENSORRT, float_type="float16")
    compressed = int8_candidate(network, inputs, half)
    data = exporter.export(compressed, half, set(network.layers))
    model = onnx.load_model_from_string(data)
    scales = [t for t in model.graph.initializer if t.name.endswith(":scale")]
    assert {t.data_type for t in scales} == {onnx.TensorProto.FLOAT16}
    assert min(float(numpy_helper.to_array(t).min()) for t in scales) > 0
    expected = network.module(inputs).detach().numpy()
    error = np.sqrt(np.mean((outputs(network, compressed, inputs) - expected) ** 2))
    assert np.sqrt(np.mean((run(data, inputs) - expected) ** 2)) < 1.5 * error


def test_float16_refuses_what_it_cannot_hold():
    network, exporter, _ = exported("plain")
    state = network.module.state_dict()
    large = PLAIN.replace(tensors={"fc.weight": FloatTensor(values=state["fc.weight"] * 1e6)})
    with pytest.raises(UnsupportedError, match=r"'fc\.weight' holds .* float16 ends at 65504"):
        exporter.export(large, dataclasses.replace(TENSORRT, float_type="float16"), set())


def test_float16_keeps_squares_in_float32():
    """300 squared is beyond float16's range; its root is not. Nothing between the two is rounded to float16."""
    graph = onnx.parser.parse_graph(
        "g (float[n, 2] input) => (float[n, 1] output) <float two = {2.0}, float eps = {0.001}, int64[1] axes = {-1}>"
        "{ p = Pow(input, two)  m = ReduceMean(p, axes)  a = Add(m, eps)  s = Sqrt(a)  output = Relu(s) }"
    )
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)], ir_version=10)
    data = to_float16(model).SerializeToString()
    np.testing.assert_allclose(run(data, torch.tensor([[300.0, 300.0], [3.0, 4.0]])), [[300], [3.5357]], rtol=1e-3)
    types = {node.output[0]: node.attribute[0].i for node in graph_nodes(data) if node.op_type == "Cast"}
    half, full = onnx.TensorProto.FLOAT16, onnx.TensorProto.FLOAT
    between = {"input:float32": full, "two:float32": full, "eps:float32": full, "s": half}
    assert types == {"input:float16": half, **between, "output": full}


def test_int4_blocks():
    """Scales a block are the channel's own, repeated: decoding gives the weights that are simulated."""
    network, exporter, inputs = family("vit")
    compressed = rounded_candidate(network, ("linear", "conv2d"), bits=4)
    executes = exporter.executes(compressed, TENSORRT, set())
    linear = {n for n, layer in network.layers.items() if layer.kind == "linear"}
    assert {n for n, precision in executes.items() if precision == "int4"} == linear
    data = exporter.export(compressed, TENSORRT, set())
    model = onnx.load_model_from_string(data)
    packed = [t for t in model.graph.initializer if t.data_type == onnx.TensorProto.INT4]
    assert len(packed) == len(linear)
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL  # it would quantize activations
    onnx.checker.check_model(model, full_check=True)
    found = ort.InferenceSession(data, options, providers=["CPUExecutionProvider"]).run(None, {"input": inputs.numpy()})
    np.testing.assert_allclose(found[0], outputs(network, compressed, inputs), rtol=1e-4, atol=1e-4)
    assert "int4" not in exporter.executes(compressed, ORT, set()).values()
    wide = rounded_candidate(network, ("linear",), bits=5)
    assert "int4" not in exporter.executes(wide, TENSORRT, set()).values()
    one_block = dataclasses.replace(TENSORRT, int4_blocks=(32,))
    assert exporter.executes(compressed, one_block, set())["head"] == "float32"  # 32 inputs: a scale a channel


class Padded(nn.Module):
    """Padding with zeros by functions and modules in front of convolutions; input [n, 3, 16, 16]."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.pad, self.second = nn.Conv2d(3, 8, 3), nn.ZeroPad2d((0, 1, 0, 1)), nn.Conv2d(8, 8, 3, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.first(nn.functional.pad(x, (1, 1, 1, 1))))
        return self.second(self.pad(x)).mean((2, 3))


def test_no_pair_between_padding_and_convolution():
    """Zero lies on every grid, so the pair stands in front of the padding, for the simulation too."""
    inputs = torch.randn(8, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    network = build_network(randomised(Padded()), inputs[:2])
    exporter = OnnxExporter(network)
    for placement in (ORT, TENSORRT):
        compressed = int8_candidate(network, inputs, placement)
        assert set(exporter.executes(compressed, placement, set(network.layers)).values()) == {"int8"}
        data = exporter.export(compressed, placement, set(network.layers))
        np.testing.assert_allclose(run(data, inputs), outputs(network, compressed, inputs), rtol=0, atol=1e-5)
    makers = {name: node.op_type for node in graph_nodes(data) for name in node.output}
    assert [makers[n.input[0]] for n in graph_nodes(data) if n.op_type == "Conv"] == ["Pad", "Pad"]
    assert [makers[n.input[0]] for n in graph_nodes(data) if n.op_type == "Pad"] == ["DequantizeLinear"] * 2
