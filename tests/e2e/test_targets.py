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


@pytest.mark.parametrize("name", ["cpu-openvino", "cpu-torch"])
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
