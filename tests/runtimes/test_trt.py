"""TensorRT-RTX builds, for real and without a GPU: plans, refusals, builds that hang, crash or are killed."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import psutil
import pytest
from onnx import TensorProto, helper

from autocomp.core.hardware import HardwareProfile, Plan, Target
from autocomp.errors import RetryableError, UnsupportedError
from autocomp.runtimes import _cuda, find
from autocomp.runtimes._profiles import load_profile
from autocomp.search.job import failure
from autocomp.testing.onnx_models import TinyNetwork

RTX = find("tensorrt_rtx")
pytestmark = pytest.mark.skipif(RTX.missing() is not None, reason=str(RTX.missing()))

FLOAT32 = TinyNetwork()
INT8 = TinyNetwork(int8=frozenset({"conv1", "conv2", "fc"}), symmetric=True)
LAYERS = ("conv1.weight", "conv2.weight", "fc.weight")


@pytest.fixture(scope="module")
def profile() -> HardwareProfile:
    return load_profile("rtx-4090")


def changed(profile: HardwareProfile, **options: object) -> HardwareProfile:
    return dataclasses.replace(profile, options={**profile.options, **options})


def build(profile: HardwareProfile, model: bytes, batch_size: int = 1) -> Plan:
    return RTX.build(model, profile, np.zeros((batch_size, 3, 8, 8), np.float32))


def single(operator: str, opset: int = 18, **attributes: object) -> bytes:
    """A Relu and then one node called "culprit"."""
    nodes = [
        helper.make_node("Relu", ["input"], ["r"], "first"),
        helper.make_node(operator, ["r"], ["y"], "culprit", **attributes),
    ]
    inputs = [helper.make_tensor_value_info("input", TensorProto.FLOAT, [1, 3, 8, 8])]
    graph = helper.make_graph(nodes, "g", inputs, [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)
    return bytes(model.SerializeToString())


def test_float32_plan(profile: HardwareProfile) -> None:
    plan = build(profile, FLOAT32.onnx_bytes())
    assert plan.layers == dict.fromkeys(LAYERS, "float32")
    weights = sum(a.nbytes for name, a in FLOAT32.weights.items() if name.endswith("weight"))
    assert plan.details["weights_memory_bytes"] >= weights
    assert plan.details["version"] == RTX.versions()["tensorrt_rtx"]
    assert plan.engine_bytes == len(plan.data) > weights
    json.dumps(plan.details)


def test_int8_plan_and_free_batch_axis(profile: HardwareProfile) -> None:
    plan = build(profile, INT8.onnx_bytes(), batch_size=5)
    assert plan.layers == dict.fromkeys(LAYERS, "int8")
    first = plan.details["kernels"][0]
    assert first["inputs"][0] == {"type": "float32", "shape": (5, 3, 8, 8)}


def test_the_same_plan_each_time(profile: HardwareProfile) -> None:
    plans = {build(profile, INT8.onnx_bytes()).data for _ in range(3)}
    assert len(plans) == 1


@pytest.mark.slow
def test_a_hundred_builds_are_identical(profile: HardwareProfile) -> None:
    """pytest -m slow tests/runtimes/test_trt.py"""
    assert len({build(profile, INT8.onnx_bytes()).data for _ in range(100)}) == 1


def test_a_late_failure_leaves_no_trace(profile: HardwareProfile) -> None:
    """Turing has no float32 products; in one process the next build would come out different."""
    before = build(profile, INT8.onnx_bytes()).data
    with pytest.raises(UnsupportedError, match=r"node /fc_out/Gemm"):
        build(changed(profile, compute_capability="SM75"), FLOAT32.onnx_bytes())
    assert build(profile, INT8.onnx_bytes()).data == before


@pytest.mark.parametrize("operator", ["Det", "Nonsense", "DynamicQuantizeLinear"])
def test_unsupported_operator_names_its_node(profile: HardwareProfile, operator: str) -> None:
    with pytest.raises(UnsupportedError, match=rf"node culprit, {operator}.*take another target") as caught:
        build(profile, single(operator))
    assert "\n" not in str(caught.value)


def test_asymmetric_quantization_says_what_to_do(profile: HardwareProfile) -> None:
    asymmetric = TinyNetwork(int8=INT8.int8)
    with pytest.raises(UnsupportedError, match=r"node /input_q/QuantizeLinear.*placement\.symmetric"):
        build(profile, asymmetric.onnx_bytes())


@pytest.mark.parametrize("model", [b"", b"not a model" * 20, FLOAT32.onnx_bytes()[:700]], ids=["empty", "text", "torn"])
def test_garbage(profile: HardwareProfile, model: bytes) -> None:
    with pytest.raises(UnsupportedError, match="not an ONNX model") as caught:
        build(profile, model)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("opset", [11, 26])
def test_operator_sets(profile: HardwareProfile, opset: int) -> None:
    assert build(profile, single("Abs", opset)).engine_bytes > 0


def test_an_empty_network_is_no_plan(profile: HardwareProfile) -> None:
    model = onnx.load_model_from_string(single("Abs"))
    del model.graph.output[:]
    with pytest.raises(UnsupportedError, match="empty network; export the model again"):
        build(profile, model.SerializeToString())


def test_example_of_another_shape(profile: HardwareProfile) -> None:
    with pytest.raises(UnsupportedError, match=r"takes inputs \['n', 3, 8, 8\], the example is \[1, 3, 4, 4\]"):
        RTX.build(FLOAT32.onnx_bytes(), profile, np.zeros((1, 3, 4, 4), np.float32))
    with pytest.raises(UnsupportedError, match=r"takes inputs \[1, 3, 8, 8\], the example is \[2, 3, 8, 8\]"):
        build(profile, single("Abs"), batch_size=2)


def test_a_build_that_takes_too_long_becomes_a_value(profile: HardwareProfile) -> None:
    start = time.monotonic()
    with pytest.raises(UnsupportedError, match=r"took over 0\.01 s.*timeout_s") as caught:
        build(changed(profile, timeout_s=0.01), INT8.onnx_bytes())
    assert time.monotonic() - start < 30  # not the ten minutes of the default
    assert (failure(caught.value).stage, failure(caught.value).kind) == ("build", "timeout")


def children() -> list[psutil.Process]:
    """Builds that are under way in children of this process."""
    found = []
    for child in psutil.Process().children():
        try:
            if any("_trt_build.py" in part for part in child.cmdline()):
                found.append(child)
        except psutil.NoSuchProcess:
            continue
    return found


@pytest.fixture
def saboteur() -> Iterator[list[int]]:
    """Sends each of these signals to the next build that starts."""
    signals: list[int] = []
    done = threading.Event()

    def work() -> None:
        while not done.is_set():
            for child in children() if signals else []:
                child.send_signal(signals.pop())
                if not signals:
                    break
            time.sleep(0.005)

    thread = threading.Thread(target=work)
    thread.start()
    yield signals
    done.set()
    thread.join()


@pytest.mark.parametrize(
    ("number", "kind"),
    [(signal.SIGKILL, RetryableError), (signal.SIGSEGV, UnsupportedError), (signal.SIGABRT, UnsupportedError)],
)
def test_a_build_that_dies_becomes_a_value(
    profile: HardwareProfile, saboteur: list[int], number: signal.Signals, kind: type[Exception]
) -> None:
    saboteur.append(number)
    with pytest.raises(kind, match=number.name) as caught:
        build(profile, INT8.onnx_bytes())
    assert failure(caught.value).kind == "died"
    assert children() == []


def test_a_build_that_hangs_ends_with_its_timeout(profile: HardwareProfile, saboteur: list[int]) -> None:
    saboteur.append(signal.SIGSTOP)
    with pytest.raises(UnsupportedError, match="took over 3 s") as caught:
        build(changed(profile, timeout_s=3.0), INT8.onnx_bytes())
    assert failure(caught.value).kind == "timeout"
    assert children() == []


def test_cancelled_by_the_monitor(tmp_path: Path, profile: HardwareProfile) -> None:
    """The child by itself: behind its deadline the library stops the build."""
    model = onnx.load_model_from_string(INT8.onnx_bytes())
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 1
    (tmp_path / "model.onnx").write_bytes(model.SerializeToString())
    request = {"module": "tensorrt_rtx_bindings", "compute_capability": "SM89", "tf32": False, "deadline_s": 0.0}
    (tmp_path / "request.json").write_text(json.dumps(request))
    program = Path(_cuda.__file__).with_name("_trt_build.py")
    done = subprocess.run([sys.executable, "-P", str(program), str(tmp_path)], capture_output=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "result.json").read_text())["cancelled"] is True
    assert not (tmp_path / "plan.bin").exists()


def test_options_reach_the_builder(profile: HardwareProfile) -> None:
    plan = build(changed(profile, workspace_bytes=1 << 26, tf32=True, builder_optimization_level=1), INT8.onnx_bytes())
    assert plan.layers == dict.fromkeys(LAYERS, "int8")
    other = build(changed(profile, compute_capability="SM120"), INT8.onnx_bytes())
    assert other.data != plan.data


def test_building_imports_nothing_here() -> None:
    code = (
        "import sys; from autocomp.testing.onnx_models import TinyNetwork as T; from autocomp.runtimes import find\n"
        "from autocomp.runtimes._profiles import load_profile; net = T()\n"
        "find('tensorrt_rtx').build(net.onnx_bytes(), load_profile('rtx-4090'), net.inputs())\n"
        "assert not [m for m in sys.modules if m.startswith('tensorrt')]"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120, env=environment)


@pytest.mark.skipif(_cuda.no_gpu() is None, reason="a GPU is here")
class TestWithoutGpu:
    def test_no_device_says_what_to_do(self, profile: HardwareProfile) -> None:
        reason = RTX.no_device(profile)
        assert reason is not None
        assert "driver" in reason
        assert "\n" not in reason
        assert Target(profile=profile, runtime=RTX).cannot_build() is None

    def test_load_refuses(self, profile: HardwareProfile) -> None:
        with pytest.raises(UnsupportedError, match="cannot run a plan here: no NVIDIA driver"):
            RTX.load(Plan(data=b"damaged"), profile, FLOAT32.inputs())

    def test_tensorrt_builds_on_the_gpu_only(self) -> None:
        reason = find("tensorrt").missing()
        assert reason is not None
        assert "pip install 'autocomp[tensorrt]'" in reason or "driver" in reason

    def test_versions_name_no_device(self) -> None:
        assert set(RTX.versions()) == {"tensorrt_rtx"}
