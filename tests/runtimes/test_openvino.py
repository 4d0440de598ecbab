"""OpenVINO: what becomes an integer kernel, what is told about it, and what the whole families compute."""

from __future__ import annotations

import dataclasses

import numpy as np
import onnx
import pytest
import torch
from onnx import helper, numpy_helper

pytest.importorskip("openvino", reason='openvino is not installed; pip install "autocomp[openvino]"')

from autocomp.core.hardware import Target
from autocomp.core.network import Network
from autocomp.errors import UnsupportedError
from autocomp.graph.simulate import simulated
from autocomp.graph.trace import build_network
from autocomp.runtimes import _onnx_graph as graphs
from autocomp.runtimes._onnx_torch import OnnxProgram
from autocomp.runtimes._profiles import load_target
from autocomp.runtimes.export import OnnxExporter
from autocomp.testing.candidates import int8_candidate
from autocomp.testing.coverage import INT8_TOLERANCE
from autocomp.testing.families import make_family
from autocomp.testing.onnx_models import TinyNetwork, single_layer

ALL = frozenset({"conv1", "conv2", "fc"})
KINDS = {
    "conv1d": ("Conv", 3, {}),
    "conv2d": ("Conv", 4, {}),
    "conv3d": ("Conv", 5, {}),
    "conv_transpose2d": ("ConvTranspose", 4, {}),
    "linear": ("Gemm", 2, {"transB": 1}),
    "linear-matmul": ("MatMul", 2, {}),
}


@pytest.fixture(scope="module")
def target() -> Target:
    return load_target("cpu-openvino")


def precisions(target: Target, model: bytes, rank: int) -> dict[str, str]:
    example = np.random.default_rng(1).standard_normal((1, 4, *(8,) * (rank - 2))).astype(np.float32)
    return dict(target.runtime.build(model, target.profile, example).layers)


@pytest.mark.parametrize("output_grid", [True, False], ids=["grid behind", "float32 behind"])
@pytest.mark.parametrize("kind", KINDS)
def test_profile_says_which_kinds_run_int8(target: Target, kind: str, output_grid: bool) -> None:
    """Unlike ONNX Runtime, a grid in front of a convolution is enough."""
    op, rank, attributes = KINDS[kind]
    found = precisions(target, single_layer(op, rank, output_grid=output_grid, **attributes), rank)
    claimed = "int8" if "int8" in target.profile.precisions[kind.split("-")[0]] else "float32"
    assert found == {"w": claimed}


@pytest.mark.parametrize("kind", KINDS)
def test_float_layer_between_quantized_values_stays_float(target: Target, kind: str) -> None:
    op, rank, attributes = KINDS[kind]
    assert precisions(target, single_layer(op, rank, int8=False, **attributes), rank) == {"w": "float32"}


def test_integer_weights_without_a_grid_in_front_run_in_float32(target: Target) -> None:
    assert precisions(target, single_layer("Conv", 4, input_grid=False), 4) == {"w": "float32"}
    assert precisions(target, single_layer("Gemm", 2, input_grid=False, transB=1), 2) == {"w": "float32"}


def test_plan_holds_int8_weights_as_int8(target: Target) -> None:
    sizes = {}
    for int8 in (frozenset(), ALL):
        network = TinyNetwork(channels=64, int8=int8)
        sizes[int8] = target.runtime.build(network.onnx_bytes(), target.profile, network.inputs()).engine_bytes
    weights = sum(w.size for n, w in TinyNetwork(channels=64).weights.items() if n.endswith("weight"))
    assert sizes[frozenset()] >= 4 * weights
    assert sizes[ALL] < 2 * weights + 40_000  # beside the weights a description of the graph as text


@pytest.mark.parametrize("batch", [1, 3, 8])
def test_any_number_of_inputs_runs_in_batches_of_the_built_size(target: Target, batch: int) -> None:
    network = TinyNetwork()
    engine = target.engine(network.onnx_bytes(), network.inputs(3))
    inputs = network.inputs(batch)
    np.testing.assert_allclose(engine.run(inputs), network.torch_outputs(inputs), rtol=0, atol=1e-4)
    engine.close()


def test_options_of_the_profile(target: Target) -> None:
    network = TinyNetwork()
    for options in ({}, {"enable_cpu_pinning": True}, {"inference_num_threads": 2}):
        profile = dataclasses.replace(target.profile, options=options)
        plan = target.runtime.build(network.onnx_bytes(), profile, network.inputs())
        assert set(plan.layers.values()) == {"float32"}  # bfloat16 only where it is asked for
        target.runtime.load(plan, profile, network.inputs()).close()


def test_two_inputs_are_refused(target: Target) -> None:
    infos = [helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, [1, 3]) for n in ("a", "b")]
    out = helper.make_tensor_value_info("out", onnx.TensorProto.FLOAT, None)
    graph = helper.make_graph([helper.make_node("Add", ["a", "b"], ["out"])], "two", infos, [out])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9).SerializeToString()
    with pytest.raises(UnsupportedError, match=r"2 inputs \(a, b\)"):
        target.runtime.build(model, target.profile, np.zeros((1, 3), np.float32))


