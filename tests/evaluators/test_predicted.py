"""Predicted latency stands in for the meter: same calls, labelled, remembered, with the engine really built."""

from collections.abc import Callable
from pathlib import Path

import pytest

from autocomp.core.hardware import HardwareProfile, Target
from autocomp.core.outcome import Measurement
from autocomp.errors import UnsupportedError
from autocomp.evaluators.predicted import LatencyPredictor
from autocomp.runtimes import find
from autocomp.runtimes._profiles import load_target
from autocomp.testing.onnx_models import TinyNetwork

FLOAT32, INT8 = TinyNetwork(), TinyNetwork(int8=frozenset({"conv1", "conv2", "fc"}))
EXAMPLE = FLOAT32.inputs()


def counted(network: TinyNetwork, calls: list[str]) -> Callable[[], bytes]:
    def make() -> bytes:
        calls.append("made")
        return network.onnx_bytes()

    return make


def test_engine_is_built_and_latency_predicted(tmp_path: Path) -> None:
    calls: list[str] = []
    target = load_target("xeon-vnni")
    with LatencyPredictor(target, tmp_path) as predictor:
        found, size = predictor.measure("int8", counted(INT8, calls), EXAMPLE, FLOAT32.onnx_bytes)
        assert predictor.measure("int8", counted(INT8, calls), EXAMPLE, FLOAT32.onnx_bytes) == (found, size)
    assert calls == ["made"]
    assert found.source == "predicted"
    assert len(found.samples_s) == len(found.reference_s) == 1
    assert 0 < found.samples_s[0] < found.reference_s[0]
    assert set(found.conditions["layer_precisions"].values()) == {"int8"}
    assert found.conditions["prediction"]["method"] == "roofline"
    assert found.conditions["prediction"]["error"] is None
    assert size == target.runtime.build(INT8.onnx_bytes(), target.profile, EXAMPLE).engine_bytes
    again = LatencyPredictor(target, tmp_path)
    assert again.lookup("int8", EXAMPLE) == (found, size)
    assert Measurement.from_json(found.to_json()) == found


def test_nothing_is_built_for_a_microcontroller(tmp_path: Path) -> None:
    predictor = LatencyPredictor(load_target("cortex-m7"), tmp_path)
    found, size = predictor.measure("int8", INT8.onnx_bytes, EXAMPLE, INT8.onnx_bytes)
    assert size is None
    assert "layer_precisions" not in found.conditions
    assert found.samples_s == found.reference_s
    assert predictor.lookup("int8", EXAMPLE) == (found, None)
    assert predictor.measure("float32", FLOAT32.onnx_bytes, EXAMPLE, INT8.onnx_bytes) is None  # no figure for it
    alone, _ = predictor.measure("int8", INT8.onnx_bytes, EXAMPLE, FLOAT32.onnx_bytes, reference_key="plain")
    assert (alone.samples_s, alone.reference_s) == (found.samples_s, ())


def test_batches_are_remembered_apart(tmp_path: Path) -> None:
    predictor = LatencyPredictor(load_target("cortex-m7"), tmp_path)
    one, _ = predictor.measure("k", INT8.onnx_bytes, INT8.inputs(1), INT8.onnx_bytes)
    four, _ = predictor.measure("k", INT8.onnx_bytes, INT8.inputs(4), INT8.onnx_bytes)
    assert four.samples_s[0] == pytest.approx(4 * one.samples_s[0], rel=1e-12)


def test_a_profile_without_figures_is_refused_at_once(tmp_path: Path) -> None:
    profile = HardwareProfile(name="bare", title="Bare", runtime="none", precisions={})
    with pytest.raises(UnsupportedError, match="no latency can be predicted"):
        LatencyPredictor(Target(profile=profile, runtime=find("none")), tmp_path)
