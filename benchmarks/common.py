"""Shared by the benchmark scripts: run the command, keep raw results, name the machine."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"


def machine() -> dict[str, Any]:
    """What the figures were taken on."""
    from autocomp.environment import environment

    facts = environment()
    return {"python": platform.python_version(), "machine": facts, "time": time.strftime("%Y-%m-%d %H:%M:%S")}


def autocomp(*arguments: str, env: dict[str, str] | None = None) -> tuple[dict[str, Any], float, float]:
    """Run ``autocomp ARGUMENTS --json``; returns its summary, wall seconds, and peak memory in bytes."""
    import resource

    begin = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-m", "autocomp", *arguments, "--json", "-q"],
        stdout=subprocess.PIPE,
        text=True,
        check=False,
        env={**os.environ, **(env or {})},
    )
    seconds = time.perf_counter() - begin
    if done.returncode not in (0, 3):
        raise SystemExit(f"autocomp {' '.join(arguments)} ended with exit code {done.returncode}")
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024
    return json.loads(done.stdout or "{}"), seconds, float(peak)


def save(name: str, data: dict[str, Any]) -> Path:
    """Write ``results/<name>.json`` with the machine it was taken on."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    path.write_text(json.dumps({**machine(), **data}, indent=1) + "\n")
    return path
