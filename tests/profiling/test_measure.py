"""``autocomp profile`` on this CPU: what it writes loads and predicts, and an interrupted run goes on."""

import csv
import dataclasses
import json
from pathlib import Path
from typing import Any

import onnx
import pytest

from autocomp import cli
from autocomp.core.progress import Silent
from autocomp.errors import ConfigError
from autocomp.profiling import measure
from autocomp.profiling.measure import channel_multiple, profile_device
from autocomp.profiling.model import latency_model
from autocomp.profiling.operations import operations
from autocomp.profiling.probes import probes
from autocomp.runtimes._float16 import to_float16
from autocomp.runtimes._profiles import load_profile, load_target
from autocomp.testing.onnx_models import TinyNetwork


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """The fewest runs: figures are not looked at."""
    for name, value in (("WARM_UP", 0), ("LEAST_RUNS", 1), ("MOST_RUNS", 1)):
        monkeypatch.setattr(measure, name, value)


class Interrupting(Silent):
    """Ctrl-C after so many engines."""

    def __init__(self, after: int) -> None:
        self.left = after

    def advance(self, steps: int = 1, **facts: Any) -> None:
        self.left -= steps
        if self.left == 0:
            raise KeyboardInterrupt


@pytest.mark.usefixtures("short")
def test_interrupted_and_gone_on_with(tmp_path: Path) -> None:
    target, out = load_target("cpu-onnxruntime"), tmp_path / "mine.toml"
    with pytest.raises(KeyboardInterrupt):
        profile_device(target, out, Interrupting(after=5))
    first = json.loads((tmp_path / "mine.measured.json").read_text())["seconds"]
    assert len(first) == 5
    assert not out.exists()
    profile_device(target, out, Silent())
    second = json.loads((tmp_path / "mine.measured.json").read_text())["seconds"]
    assert {key: second[key] for key in first} == first

    written = load_profile(str(out))
    assert written.precisions == target.profile.precisions
    assert written.options == target.profile.options
    named = {"peak_float32_ops_per_s", "peak_int8_ops_per_s", "memory_bandwidth_bytes_per_s"}
    assert named <= {key.removeprefix("numbers.") for key in written.numbers}
    assert all("autocomp profile" in written.numbers[f"numbers.{key}"]["source"] for key in named)
    assert load_target(str(out)).cannot_measure() is None
    found = latency_model(written).predict(operations(TinyNetwork().onnx_bytes(), 1))
    assert (found.method, found.seconds > 0) == ("table", True)
    rows = list(csv.DictReader((tmp_path / "mine.operators.csv").read_text().splitlines()))
    assert {row["probe"] for row in rows} == set(second)


class Noting(Silent):
    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, text: str) -> None:
        self.notes.append(text)


@pytest.mark.usefixtures("short")
def test_float16_is_measured_where_it_runs(tmp_path: Path) -> None:
    target, out = load_target("cpu-torch"), tmp_path / "mine.toml"
    progress = Noting()
    profile_device(target, out, progress)
    written = load_profile(str(out))
    assert {"numbers.peak_float32_ops_per_s", "numbers.peak_float16_ops_per_s"} <= set(written.numbers)
    assert set(written.channel_multiple) == {"float32", "float16"}
    assert progress.notes == []
    half = to_float16(onnx.load_model_from_string(TinyNetwork().onnx_bytes())).SerializeToString()
    found = latency_model(written).predict(operations(half, 1))
    assert (found.method, found.seconds > 0) == ("table", True)


@pytest.mark.usefixtures("short")
def test_a_precision_that_the_runtime_replaces_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """ONNX Runtime's CPU takes float16 models, and computes them in float32."""
    known = load_target("cpu-onnxruntime")
    listed = dict.fromkeys(("conv2d", "linear"), ("float32", "float16"))
    target = dataclasses.replace(known, profile=dataclasses.replace(known.profile, precisions=listed))
    monkeypatch.setattr(measure, "probes", lambda ps: [p for p in probes(ps) if p.size < 16 or p.purpose == "overhead"])
    progress = Noting()
    profile_device(target, tmp_path / "mine.toml", progress)
    written = (tmp_path / "mine.toml").read_text()
    assert "peak_float32_ops_per_s" in written
    assert "peak_float16_ops_per_s" not in written
    assert "onnxruntime runs it in float32; float16 is left out of the profile's figures" in progress.notes[0]


def test_channel_steps_are_found() -> None:
    for multiple in (1, 8, 16, 32):
        steps = {c: 1e-5 + 1e-7 * (-(-c // multiple) * multiple) ** 2 for c in range(16, 81, 4)}
        assert channel_multiple(steps) == (4 if multiple == 4 else multiple)


def test_out_has_to_be_toml(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"ends in \.toml"):
        profile_device(load_target("cpu-onnxruntime"), tmp_path / "mine.json", Silent())


@pytest.mark.parametrize("text", ["", "[]", '{"facts": {"versions": {"onnxruntime": "0"}}, "seconds": {}}'])
def test_figures_of_something_else_are_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "mine.measured.json").write_text(text)
    with pytest.raises(ConfigError, match=r"mine\.measured\.json holds"):
        profile_device(load_target("cpu-onnxruntime"), tmp_path / "mine.toml", Silent())


def test_a_device_that_is_not_here_is_one_line_and_exit_2(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["profile", "cortex-m7"]) == 2
    said = capsys.readouterr().err.strip()
    assert said.startswith("error: target cortex-m7 cannot be measured here: ")
    assert "\n" not in said
