"""What every runtime has to hold. A new one inherits this class and names its profile:

class TestMyRuntime(RuntimeContract):
    profile_name = "my-device"

Where the device is absent, what needs it skips with the reason; building is tested wherever plans can be built.
"""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import onnx
import pytest

from autocomp import runtimes
from autocomp.core.hardware import Engine, Plan, Target
from autocomp.errors import UnsupportedError
from autocomp.evaluators.latency import LatencyMeter
from autocomp.evaluators.statistics import ratio_ci
from autocomp.runtimes._profiles import load_profile
from autocomp.testing.onnx_models import OUTPUT_SCALE, TinyNetwork

FLOAT32 = TinyNetwork()


LAYERS = frozenset({"conv1", "conv2", "fc"})


def int8_network(target: Target, int8: frozenset[str] = LAYERS) -> TinyNetwork:
    """These layers int8, on grids that the target takes."""
    return TinyNetwork(int8=int8, symmetric=target.profile.placement.symmetric)


class RuntimeContract:
    """Contract of :class:`autocomp.core.hardware.Runtime` on a device that is here.

    Class attributes:
        profile_name: shipped profile or TOML path.
        options: over the profile's own.
        float32_tolerance: largest difference from torch on outputs of about 1. Sums of at most 144
            products, each rounded to 24 bits, three layers deep: below 1e-4 in float32; a runtime
            that computes float32 layers in TF32 or bfloat16 by default states its own.
        int8_steps: largest difference in steps of the output grid. Integer sums are exact, so the
            two differ where a value lies on a rounding boundary before one of four grids: one step
            there moves the output by less than two of its own.
    """

    profile_name: ClassVar[str] = "cpu-onnxruntime"
    options: ClassVar[Mapping[str, Any]] = {}
    float32_tolerance: ClassVar[float] = 1e-4
    int8_steps: ClassVar[int] = 2

    @pytest.fixture
    def target(self) -> Target:
        """Where plans can be built."""
        profile = load_profile(self.profile_name)
        target = Target(
            profile=dataclasses.replace(profile, options={**profile.options, **self.options}),
            runtime=runtimes.find(profile.runtime),
        )
        missing = target.cannot_build()
        if missing is not None:
            pytest.skip(f"{self.profile_name}: {missing}")
        return target

    @pytest.fixture
    def device(self, target: Target) -> Target:
        """Where they run, too."""
        missing = target.cannot_measure()
        if missing is not None:
            pytest.skip(f"{self.profile_name}: {missing}")
        return target

    @pytest.fixture
    def engine(self, device: Target) -> Iterator[Engine]:
        built = device.engine(FLOAT32.onnx_bytes(), FLOAT32.inputs())
        yield built
        built.close()

    @pytest.fixture
    def plan(self, target: Target) -> Plan:
        return target.runtime.build(FLOAT32.onnx_bytes(), target.profile, FLOAT32.inputs())

    def test_name_is_the_modules(self, target: Target) -> None:
        assert target.runtime.name == target.profile.runtime
        assert target.runtime.name in runtimes.names()

    def test_versions_are_plain_text(self, target: Target) -> None:
        versions = target.runtime.versions()
        assert versions
        assert all(isinstance(k, str) and isinstance(v, str) and v for k, v in versions.items())
        assert versions == target.runtime.versions()

    def test_float32_agrees_with_torch(self, target: Target, engine: Engine) -> None:
        inputs = FLOAT32.inputs()
        expected = FLOAT32.torch_outputs(inputs)
        outputs = engine.run(inputs)
        assert outputs.shape == expected.shape
        np.testing.assert_allclose(outputs, expected, rtol=0, atol=self.float32_tolerance)

    def test_int8_agrees_with_torch(self, device: Target) -> None:
        """On integers, or simulated in float32 where the device runs none."""
        network = int8_network(device)
        inputs = network.inputs(8)
        engine = device.engine(network.onnx_bytes(), inputs)
        try:
            outputs = engine.run(inputs)
        finally:
            engine.close()
        steps = np.abs(outputs - network.torch_outputs(inputs)) / OUTPUT_SCALE
        assert steps.max() <= self.int8_steps + 1e-3

    @pytest.mark.parametrize(
        "int8", [(), ("conv2",), ("conv1", "fc"), tuple(sorted(LAYERS))], ids=lambda s: "+".join(s) or "none"
    )
    def test_layers_run_as_requested(self, device: Target, int8: tuple[str, ...]) -> None:
        """Those asked for in int8, where the device runs any, and no other; the outputs are those of the network."""
        network = int8_network(device, frozenset(int8))
        inputs = network.inputs(4)
        plan = device.runtime.build(network.onnx_bytes(), device.profile, inputs)
        engine = device.runtime.load(plan, device.profile, inputs)
        outputs = engine.run(inputs)
        engine.close()
        able = any("int8" in p for p in device.profile.precisions.values())
        wanted = {f"{n}.weight": "int8" if able and n in int8 else "float32" for n in ("conv1", "conv2", "fc")}
        assert plan.layers == wanted
        assert np.abs(outputs - network.torch_outputs(inputs)).max() <= self.int8_steps * OUTPUT_SCALE + 1e-3

    def test_same_input_same_output(self, engine: Engine) -> None:
        inputs = FLOAT32.inputs()
        np.testing.assert_array_equal(engine.run(inputs), engine.run(inputs))

    def test_batch_of_the_example(self, device: Target) -> None:
        inputs = FLOAT32.inputs(3)
        engine = device.engine(FLOAT32.onnx_bytes(), inputs)
        try:
            outputs = engine.run(inputs)
            assert engine.time_once_s() > 0
        finally:
            engine.close()
        np.testing.assert_allclose(outputs, FLOAT32.torch_outputs(inputs), rtol=0, atol=self.float32_tolerance)

    def test_timings_are_positive_seconds(self, engine: Engine) -> None:
        samples = [engine.time_once_s() for _ in range(20)]
        assert all(isinstance(s, float) for s in samples)
        assert 0 < min(samples) <= max(samples) < 60  # seconds, not milliseconds of a network this small

    def test_timing_leaves_the_outputs_alone(self, engine: Engine) -> None:
        inputs = FLOAT32.inputs()
        before = engine.run(inputs)
        engine.time_once_s()
        np.testing.assert_array_equal(before, engine.run(inputs))

    def test_plan_tells_what_runs(self, target: Target) -> None:
        network = int8_network(target)
        plan = target.runtime.build(network.onnx_bytes(), target.profile, network.inputs())
        assert plan.engine_bytes == len(plan.data) > 0
        assert set(plan.layers) == set(network.layers)
        able = any("int8" in p for p in target.profile.precisions.values())
        assert set(plan.layers.values()) == {"int8" if able else "float32"}

    @pytest.mark.parametrize(
        "model", [b"", b"not a model" * 20, FLOAT32.onnx_bytes()[:700]], ids=["empty", "text", "torn"]
    )
    def test_garbage_is_unsupported(self, target: Target, model: bytes) -> None:
        with pytest.raises(UnsupportedError) as caught:
            target.runtime.build(model, target.profile, FLOAT32.inputs())
        assert "\n" not in str(caught.value)

    def test_wrong_input_is_unsupported(self, engine: Engine) -> None:
        with pytest.raises(UnsupportedError):
            engine.run(np.zeros((1, 3, 5, 7), np.float32))

    def test_unknown_operator_is_named_with_its_node(self, target: Target) -> None:
        model = onnx.load_from_string(FLOAT32.onnx_bytes())
        node = next(n for n in model.graph.node if n.op_type == "GlobalAveragePool")
        node.op_type, node.name = "Nope", "/block/Nope"
        with pytest.raises(UnsupportedError, match="/block/Nope") as caught:
            target.runtime.build(model.SerializeToString(), target.profile, FLOAT32.inputs())
        assert "\n" not in str(caught.value)

    @pytest.mark.parametrize("kept", [0, 100, 700], ids=["empty", "head only", "torn"])
    def test_corrupt_plan_is_unsupported(self, device: Target, plan: Plan, kept: int) -> None:
        corrupt = dataclasses.replace(plan, data=plan.data[:kept])
        with pytest.raises(UnsupportedError) as caught:
            device.runtime.load(corrupt, device.profile, FLOAT32.inputs())
        assert "\n" not in str(caught.value)

    def test_plan_loads_in_a_fresh_process(self, device: Target, engine: Engine, plan: Plan, tmp_path: Path) -> None:
        (tmp_path / "plan").write_bytes(plan.data)
        inputs = FLOAT32.inputs()
        np.save(tmp_path / "inputs.npy", inputs)
        code = f"""
import dataclasses, pathlib, numpy as np
from autocomp import runtimes
from autocomp.core.hardware import Plan
from autocomp.runtimes._profiles import load_profile
folder = pathlib.Path({str(tmp_path)!r})
profile = load_profile({self.profile_name!r})
profile = dataclasses.replace(profile, options={dict(device.profile.options)!r})
inputs = np.load(folder / "inputs.npy")
engine = runtimes.find(profile.runtime).load(Plan(data=(folder / "plan").read_bytes()), profile, inputs)
np.save(folder / "outputs.npy", engine.run(inputs))
engine.close()
"""
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        np.testing.assert_allclose(np.load(tmp_path / "outputs.npy"), engine.run(inputs), rtol=0, atol=1e-6)

    def test_engine_against_itself_takes_as_long(self, device: Target, tmp_path: Path) -> None:
        """The ratio's 95 % interval holds 1, or nearly: one in 20 does not by chance, three in a row one in 8000."""
        network = TinyNetwork(channels=64, size=32)
        with LatencyMeter(device, tmp_path) as meter:
            for _ in range(3):
                found, engine_bytes = meter.measure(
                    "itself", network.onnx_bytes, network.inputs(), network.onnx_bytes, fresh=True
                )
                ratio, (low, high) = ratio_ci(found.samples_s, found.reference_s)
                if low - 0.02 <= 1 <= high + 0.02:
                    break
        assert low - 0.02 <= 1 <= high + 0.02, f"{ratio} in [{low}, {high}]"
        assert engine_bytes > 0
        assert min(found.samples_s + found.reference_s) > 0
        assert found.conditions["layer_precisions"] == dict.fromkeys(network.layers, "float32")

    def test_closed_engine_says_so(self, device: Target) -> None:
        engine = device.engine(FLOAT32.onnx_bytes(), FLOAT32.inputs())
        engine.close()
        engine.close()
        for call in (lambda: engine.run(FLOAT32.inputs()), engine.time_once_s):
            with pytest.raises(UnsupportedError, match="closed"):
                call()
