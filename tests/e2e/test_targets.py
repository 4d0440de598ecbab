"""The main job on the further CPU targets: the same answer in kind, measured on the engine that the target names."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from tiny_workload import Tiny

from autocomp.core.hardware import Target
from autocomp.runtimes import find
from autocomp.runtimes._profiles import load_profile


@pytest.mark.parametrize("name", ["cpu-openvino", pytest.param("cpu-torch", marks=pytest.mark.slow)])
def test_search_measures_on_the_target(
    tiny: Tiny, autocomp: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path, name: str
) -> None:
    profile = load_profile(name)
    missing = Target(profile=profile, runtime=find(profile.runtime)).cannot_measure()
    if missing is not None:
        pytest.skip(f"{name}: {missing}")
    out = tmp_path / "run"
    asked = ("--budget", "60kB", "--target", name, "--preset", "quick", "--trials", "6")
    done = autocomp("search", *tiny.arguments, *asked, "--out", out, "--json")
    assert done.returncode == 0, done.stderr
    summary = json.loads(done.stdout)
    best = summary["best"]
    assert summary["target"] == name
    assert summary["failures"] == {}
    assert os.stat(best["file"]).st_size == best["file_bytes"] <= 60_000
    assert best["score_test"] > summary["float32"]["score_test"] - 0.03
    for row in (best, summary["baselines"]["int8"]):
        assert row["latency_source"] == "measured"
        assert row["engine_bytes"] > 0
    assert f"the {profile.runtime} engine itself scores" in json.dumps(summary)


def test_search_for_a_gpu_that_is_not_here(
    tiny: Tiny, autocomp: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path
) -> None:
    """Engines are built, latencies predicted and labelled so, and the way to measure them is said."""
    profile = load_profile("rtx-4090")
    target = Target(profile=profile, runtime=find(profile.runtime))
    if target.cannot_build() is not None:
        pytest.skip(f"rtx-4090: {target.cannot_build()}")
    if target.cannot_measure() is None:
        pytest.skip("the device is here")
    out = tmp_path / "run"
    asked = ("--budget", "60kB", "--target", "rtx-4090", "--preset", "quick", "--trials", "4")
    done = autocomp("search", *tiny.arguments, *asked, "--out", out, "--json")
    assert done.returncode == 0, done.stderr
    assert "latencies for rtx-4090 are predicted, not measured" in done.stderr
    assert "run the same command on the device" in done.stderr
    summary = json.loads(done.stdout)
    assert summary["failures"] == {}
    assert 1 <= summary["engine_builds"] <= summary["evaluations"]
    for row in (summary["best"], summary["float32"], *summary["baselines"].values()):
        assert row["latency_source"] == "predicted"
        assert row["latency_ms"] > 0
        assert row["latency_ms_ci95"] is None
        assert row["engine_bytes"] > 0
    assert summary["baselines"]["int8"]["latency_ms"] < summary["float32"]["latency_ms"]
    assert any("error unknown" in note and "launch overhead" in note for note in summary["best"]["notes"])
    shipped = json.loads((out / "model.plan.json").read_text())
    assert (out / "model.plan").stat().st_size == summary["best"]["engine_bytes"]
    assert shipped["kernels"]
    stored = json.loads((out / "summary.json").read_text())
    assert {layer["runs"] for layer in stored["layers"]} <= {"int8", "float16", "float32"}
    assert "predicted" in (out / "report.html").read_text()
    assert autocomp("verify", out).returncode == 0
    exported = autocomp("export", out, "--format", "tensorrt", "--out", tmp_path / "again.plan")
    assert exported.returncode == 0, exported.stderr
    assert (tmp_path / "again.plan").read_bytes() == (out / "model.plan").read_bytes()


@pytest.mark.slow
def test_float8_search(tiny: Tiny, autocomp: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path) -> None:
    """Simulated, coded, built by the real builder, read back, and the same again from the file."""
    profile = load_profile("rtx-4090")
    missing = Target(profile=profile, runtime=find(profile.runtime)).cannot_build()
    if missing is not None:
        pytest.skip(f"rtx-4090: {missing}")
    space = tmp_path / "space.toml"
    space.write_text(
        '[weights]\nfloat32 = false\n[[share]]\nkind = "float8_weights"\ngranularity = ["channel", "tensor"]\n'
        '[activations]\nprecisions = ["float8"]\n'
    )
    out = tmp_path / "run"
    asked = ("--budget", "60kB", "--target", "rtx-4090", "--space", space, "--preset", "quick", "--trials", "4")
    done = autocomp("search", *tiny.arguments, *asked, "--out", out, "--json")
    assert done.returncode == 0, done.stderr
    summary = json.loads(done.stdout)
    assert summary["failures"] == {}
    baseline = summary["baselines"]["float8"]
    assert baseline["techniques"] == ["float8_weights", "quantize_activations"]
    assert 0 < baseline["kl_search"] < 0.05
    assert baseline["score_search"] > summary["float32"]["score_search"] - 0.03
    assert not [note for note in baseline["notes"] if "requested float8" in note]
    stored = json.loads((out / "summary.json").read_text())
    assert {layer["runs"] for layer in stored["layers"]} == {"float8"}
    assert autocomp("verify", out).returncode == 0
    refused = autocomp("search", *tiny.arguments, "--space", space, "--trials", "2", "--out", tmp_path / "cpu")
    assert "float8 execution left out for conv2d layers: cpu-onnxruntime does not run them in float8" in refused.stderr


def test_search_for_a_microcontroller(
    tiny: Tiny, autocomp: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path
) -> None:
    """Nothing builds for it: int8 networks have a predicted latency, float32 ones none, since no figure is known."""
    out = tmp_path / "run"
    asked = ("--budget", "60kB", "--target", "cortex-m7", "--space", "quick", "--preset", "quick", "--trials", "4")
    done = autocomp("search", *tiny.arguments, *asked, "--out", out, "--json")
    assert done.returncode == 0, done.stderr
    summary = json.loads(done.stdout)
    assert summary["float32"]["latency_ms"] is None
    assert summary["float32"]["engine_bytes"] is None
    int8 = summary["baselines"]["int8"]
    assert (int8["latency_source"], int8["latency_ms_ci95"]) == ("predicted", None)
    assert int8["latency_ms"] > 0
    assert any("flash_bytes" in note for note in summary["best"]["notes"])
