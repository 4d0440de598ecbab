"""The record of this machine, and what doctor finds missing."""

import json
from pathlib import Path

import pytest

import autocomp
from autocomp import environment
from autocomp.environment import cache_folder, cpu, doctor


def test_environment_is_plain_and_complete() -> None:
    found = environment.environment()
    assert json.loads(json.dumps(found)) == found
    assert found["autocomp"] == autocomp.__version__
    assert found["cores"] >= 1
    assert found["memory_bytes"] > 2**28
    assert {"torch", "numpy", "optuna", "onnxruntime"} <= set(found["packages"])
    assert found["cpu"]
    assert set(found["cpu_flags"]) <= set(environment.CPU_FLAGS)
    assert str(Path.home()) not in json.dumps(found), "nothing that names the user"


def test_cpu_flags_are_those_of_the_kernel() -> None:
    cpuinfo = Path("/proc/cpuinfo")
    if not cpuinfo.exists():
        pytest.skip("no /proc/cpuinfo on this system")
    words = set(cpuinfo.read_text(encoding="utf-8").split())
    assert cpu()["flags"] == frozenset(f for f in environment.CPU_FLAGS if f in words)


def test_doctor_rows() -> None:
    rows = {row["what"]: row for row in doctor()}
    assert {
        "python",
        "torch",
        "optuna",
        "onnxruntime",
        "openvino",
        "tensorrt",
        "tensorrt_rtx_bindings",
        "cuda",
        "pynvml",
    } <= set(rows)
    assert {"ray", "optuna_dashboard", "torchvision", "timm", "CUDA device", "cache folder"} <= set(rows)
    for row in rows.values():
        assert row["state"] in ("ok", "missing")
        assert row["detail"]
        assert bool(row["remedy"]) is (row["state"] == "missing")
    assert rows["torch"]["state"] == rows["python"]["state"] == rows["onnxruntime"]["state"] == "ok"


def test_remedies_name_extras_that_exist() -> None:
    import tomllib

    project = Path(autocomp.__file__).parents[1] / "pyproject.toml"
    if not project.is_file():
        pytest.skip("installed without its pyproject.toml")
    extras = tomllib.loads(project.read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    named = [p[3].split("[")[1].split("]")[0] for p in environment._PARTS if "autocomp[" in p[3]]
    assert set(named) <= set(extras)


def test_missing_package_has_a_remedy() -> None:
    row = environment._check_package("no_such_module", ("no-such-module",), "a test", "pip install it")
    assert row == {
        "what": "no_such_module",
        "state": "missing",
        "detail": "not installed; needed for a test",
        "remedy": "pip install it",
    }


def test_cache_folder_follows_the_variables(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("AUTOCOMP_CACHE", str(tmp_path / "own"))
    assert cache_folder() == tmp_path / "own"
    assert {row["what"]: row["state"] for row in doctor()}["cache folder"] == "ok"
    assert not (tmp_path / "own").exists(), "looking does not make it"
    blocked = tmp_path / "file"
    blocked.write_text("")
    monkeypatch.setenv("AUTOCOMP_CACHE", str(blocked / "cache"))
    row = next(row for row in doctor() if row["what"] == "cache folder")
    assert row["state"] == "missing"
    assert "AUTOCOMP_CACHE" in row["remedy"]
    monkeypatch.delenv("AUTOCOMP_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder() == tmp_path / "autocomp"


def test_gpus_without_the_tool(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    environment.gpus.cache_clear()
    assert environment.gpus() == []
    environment.gpus.cache_clear()


def test_gpus_are_read_from_the_tool(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    tool = tmp_path / "nvidia-smi"
    tool.write_text("#!/bin/sh\necho 'NVIDIA H200, GPU-1, 580.1, 143771 MiB, 1980 MHz'\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin:/usr/bin")
    environment.gpus.cache_clear()
    assert environment.gpus() == [
        {"name": "NVIDIA H200", "uuid": "GPU-1", "driver": "580.1", "memory": "143771 MiB", "clock": "1980 MHz"}
    ]
    environment.gpus.cache_clear()
