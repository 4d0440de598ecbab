"""Latency models: a roofline's exact sums, what a missing figure says, a table that finds the costs behind it."""

from dataclasses import replace
from pathlib import Path

import pytest

from autocomp.core.hardware import HardwareProfile, Placement
from autocomp.errors import ConfigError, UnsupportedError
from autocomp.profiling.model import latency_model
from autocomp.profiling.operations import Operation, Value, operations
from autocomp.profiling.probes import Probe, probes
from autocomp.profiling.roofline import Roofline
from autocomp.profiling.table import LatencyTable, Sample, fit, kind_of, terms
from autocomp.runtimes._profiles import load_profile
from autocomp.testing.onnx_models import TinyNetwork


def profile(**numbers: float) -> HardwareProfile:
    plain = {f"numbers.{name}": {"value": value, "source": "test"} for name, value in numbers.items()}
    return HardwareProfile(name="board", title="Board", runtime="none", precisions={}, numbers=plain)


def convolution(inside: int, outside: int, *, precision: str = "float32", groups: int = 1) -> Operation:
    """1x1 on 4 x 4."""
    return Operation(
        name="conv",
        kind="conv2d" if groups == 1 else "depthwise",
        op_type="Conv",
        reads=(Value(name="x", shape=(1, inside, 4, 4), precision=precision),),
        writes=Value(name="y", shape=(1, outside, 4, 4), precision=precision),
        precision=precision,
        weight="w",
        weight_shape=(outside, inside // groups, 1, 1),
        weight_bytes=4 * inside * outside // groups,
        macs=16 * inside * outside // groups,
        kernel=(1, 1),
        groups=groups,
    )


def test_roofline_takes_the_longer_of_arithmetic_and_traffic() -> None:
    figures = {"peak_float32_ops_per_s": 1e6, "memory_bandwidth_bytes_per_s": 1e9, "launch_overhead_s": 0.25}
    operation = convolution(8, 8)
    found = Roofline(profile(**figures)).predict([operation, operation])
    assert found.seconds == 2 * (2 * 16 * 64 / 1e6 + 0.25)
    assert (found.method, found.error, found.notes) == ("roofline", None, ())
    slow = Roofline(profile(**figures | {"memory_bandwidth_bytes_per_s": 1e3})).predict([operation])
    assert slow.seconds == (512 + 512 + 256) / 1e3 + 0.25


@pytest.mark.parametrize(
    ("channels", "groups", "padded"), [((8, 8), 1, 256), ((16, 17), 1, 16 * 32), ((3, 16), 1, 256), ((24, 24), 24, 32)]
)
def test_channels_count_padded(channels: tuple[int, int], groups: int, padded: int) -> None:
    board = replace(profile(peak_float32_ops_per_s=1e6), channel_multiple={"float32": 16})
    assert Roofline(board).padded_macs(convolution(*channels, groups=groups)) == 16 * padded


def test_what_is_missing_is_named() -> None:
    with pytest.raises(UnsupportedError, match=r"no \[numbers\] peak_<precision>_ops_per_s"):
        latency_model(profile(clock_hz=1e6))
    with pytest.raises(UnsupportedError, match=r"conv runs in int8 .* no numbers\.peak_int8_ops_per_s"):
        Roofline(profile(peak_float32_ops_per_s=1e6)).predict([convolution(8, 8, precision="int8")])
    found = Roofline(profile(peak_float32_ops_per_s=1e6)).predict([convolution(8, 8)])
    assert [note.split(" is not")[0] for note in found.notes] == ["memory traffic", "launch overhead"]


def test_a_microcontroller_is_predicted_from_its_data_sheet() -> None:
    int8 = TinyNetwork(int8=frozenset({"conv1", "conv2", "fc"})).onnx_bytes()
    found = latency_model(load_profile("cortex-m7")).predict(operations(int8, 1))
    assert found.seconds == pytest.approx(2 * (64 * 16 * 27 + 64 * 16 * 144 + 80) / 1.92e9, rel=1e-12)
    assert found.error is None


def samples() -> list[Sample]:
    """Probes whose seconds are a known sum of costs."""
    costs = {
        "constant": 1e-5,
        "conv2d3x3/1:int8 macs": 1e-12,
        "conv2d3x3/1:float32 macs": 3e-12,
        "float32>int8 count": 4e-6,
    }
    found = []
    for probe in probes(["float32", "int8"]):
        if probe.kind == "conv2d" and probe.kernel == 3 and probe.stride == 1:
            seen = operations(probe.model(Placement()))
            counted = terms(seen, 16)
            found.append(Sample(operations=seen, seconds=sum(costs.get(t, 0.0) * n for t, n in counted.items())))
    return found


def test_a_table_finds_what_made_the_samples() -> None:
    table = fit(samples(), ridge=1e-12)
    assert table.error is not None
    assert table.error < 1e-3
    for sample in samples():
        found = table.predict(sample.operations)
        assert found.seconds == pytest.approx(sample.seconds, rel=1e-4)
        assert (found.method, found.error, found.notes) == ("table", table.error, ())


def test_layers_timed_alone_help() -> None:
    """One engine of two layers cannot tell them apart; their own seconds can."""
    probe = Probe(purpose="edges", kind="conv2d", precisions=("int8", "float32"), channels=(16, 16), size=8, kernel=3)
    found = operations(probe.model(Placement()))
    table = fit([Sample(operations=found, seconds=5e-5, layers_s={"w0": 1e-5, "w1": 3e-5})], ridge=1e-9)
    alone = {}
    for operation in found:
        own = {term: n for term, n in terms([operation], 16).items() if term.startswith(kind_of(operation))}
        alone[operation.weight] = sum(table.costs_s.get(term, 0) * n for term, n in own.items())
    assert alone["w1"] > 1.5 * alone["w0"]
    assert table.predict(found).seconds == pytest.approx(5e-5, rel=0.01)


def test_operations_never_measured_leave_the_error_unknown() -> None:
    found = fit(samples()).predict(operations(TinyNetwork().onnx_bytes(), 1))
    assert found.error is None
    (note,) = found.notes
    assert note.startswith("never measured on this device, counted as nothing: ")
    assert "GlobalAveragePool:float32" in note


def test_saved_and_read_again(tmp_path: Path) -> None:
    table = fit(samples(), facts={"device": "a board"})
    table.save(tmp_path / "t.json")
    assert LatencyTable.load(tmp_path / "t.json") == table


@pytest.mark.parametrize(
    "text", ["", "[]", '{"version": 1}', '{"version": 9}', '{"version": 1, "costs_s": {"a": "x"}}']
)
def test_a_damaged_table_is_a_config_error(tmp_path: Path, text: str) -> None:
    (tmp_path / "t.json").write_text(text)
    with pytest.raises(ConfigError, match=r"t\.json"):
        LatencyTable.load(tmp_path / "t.json")
