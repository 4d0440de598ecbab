"""ONNX Runtime: what becomes an integer kernel, what is told about it, and what is said when it refuses."""

import subprocess
import sys

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from autocomp import runtimes
from autocomp.core.hardware import Target
from autocomp.errors import UnknownNameError, UnsupportedError
from autocomp.runtimes import _onnx_graph as graphs
from autocomp.runtimes._cpu import int8_instructions
from autocomp.runtimes._profiles import load_profile, load_target
from autocomp.runtimes.onnxruntime import OnnxRuntime
from autocomp.testing.onnx_models import TinyNetwork, single_layer

ALL = frozenset({"conv1", "conv2", "fc"})


@pytest.fixture(scope="module")
def target() -> Target:
    return load_target("cpu-onnxruntime")


def precisions(target: Target, model: bytes, example: np.ndarray) -> dict[str, str]:
    return dict(target.runtime.build(model, target.profile, example).layers)


KINDS = {
    "conv1d": ("Conv", 3, {}),
    "conv2d": ("Conv", 4, {}),
    "conv3d": ("Conv", 5, {}),
    "conv_transpose2d": ("ConvTranspose", 4, {}),
    "linear": ("Gemm", 2, {"transB": 1}),
    "linear-matmul": ("MatMul", 2, {}),
}


@pytest.mark.parametrize("kind", KINDS)
def test_profile_says_which_kinds_run_int8(target: Target, kind: str) -> None:
    op, rank, attributes = KINDS[kind]
    example = np.random.default_rng(1).standard_normal((1, 4, *(8,) * (rank - 2))).astype(np.float32)
    found = precisions(target, single_layer(op, rank, **attributes), example)
    claimed = "int8" if "int8" in target.profile.precisions[kind.split("-")[0]] else "float32"
    assert found == {"w": claimed}


def test_profile_says_that_outputs_must_be_quantized_too(target: Target) -> None:
    example = np.zeros((1, 4, 8, 8), np.float32)
    assert target.profile.placement.outputs
    assert precisions(target, single_layer("Conv", 4, output_grid=False), example) == {"w": "float32"}


@pytest.mark.parametrize("op", ["Gemm", "MatMul"])
def test_linear_layers_may_end_in_float32(target: Target, op: str) -> None:
    """The classifier: integer product, float32 result, no grid behind it."""
    model = single_layer(op, 2, output_grid=False, **KINDS["linear"][2] if op == "Gemm" else {})
    assert precisions(target, model, np.zeros((1, 4), np.float32)) == {"w": "int8"}


@pytest.mark.parametrize("op", ["Conv", "Gemm"])
def test_float_layer_between_quantized_values_stays_float(target: Target, op: str) -> None:
    rank, attributes = (4, {}) if op == "Conv" else (2, {"transB": 1})
    example = np.zeros((1, 4, *(8,) * (rank - 2)), np.float32)
    assert precisions(target, single_layer(op, rank, int8=False, **attributes), example) == {"w": "float32"}


def test_engine_holds_int8_weights_as_int8(target: Target) -> None:
    sizes = {}
    for int8 in (frozenset(), ALL):
        network = TinyNetwork(channels=64, int8=int8)
        plan = target.runtime.build(network.onnx_bytes(), target.profile, network.inputs())
        sizes[int8] = plan.engine_bytes
    weights = sum(w.size for n, w in TinyNetwork(channels=64).weights.items() if n.endswith("weight"))
    assert sizes[frozenset()] >= 4 * weights
    assert weights <= sizes[ALL] < weights + 8000  # graph, scales and biases beside one byte a weight


def test_biases_of_integer_layers_become_int32() -> None:
    network = TinyNetwork(int8=frozenset({"conv1", "fc"}))
    model = graphs.load(network.onnx_bytes())
    assert graphs.quantize_biases(model)
    assert not graphs.quantize_biases(model), "a second pass finds nothing left to do"
    onnx.checker.check_model(model, full_check=True)
    arrays = {i.name: numpy_helper.to_array(i) for i in model.graph.initializer}
    assert "conv2.bias" in arrays
    assert "conv1.bias" not in arrays
    (name,) = [n for n in arrays if n.startswith("conv1_") and n.endswith("int32")]
    scale = arrays[name.replace("int32", "scale")]
    np.testing.assert_array_equal(scale, arrays["input_scale"] * arrays["conv1.weight_scale"])
    error = arrays[name].astype(np.float64) * scale - network.weights["conv1.bias"]
    assert (np.abs(error) <= 0.5001 * scale).all()


