"""kill -9 at random moments, then the same command: nothing lost, nothing counted twice."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
from tiny_workload import Tiny

KILLS = 3
"""In CI; the ten of the promise run with ``pytest -m slow``."""


def finished_rows(journal: Path) -> dict[int, str]:
    """Trial number → candidate of the finished rows in a journal."""
    import optuna

    if not journal.exists():
        return {}
    backend = optuna.storages.journal.JournalFileBackend(
        str(journal), lock_obj=optuna.storages.journal.JournalFileOpenLock(str(journal))
    )
    storage = optuna.storages.JournalStorage(backend)
    names = optuna.get_all_study_names(storage)
    if not names:
        return {}
    study = optuna.load_study(study_name=names[0], storage=storage)
    return {t.number: t.user_attrs["candidate"] for t in study.get_trials(deepcopy=False) if t.state.is_finished()}


def run_with_kills(tiny: Tiny, out: Path, kills: int, seed: int) -> None:
    command = [
        sys.executable, "-m", "autocomp", "search", *tiny.arguments, "--budget", "7kB", "--preset", "quick",
        "--trials", "24", "--out", str(out), "--json", "-q",
    ]  # fmt: skip
    rng = random.Random(seed)
    seen: dict[int, str] = {}
    journal = out / "study.journal"
    for _ in range(kills):
        before = len(seen)
        child = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        # somewhere between start-up and a few trials further on
        limit = time.monotonic() + 60
        while len(finished_rows(journal)) < before + rng.randint(0, 4) and time.monotonic() < limit:
            if child.poll() is not None:
                break
            time.sleep(0.1)
        time.sleep(rng.random())
        child.send_signal(signal.SIGKILL)
        child.wait()
        now = finished_rows(journal)
        assert seen.items() <= now.items(), "a completed trial was lost or changed"
        seen = now
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    summary = json.loads(done.stdout)
    rows = finished_rows(journal)
    assert seen.items() <= rows.items()
    assert summary["evaluations"] == 24
    counts = Counter(rows.values())
    assert sum(n - 1 for n in counts.values()) == summary["cache_hits"]
    assert os.stat(out / "model.autocomp").st_size == summary["best"]["file_bytes"]


def test_kill_and_go_on(tiny: Tiny, tmp_path: Path) -> None:
    run_with_kills(tiny, tmp_path / "run", KILLS, seed=1)


@pytest.mark.slow
def test_ten_kills(tiny: Tiny, tmp_path: Path) -> None:
    run_with_kills(tiny, tmp_path / "run", 10, seed=2)


def test_ctrl_c_says_how_to_go_on(tiny: Tiny, tmp_path: Path) -> None:
    command = [
        sys.executable, "-m", "autocomp", "search", *tiny.arguments, "--budget", "7kB", "--preset", "quick",
        "--trials", "500", "--out", str(tmp_path / "run"),
    ]  # fmt: skip
    child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    limit = time.monotonic() + 90
    while len(finished_rows(tmp_path / "run" / "study.journal")) < 2 and time.monotonic() < limit:
        time.sleep(0.2)
    child.send_signal(signal.SIGINT)
    _, said = child.communicate(timeout=60)
    assert child.returncode == 130, said
    assert "same command" in said
    assert "Traceback" not in said
