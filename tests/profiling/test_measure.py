"""``autocomp profile`` on this CPU: what it writes loads and predicts, and an interrupted run goes on."""

import csv
import json
from pathlib import Path
from typing import Any

import pytest

from autocomp import cli
from autocomp.core.progress import Silent
from autocomp.errors import ConfigError
from autocomp.profiling import measure
from autocomp.profiling.measure import channel_multiple, profile_device
from autocomp.profiling.model import latency_model
from autocomp.profiling.operations import operations
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