def test_bias_outside_int32_is_clipped() -> None:
    model = graphs.load(single_layer("Conv", 4))
    for initializer in model.graph.initializer:
        if initializer.name == "b":
            initializer.CopyFrom(numpy_helper.from_array(np.full(6, 1e30, np.float32), "b"))
    assert graphs.quantize_biases(model)
    (bias,) = [numpy_helper.to_array(i) for i in model.graph.initializer if i.name.endswith("int32")]
    assert (bias == np.iinfo(np.int32).max).all()


def refused(nodes: list[onnx.NodeProto]) -> bytes:
    graph = helper.make_graph(
        nodes,
        "refused",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, ["n", 3])],
        [helper.make_tensor_value_info("out", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(np.zeros((7, 5), np.float32), "w")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9).SerializeToString()


@pytest.mark.parametrize(
    ("node", "said"),
    [
        (helper.make_node("Nope", ["input"], ["out"], name="/block/Nope"), "/block/Nope"),
        (helper.make_node("MatMul", ["input", "w"], ["out"], name="/head/MatMul"), "/head/MatMul"),
        (helper.make_node("Relu", ["nowhere"], ["out"], name="/r"), "nowhere"),
    ],
    ids=["unknown op", "fails when run", "dangling input"],
)
def test_refusal_names_the_place(target: Target, node: onnx.NodeProto, said: str) -> None:
    with pytest.raises(UnsupportedError, match="onnxruntime: cannot") as caught:
        target.runtime.build(refused([node]), target.profile, np.zeros((1, 3), np.float32))
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_two_inputs_are_refused(target: Target) -> None:
    infos = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [1, 3]) for n in ("a", "b")]
    out = helper.make_tensor_value_info("out", TensorProto.FLOAT, None)
    graph = helper.make_graph([helper.make_node("Add", ["a", "b"], ["out"])], "two", infos, [out])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9).SerializeToString()
    with pytest.raises(UnsupportedError, match=r"2 inputs \(a, b\)"):
        target.runtime.build(model, target.profile, np.zeros((1, 3), np.float32))


@pytest.mark.parametrize("options", [{"graph_optimization": "disabled"}, {"allow_spinning": False}, {}])
def test_options_of_the_profile(target: Target, options: dict[str, object]) -> None:
    import dataclasses

    network = TinyNetwork(int8=ALL)
    profile = dataclasses.replace(target.profile, options=options)
    plan = target.runtime.build(network.onnx_bytes(), profile, network.inputs())
    expected = "float32" if options.get("graph_optimization") == "disabled" else "int8"
    assert set(plan.layers.values()) == {expected}
    target.runtime.load(plan, profile, network.inputs()).close()


def test_saturation_is_told() -> None:
    assert int8_instructions(frozenset({"avx2", "avx512_vnni"})) == "AVX-512 VNNI"
    assert "saturate" in int8_instructions(frozenset({"avx2", "avx512f", "avx512bw"}))
    assert int8_instructions(frozenset({"asimddp"})) == "Arm dot product"
    assert set(OnnxRuntime().versions()) == {"onnxruntime", "device", "int8_instructions"}


def test_listing_knows_runtimes_only() -> None:
    assert "onnxruntime" in runtimes.names()
    assert "export" not in runtimes.names()
    with pytest.raises(UnknownNameError, match="did you mean onnxruntime"):
        runtimes.find("onnxruntim")


def test_nothing_heavy_is_imported() -> None:
    code = (
        "import sys, autocomp.runtimes as r, autocomp.runtimes._profiles as p, autocomp.environment as e;"
        "[r.module(n) for n in r.names()]; p.list_targets(); p.load_target('cpu-onnxruntime');"
        "e.environment(); e.doctor();"
        "print([n for n in ('onnxruntime', 'openvino', 'onnx', 'torch', 'optuna') if n in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_profile_is_the_default_target() -> None:
    from autocomp.core.settings import Settings

    assert load_profile(Settings().target).runtime == "onnxruntime"
