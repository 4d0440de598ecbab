"""The main job on a small network: what a user relies on when the command has ended."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tiny_workload import HERE, Tiny

Run = Callable[..., subprocess.CompletedProcess[str]]
QUICK = ("--preset", "quick", "--trials", "14")


@pytest.fixture(scope="module")
def finished(tiny: Tiny, autocomp: Run, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """A finished run and its summary."""
    out = tmp_path_factory.mktemp("runs") / "run"
    done = autocomp("search", *tiny.arguments, "--budget", "7kB", *QUICK, "--out", out, "--json")
    assert done.returncode == 0, done.stderr
    return out, json.loads(done.stdout)


def test_the_answer_fits_and_is_what_was_scored(finished: tuple[Path, dict[str, Any]]) -> None:
    out, summary = finished
    best = summary["best"]
    assert best["feasible"]
    assert os.stat(out / "model.autocomp").st_size == best["file_bytes"] <= 7000
    assert best["score_test"] > summary["float32"]["score_test"] - 0.03
    assert best["latency_source"] == "measured"
    assert summary["failures"] == {}
    assert summary["evaluations"] == 14


def test_every_file_of_the_front_has_the_size_its_row_says(finished: tuple[Path, dict[str, Any]]) -> None:
    _, summary = finished
    assert len(summary["pareto"]) >= 5
    for row in summary["pareto"]:
        assert os.stat(row["file"]).st_size == row["file_bytes"]
        assert row["feasible"] == (row["file_bytes"] <= 7000)
    for name in ("float16", "int8", "uniform-4bit"):
        assert os.stat(summary["baselines"][name]["file"]).st_size == summary["baselines"][name]["file_bytes"]


def test_the_run_folder_is_complete(finished: tuple[Path, dict[str, Any]]) -> None:
    out, _ = finished
    names = {p.name for p in out.iterdir()}
    assert names >= {
        "config.toml", "study.journal", "environment.json", "trials.csv", "pareto.csv", "pareto.json", "pareto.png",
        "report.html", "model.autocomp", "model.onnx", "candidates", "cache",
    }  # fmt: skip


def test_the_same_command_again_shows_the_finished_run(
    finished: tuple[Path, dict[str, Any]], tiny: Tiny, autocomp: Run
) -> None:
    out, summary = finished
    again = autocomp("search", *tiny.arguments, "--budget", "7kB", *QUICK, "--out", out, "--json")
    assert again.returncode == 0, again.stderr
    assert json.loads(again.stdout) == summary


def test_a_copied_run_goes_on_by_itself_and_shows_what_its_files_are(
    finished: tuple[Path, dict[str, Any]], tiny: Tiny, autocomp: Run, tmp_path: Path
) -> None:
    out, summary = finished
    before = {path: path.read_bytes() for path in sorted((out / "candidates").iterdir())}
    copy = tmp_path / "copy"
    shutil.copytree(out, copy)
    longest = max((copy / "candidates").iterdir(), key=lambda path: path.stat().st_size)
    longest.write_bytes(longest.read_bytes() + b"\0")  # not what the study says of it
    more = ("--preset", "quick", "--trials", "16")
    done = autocomp("search", *tiny.arguments, "--budget", "7kB", *more, "--out", copy, "--json")
    assert done.returncode == 0, done.stderr
    rows = json.loads(done.stdout)["pareto"]
    assert len(rows) >= len(summary["pareto"]) - 2
    for row in rows:
        assert Path(row["file"]).parent == copy / "candidates"
        assert os.stat(row["file"]).st_size == row["file_bytes"]
    assert {path: path.read_bytes() for path in sorted((out / "candidates").iterdir())} == before


def test_a_finished_run_is_shown_again_with_its_own_files_and_all_of_them(
    finished: tuple[Path, dict[str, Any]], tiny: Tiny, autocomp: Run, tmp_path: Path
) -> None:
    """A copy, one of its files cut short: the same command makes that one again, and tells of no other folder."""
    out, summary = finished
    copy = tmp_path / "copy"
    shutil.copytree(out, copy)
    damaged = min((copy / "candidates").iterdir())
    damaged.write_bytes(damaged.read_bytes()[:-9])
    done = autocomp("search", *tiny.arguments, "--budget", "7kB", *QUICK, "--out", copy, "--json")
    assert done.returncode == 0, done.stderr
    again = json.loads(done.stdout)
    assert again["evaluations"] == summary["evaluations"]
    for row in (again["best"], *again["pareto"]):
        assert Path(row["file"]).is_relative_to(copy)
        assert os.stat(row["file"]).st_size == row["file_bytes"]


def test_verify_holds_on_the_run_and_on_the_file(finished: tuple[Path, dict[str, Any]], autocomp: Run) -> None:
    out, _ = finished
    for path in (out, out / "model.autocomp"):
        checked = autocomp("verify", path)
        assert checked.returncode == 0, checked.stdout + checked.stderr


def test_verify_notices_a_file_that_is_not_the_claimed_one(
    finished: tuple[Path, dict[str, Any]], autocomp: Run, tmp_path: Path
) -> None:
    out, _ = finished
    copy = tmp_path / "copy"
    shutil.copytree(out, copy)
    text = (copy / "summary.json").read_text().replace(str(out), str(copy))
    claimed = json.loads(text)
    claimed["best"]["file_bytes"] -= 1
    (copy / "summary.json").write_text(json.dumps(claimed))
    assert autocomp("verify", copy).returncode == 1
    broken = copy / "model.autocomp"
    data = bytearray(broken.read_bytes())
    data[len(data) // 2] ^= 4
    broken.write_bytes(data)
    checked = autocomp("verify", broken)
    assert checked.returncode in (1, 2)
    assert "Traceback" not in checked.stderr


def test_load_gives_the_scored_network_in_a_fresh_process(finished: tuple[Path, dict[str, Any]], tiny: Tiny) -> None:
    out, summary = finished
    code = f"""