def test_product_that_does_not_fit_names_the_node(target: Target) -> None:
    weight = numpy_helper.from_array(np.zeros((7, 5), np.float32), "w")
    infos = [helper.make_tensor_value_info("input", 1, ["n", 3])], [helper.make_tensor_value_info("out", 1, None)]
    node = helper.make_node("MatMul", ["input", "w"], ["out"], name="/head/MatMul")
    graph = helper.make_graph([node], "refused", *infos, [weight])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9).SerializeToString()
    with pytest.raises(UnsupportedError, match=r"\(node /head/MatMul\)") as caught:
        target.runtime.build(model, target.profile, np.zeros((1, 3), np.float32))
    assert "\n" not in str(caught.value)


def concatenation() -> bytes:
    """A constant and a quantized value joined, then quantized: what crashes OpenVINO 2026.4 as it is."""
    scale, zero = ("s", "z"), numpy_helper.from_array(np.asarray(128, np.uint8), "z")
    nodes = [
        helper.make_node("QuantizeLinear", ["input", *scale], ["q"]),
        helper.make_node("DequantizeLinear", ["q", *scale], ["d"]),
        helper.make_node("Concat", ["c", "d"], ["joined"], axis=1),
        helper.make_node("QuantizeLinear", ["joined", "t", "z"], ["jq"]),
        helper.make_node("DequantizeLinear", ["jq", "t", "z"], ["jd"]),
        helper.make_node("Relu", ["jd"], ["out"]),
    ]
    constants = [
        numpy_helper.from_array(np.linspace(-1, 1, 12, dtype=np.float32).reshape(1, 2, 6), "c"),
        numpy_helper.from_array(np.asarray(0.02, np.float32), "s"),
        numpy_helper.from_array(np.asarray(0.03, np.float32), "t"),
        zero,
    ]
    graph = helper.make_graph(
        nodes,
        "concatenation",
        [helper.make_tensor_value_info("input", 1, [1, 3, 6])],
        [helper.make_tensor_value_info("out", 1, [1, 5, 6])],
        constants,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9).SerializeToString()


def test_grids_move_in_front_of_a_concatenation_and_change_nothing(target: Target) -> None:
    source = onnx.load_from_string(concatenation())
    moved = onnx.load_from_string(concatenation())
    assert graphs.quantize_before_concat(moved)
    assert not graphs.quantize_before_concat(moved)
    onnx.checker.check_model(moved, full_check=True)
    inputs = np.random.default_rng(0).standard_normal((1, 3, 6)).astype(np.float32)
    expected, found = (OnnxProgram(model)(torch.from_numpy(inputs)).numpy() for model in (source, moved))
    np.testing.assert_array_equal(found, expected)
    engine = target.engine(concatenation(), inputs)
    np.testing.assert_allclose(engine.run(inputs), expected, rtol=0, atol=1e-6)
    engine.close()


FAMILIES = ("resnet", "mobilenet_v2", "shufflenet_v2", "densenet", "unet", "convnext", "vit", "bert")
"""Convolutions, grouped ones, shuffles, concatenations, up-sampling, normalised and token inputs."""
QUICK = ("mobilenet_v2", "vit")
"""Of these; exporting one takes seconds."""


@pytest.mark.parametrize("name", [n if n in QUICK else pytest.param(n, marks=pytest.mark.slow) for n in FAMILIES])
def test_families_in_int8_agree_with_the_simulation(target: Target, name: str) -> None:
    """Every layer that was exported as integers runs on integers, and what comes out is the simulation's.

    Both round the same sums, in float32 arithmetic of their own: where a sum lies at a tie, they may part by one
    step of that grid, at most 1/255 of a value's range, and a few such steps may add up on the way out (OpenVINO
    also merges neighbouring grids and rounds once). In the mean over the outputs that stays below
    ``INT8_TOLERANCE`` of their range; a wrong grid or channel differs by tens of percent. Measured here on AMX:
    0.7 % at most. Holds where int8 sums do not saturate: the CPU has VNNI, or an Arm dot product.
    """
    if "saturate" in target.runtime.versions()["int8_instructions"]:
        pytest.skip(target.runtime.versions()["int8_instructions"])
    model, family = make_family(name)
    inputs = family.inputs(4)
    network: Network = build_network(model, inputs)
    exporter, compressed = OnnxExporter(network), int8_candidate(network, inputs, target.profile.placement)
    exported = exporter.export(compressed, target.profile.placement, set(network.layers))
    plan = target.runtime.build(exported, target.profile, inputs.numpy())
    engine = target.runtime.load(plan, target.profile, inputs.numpy())
    found = torch.from_numpy(engine.run(inputs.numpy()))
    engine.close()
    with torch.inference_mode():
        expected = simulated(network, compressed)(inputs)
    assert float((found - expected).abs().mean()) <= INT8_TOLERANCE * float(expected.max() - expected.min())
    asked = exporter.executes(compressed, target.profile.placement, set(network.layers))
    wanted = {network.layers[n].weight: p for n, p in asked.items() if network.layers[n].kind != "embedding"}
    assert {k: plan.layers[k] for k in wanted} == wanted
