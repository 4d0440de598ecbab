"""PyTorch as a runtime: computes what the simulation computes, covers what is exported, leaves torch as it was."""

from __future__ import annotations

import dataclasses

import numpy as np
import onnx
import pytest
import torch
from onnx import helper, numpy_helper

from autocomp.core.hardware import Target
from autocomp.errors import UnsupportedError
from autocomp.graph.capture import first_tensor
from autocomp.graph.simulate import simulated
from autocomp.graph.trace import build_network
from autocomp.runtimes import _onnx_graph as graphs
from autocomp.runtimes._float16 import to_float16
from autocomp.runtimes._onnx_torch import OnnxProgram
from autocomp.runtimes._profiles import load_profile, load_target
from autocomp.runtimes.export import OnnxExporter
from autocomp.runtimes.torch import Torch
from autocomp.testing.candidates import int8_candidate
from autocomp.testing.families import FAMILIES, make_family
from autocomp.testing.onnx_models import TinyNetwork, single_layer

QUICK = ("mobilenet_v2", "unet")
TWICE = ("reused", "shared")
"""Families with a layer that is called on several grids: exported, its bias is rounded for each."""
NO_GRAPH = ("branch",)


@pytest.fixture(scope="module")
def target() -> Target:
    return load_target("cpu-torch")


@pytest.mark.parametrize(
    "name",
    [n if n in QUICK else pytest.param(n, marks=pytest.mark.slow) for n in FAMILIES if n not in NO_GRAPH],
)
def test_families_compute_what_the_simulation_computes(target: Target, name: str) -> None:
    """The same torch functions in the same order: the same up to float32 rounding in decomposed operations.

    For ``TWICE`` the biases are rounded otherwise than in the simulation: below 0.5 % of the range in the mean.
    """
    model, family = make_family(name)
    inputs = family.inputs(4)
    network = build_network(model, inputs)
    exporter, compressed = OnnxExporter(network), int8_candidate(network, inputs)
    for layers, expected in (
        (set(), first_tensor(network.module(inputs)).detach()),
        (set(network.layers), simulated(network, compressed)(inputs)),
    ):
        chosen = compressed if layers else compressed.replace(tensors={}, activations={})
        engine = target.engine(exporter.export(chosen, target.profile.placement, layers), inputs.numpy())
        found = torch.from_numpy(engine.run(inputs.numpy()))
        engine.close()
        difference = (found - expected).abs() / (expected.max() - expected.min())
        if name in TWICE and layers:
            assert float(difference.mean()) < 5e-3
        else:
            assert float(difference.max()) <= 1e-6


@pytest.mark.parametrize(
    ("op", "rank", "attributes"),
    [
        ("Conv", 3, {"pads": [2, 1]}),
        ("Conv", 4, {"pads": [1, 1, 1, 1], "strides": [2, 1], "dilations": [1, 2]}),
        ("Conv", 4, {"pads": [0, 1, 2, 1]}),
        ("Conv", 5, {}),
        ("ConvTranspose", 4, {"pads": [1, 1, 1, 1], "strides": [2, 2], "output_padding": [1, 1]}),
        ("Gemm", 2, {"transB": 1, "alpha": 0.5, "beta": 2.0}),
        ("MatMul", 2, {}),
    ],
)
def test_layers_agree_with_onnx_runtime(op: str, rank: int, attributes: dict[str, object]) -> None:
    """Another implementation of the specification; float sums of at most 108 products in another order."""
    import onnxruntime

    data = single_layer(op, rank, output_grid=False, **attributes)
    inputs = np.random.default_rng(3).standard_normal((1, 4, *(8,) * (rank - 2))).astype(np.float32)
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    (expected,) = session.run(None, {"input": inputs})
    found = OnnxProgram(graphs.load(data))(torch.from_numpy(inputs)).numpy()
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4)