import sys; sys.path.insert(0, {str(HERE)!r})
import numpy as np, torch, autocomp
from tiny_net import TinyNet
net = autocomp.load({str(out / "model.autocomp")!r}, into=TinyNet())
data = np.load({tiny.data.removeprefix("npz:")!r})
scores = []
for name in ("test",):
    x, y = torch.from_numpy(data["x_" + name]), torch.from_numpy(data["y_" + name])
    with torch.no_grad():
        scores.append(float((net(x).argmax(1) == y).float().mean()))
print(scores[0])
"""
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    best = summary["best"]
    # the search and the test split are the two halves of the test set
    expected = (best["score_search"] + best["score_test"]) / 2
    assert abs(float(said) - expected) < 0.005


@pytest.mark.parametrize("file_format", ["autocomp", "onnx", "safetensors"])
def test_export(finished: tuple[Path, dict[str, Any]], autocomp: Run, tmp_path: Path, file_format: str) -> None:
    out, _ = finished
    target = tmp_path / f"x.{file_format}"
    done = autocomp("export", out, "--pick", "knee", "--format", file_format, "--out", target)
    assert done.returncode == 0, done.stderr
    if file_format == "onnx":
        import onnx

        onnx.checker.check_model(onnx.load(target))
    elif file_format == "safetensors":
        from safetensors.torch import load_file

        assert "head.weight" in load_file(target)
    else:
        from tiny_net import TinyNet

        import autocomp as package

        package.load(target, into=TinyNet())


def test_report_is_rebuilt(finished: tuple[Path, dict[str, Any]], autocomp: Run) -> None:
    out, _ = finished
    (out / "report.html").unlink()
    assert autocomp("report", out).returncode == 0
    assert (out / "report.html").stat().st_size > 1000


def test_survey_prints_every_layer(tiny: Tiny, autocomp: Run, tmp_path: Path) -> None:
    done = autocomp("survey", *tiny.arguments, "--preset", "quick", "--out", tmp_path / "run")
    assert done.returncode == 0, done.stderr
    for layer in ("stem.0", "conv1", "conv2", "down", "head"):
        assert layer in done.stdout
