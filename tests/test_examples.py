"""The examples run as they stand, and print what they promise."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parent.parent / "examples"
PRINTS = {
    "own_model_and_data.py": ("float32:", "best:", "report:"),
    "own_space.py": ("choices by number of layers",),
    "python_api.py": ("small.autocomp:", "test accuracy", "holds: "),
}


def test_all_examples_are_tested() -> None:
    assert {p.name for p in EXAMPLES.glob("*.py")} == set(PRINTS)


@pytest.mark.parametrize("name", sorted(PRINTS))
def test_example(name: str, tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(EXAMPLES.parent)}  # from a checkout that is not installed too
    command = [sys.executable, str(EXAMPLES / name)]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    for text in PRINTS[name]:
        assert text in done.stdout
    assert "DOES NOT HOLD" not in done.stdout