def network_of(node: onnx.NodeProto, shape: list[int | str], **constants: np.ndarray) -> bytes:
    graph = helper.make_graph(
        [node],
        "one",
        [helper.make_tensor_value_info("input", onnx.TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("out", onnx.TensorProto.FLOAT, None)],
        [numpy_helper.from_array(np.asarray(v), k) for k, v in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9).SerializeToString()


@pytest.mark.parametrize(
    ("node", "said"),
    [
        (helper.make_node("Nope", ["input"], ["out"], name="/block/Nope"), "no operator Nope"),
        (helper.make_node("MatMul", ["input", "w"], ["out"], name="/head/MatMul"), "/head/MatMul"),
        (helper.make_node("Relu", ["nowhere"], ["out"], name="/r"), "nothing makes 'nowhere'"),
        (helper.make_node("Conv", ["input", "w"], ["out"], name="/c", auto_pad="SAME_UPPER"), "/c"),
        (helper.make_node("Relu", ["input"], ["out"], name="/r", surprising=1), "surprising"),
    ],
    ids=["unknown op", "fails when run", "dangling input", "variant", "attribute"],
)
def test_refusal_names_the_place(target: Target, node: onnx.NodeProto, said: str) -> None:
    model = network_of(node, ["n", 3], w=np.zeros((7, 5), np.float32))
    with pytest.raises(UnsupportedError, match="torch: cannot") as caught:
        target.runtime.build(model, target.profile, np.zeros((1, 3), np.float32))
    assert said in str(caught.value)
    assert f"(node {node.name})" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_layers_run_in_the_models_float_type_and_the_plan_says_so(target: Target) -> None:
    network = TinyNetwork(int8=frozenset({"conv1", "conv2", "fc"}))
    plan = target.runtime.build(network.onnx_bytes(), target.profile, network.inputs())
    assert plan.layers == dict.fromkeys(network.layers, "float32")
    assert plan.data == network.onnx_bytes()
    half = to_float16(onnx.load_model_from_string(network.onnx_bytes())).SerializeToString()
    plan = target.runtime.build(half, target.profile, network.inputs())
    assert plan.layers == dict.fromkeys(network.layers, "float16")
    engine = target.runtime.load(plan, target.profile, network.inputs())
    exact = target.engine(network.onnx_bytes(), network.inputs())
    found, expected = engine.run(network.inputs()), exact.run(network.inputs())
    np.testing.assert_allclose(found, expected, rtol=0, atol=0.02 * float(np.abs(expected).max()))


def test_torch_is_left_as_it_was(target: Target) -> None:
    """The search around it trains with threads of its own."""
    before = torch.get_num_threads(), torch.backends.cudnn.allow_tf32, torch.is_grad_enabled()
    profile = dataclasses.replace(target.profile, options={"intra_op_num_threads": before[0] + 1})
    network = TinyNetwork()
    plan = target.runtime.build(network.onnx_bytes(), profile, network.inputs())
    engine = target.runtime.load(plan, profile, network.inputs())
    engine.run(network.inputs())
    engine.time_once_s()
    engine.close()
    assert (torch.get_num_threads(), torch.backends.cudnn.allow_tf32, torch.is_grad_enabled()) == before


def test_absent_device_is_said() -> None:
    profile = load_profile("cuda-torch")
    assert Torch().no_device(load_profile("cpu-torch")) is None
    if torch.cuda.is_available():
        assert Torch().no_device(profile) is None
        return
    why = Torch().no_device(profile)
    assert why is not None
    assert "CUDA" in why
    network = TinyNetwork()
    plan = Torch().build(network.onnx_bytes(), profile, network.inputs())
    with pytest.raises(UnsupportedError, match="CUDA"):
        Torch().load(plan, profile, network.inputs())


def test_compiler_that_is_not_there_is_said(target: Target, monkeypatch: pytest.MonkeyPatch) -> None:
    profile = dataclasses.replace(target.profile, options={"mode": "compiled"})
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("CXX", raising=False)
    assert "C++ compiler" in str(Torch().no_device(profile))
    assert Torch().no_device(target.profile) is None
