"""What every runtime has to hold. A new one inherits this class and names its profile:

class TestMyRuntime(RuntimeContract):
    profile_name = "my-device"
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar

import numpy as np
import pytest

from autocomp import runtimes
from autocomp.core.hardware import Engine, Target
from autocomp.errors import UnsupportedError
from autocomp.runtimes._profiles import load_profile
from autocomp.testing.onnx_models import OUTPUT_SCALE, TinyNetwork

FLOAT32 = TinyNetwork()


def int8_network(target: Target) -> TinyNetwork:
    """All layers int8, on grids that the target takes."""
    return TinyNetwork(int8=frozenset({"conv1", "conv2", "fc"}), symmetric=target.profile.placement.symmetric)


class RuntimeContract:
    """Contract of :class:`autocomp.core.hardware.Runtime` on a device that is here.

    Class attributes:
        profile_name: shipped profile or TOML path.
        float32_tolerance: largest difference from torch on outputs of about 1. Sums of at most 144
            products, each rounded to 24 bits, three layers deep: below 1e-4 in float32; a runtime
            that computes float32 layers in TF32 or bfloat16 by default states its own.
        int8_steps: largest difference in steps of the output grid. Integer sums are exact, so the
            two differ where a value lies on a rounding boundary before one of four grids: one step
            there moves the output by less than two of its own.
    """

    profile_name: ClassVar[str] = "cpu-onnxruntime"
    float32_tolerance: ClassVar[float] = 1e-4
    int8_steps: ClassVar[int] = 2

    @pytest.fixture
    def target(self) -> Target:
        profile = load_profile(self.profile_name)
        found = Target(profile=profile, runtime=runtimes.find(profile.runtime))
        reason = found.cannot_measure()
        if reason is not None:
            pytest.skip(f"{self.profile_name}: {reason}")
        return found

    @pytest.fixture
    def engine(self, target: Target) -> Iterator[Engine]:
        built = target.engine(FLOAT32.onnx_bytes(), FLOAT32.inputs())
        yield built
        built.close()

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

    def test_int8_agrees_with_torch(self, target: Target) -> None:
        if not any("int8" in p for p in target.profile.precisions.values()):
            pytest.skip(f"{self.profile_name} runs no layer in int8")
        network = int8_network(target)
        inputs = network.inputs(8)
        engine = target.engine(network.onnx_bytes(), inputs)
        try:
            outputs = engine.run(inputs)
        finally:
            engine.close()
        steps = np.abs(outputs - network.torch_outputs(inputs)) / OUTPUT_SCALE
        assert steps.max() <= self.int8_steps + 1e-3

    def test_same_input_same_output(self, engine: Engine) -> None:
        inputs = FLOAT32.inputs()
        np.testing.assert_array_equal(engine.run(inputs), engine.run(inputs))

    def test_batch_of_the_example(self, target: Target) -> None:
        inputs = FLOAT32.inputs(3)
        engine = target.engine(FLOAT32.onnx_bytes(), inputs)
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
        assert set(plan.layers) == {"conv1.weight", "conv2.weight", "fc.weight"}
        able = any("int8" in p for p in target.profile.precisions.values())
        assert set(plan.layers.values()) == {"int8" if able else "float32"}

    @pytest.mark.parametrize(
        "model", [b"", b"not a model" * 20, FLOAT32.onnx_bytes()[:700]], ids=["empty", "text", "torn"]
    )
    def test_garbage_is_unsupported(self, target: Target, model: bytes) -> None:
        with pytest.raises(UnsupportedError) as caught:
            target.runtime.build(model, target.profile, FLOAT32.inputs())
        assert "\n" not in str(caught.value)

    def test_wrong_input_is_unsupported(self, target: Target, engine: Engine) -> None:
        with pytest.raises(UnsupportedError):
            engine.run(np.zeros((1, 3, 5, 7), np.float32))

    def test_close_twice(self, target: Target) -> None:
        engine = target.engine(FLOAT32.onnx_bytes(), FLOAT32.inputs())
        engine.close()
        engine.close()
