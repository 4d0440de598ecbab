"""Bad input of each kind: one clear line, the right exit code, no traceback, nothing lost."""

from __future__ import annotations

import pickle
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from tiny_workload import HERE, Tiny

Run = Callable[..., subprocess.CompletedProcess[str]]


def refused(done: subprocess.CompletedProcess[str], code: int, *words: str) -> None:
    """The command ended with ``code`` and one line on stderr that holds all ``words``."""
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr
    lines = [line for line in done.stderr.splitlines() if line.startswith("error")]
    assert len(lines) == 1, done.stderr
    for word in words:
        assert word in lines[0], lines[0]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--budget", "0"), ("budget", "0")),
        (("--budget=-4MB",), ("budget", "-4MB")),
        (("--budget", "4 apples"), ("4 apples", "4MB")),
        (("--budget", "4MB", "--target", "cpu-onnxruntme"), ("cpu-onnxruntime",)),
        (("--budget", "4MB", "--space", "jiont"), ("joint",)),
        (("--budget", "4MB", "--sampler", "hybrd"), ("hybrid",)),
        (("--budget", "4MB", "--metric", "acuracy"), ("accuracy",)),
        (("--budget", "4MB", "--finish", "qat"), ("qat", "ptq")),
        (("--budget", "4MB", "--weights", "/nowhere.safetensors"), ("/nowhere.safetensors",)),
        (("resnet19", "--budget", "4MB"), ("resnet18",)),
    ],
    ids=lambda a: " ".join(a) if isinstance(a, tuple) and a and a[0].startswith("-") else None,
)
def test_settings(autocomp: Run, tmp_path: Path, arguments: tuple[str, ...], words: tuple[str, ...]) -> None:
    refused(autocomp("search", *arguments, "--out", tmp_path / "run"), 2, *words)
    assert not (tmp_path / "run" / "study.journal").exists()


def test_weights(tiny: Tiny, autocomp: Run, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    state = load_file(tiny.weights)
    base = (tiny.model, "--data", tiny.data, "--normalize", "none", "--budget", "7kB", "--out", tmp_path / "run")
    wrong = tmp_path / "wrong.safetensors"
    save_file({**state, "conv1.weight": state["conv1.weight"][:, :8].contiguous()}, wrong)
    refused(autocomp("search", *base, "--weights", wrong), 2, "conv1.weight")
    save_file(
        {**state, "head.weight": state["head.weight"][:7].contiguous(), "head.bias": state["head.bias"][:7]}, wrong
    )
    refused(autocomp("search", *base, "--weights", wrong), 2, "7", "10")
    save_file({**state, "conv1.weight": state["conv1.weight"] * float("nan")}, wrong)
    refused(autocomp("search", *base, "--weights", wrong), 2, "conv1.weight")
    hostile = tmp_path / "hostile.pt"
    hostile.write_bytes(pickle.dumps({"x": subprocess.Popen}))
    refused(autocomp("search", *base, "--weights", hostile), 2, "safetensors")


def test_data(tiny: Tiny, autocomp: Run, tmp_path: Path) -> None:
    arrays = dict(np.load(tiny.data.removeprefix("npz:")))

    def search(data: str) -> subprocess.CompletedProcess[str]:
        return autocomp(
            "search", tiny.model, "--weights", tiny.weights, "--normalize", "none", "--budget", "7kB",
            "--data", data, "--out", tmp_path / "run",
        )  # fmt: skip

    bad = tmp_path / "bad.npz"
    np.savez(bad, **{**arrays, "x_train": np.where(arrays["x_train"] > 0, np.nan, arrays["x_train"])})
    refused(search(f"npz:{bad}"), 2, "bad", "NaN")
    np.savez(bad, **{**arrays, "y_train": np.zeros_like(arrays["y_train"]), "y_test": np.zeros_like(arrays["y_test"])})
    refused(search(f"npz:{bad}"), 2, "class")
    np.savez(bad, **{**arrays, "x_train": arrays["x_train"].repeat(2, 1), "x_test": arrays["x_test"].repeat(2, 1)})
    refused(search(f"npz:{bad}"), 2, "channel")
    empty = tmp_path / "empty"
    empty.mkdir()
    refused(search(f"imagefolder:{empty}"), 2, str(empty))
    folder = tmp_path / "images"
    for split in ("train", "test"):
        for name in ("a", "b"):
            (folder / split / name).mkdir(parents=True)
            for i in range(20):
                (folder / split / name / f"{i}.png").write_bytes(b"not an image")
    refused(search(f"imagefolder:{folder}"), 2, ".png")


def test_a_budget_that_cannot_be_met_says_what_can(tiny: Tiny, autocomp: Run, tmp_path: Path) -> None:
    done = autocomp("search", *tiny.arguments, "--budget", "300", "--out", tmp_path / "run")
    refused(done, 3, "smallest reachable")


def test_a_constraint_that_nothing_meets_prints_the_nearest_miss(tiny: Tiny, autocomp: Run, tmp_path: Path) -> None:
    done = autocomp(
        "search", *tiny.arguments, "--budget", "7kB", "--max-latency", "1us", "--preset", "quick", "--trials", "3",
        "--out", tmp_path / "run",
    )  # fmt: skip
    assert done.returncode == 3
    assert "Traceback" not in done.stderr
    assert "latency" in (done.stdout + done.stderr).lower()


def test_folders(tiny: Tiny, autocomp: Run, tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("")
    refused(autocomp("search", *tiny.arguments, "--budget", "7kB", "--out", file / "run"), 2, "--out")
    other = tmp_path / "other"
    other.mkdir()
    (other / "notes.txt").write_text("mine")
    refused(autocomp("search", *tiny.arguments, "--budget", "7kB", "--out", other), 2, "other files")
    assert (other / "notes.txt").read_text() == "mine"
    refused(autocomp("report", tmp_path / "nothing"), 2, "no run")
    refused(autocomp("verify", other), 2, "not a run")
    refused(autocomp("verify", HERE / "tiny_net.py"), 2, "tiny_net.py")
