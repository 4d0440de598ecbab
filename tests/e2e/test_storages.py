"""A whole search on each kind of storage: killed, refused a second driver, resumed, shown again."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import optuna
import pytest
from postgres_server import PASSWORD, postgres
from tiny_workload import Tiny

from autocomp.errors import StorageError
from autocomp.search.storage import open_storage

Run = Callable[..., subprocess.CompletedProcess[str]]
TRIALS = 10


@pytest.fixture(params=["journal", "sqlite", "postgres"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    if request.param == "postgres":
        with postgres() as server:
            yield server.fresh()
    else:
        (tmp_path / "shared").mkdir()
        names = {"journal": "journal://{}/study.journal", "sqlite": "sqlite:///{}/study.db"}
        yield names[request.param].format(tmp_path / "shared")


def finished(url: str) -> dict[int, str]:
    """Trial number → candidate of the finished rows of the only study there is."""
    try:
        with open_storage(url, exclusive=False) as storage:
            names = optuna.get_all_study_names(storage.storage)
            rows = [t for name in names for t in optuna.load_study(study_name=name, storage=storage.storage).trials]
    except StorageError:
        return {}
    return {t.number: t.user_attrs["candidate"] for t in rows if t.state.is_finished()}


@pytest.mark.slow
def test_whole_search(url: str, tiny: Tiny, autocomp: Run, tmp_path: Path) -> None:
    words = ["search", *tiny.arguments, "--budget", "7kB", "--preset", "quick", "--finish", "none", "-q", "--json"]
    words += ["--trials", str(TRIALS), "--storage", url]
    here, there = tmp_path / "here", tmp_path / "there"
    command = [sys.executable, "-m", "autocomp", *words, "--out", str(here)]
    first = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    try:
        until = time.monotonic() + 240
        while len(finished(url)) < 3:
            assert first.poll() is None, first.communicate()[1]
            assert time.monotonic() < until
            time.sleep(0.3)
        first.send_signal(signal.SIGSTOP)
        refused = autocomp(*words, "--out", there)
    finally:
        first.kill()
        first.communicate()
    assert refused.returncode == 2
    assert f"process {first.pid}" in refused.stderr
    assert "is driving this study" in refused.stderr
    before = finished(url)
    done = autocomp(*words, "--out", here)
    assert done.returncode == 0, done.stderr
    summary, rows = json.loads(done.stdout), finished(url)
    assert before.items() <= rows.items()
    assert summary["evaluations"] == TRIALS
    assert sum(n - 1 for n in Counter(rows.values()).values()) == summary["cache_hits"]
    assert json.loads(autocomp(*words, "--out", here).stdout) == summary, "a finished run is shown again"
    for path in here.rglob("*"):
        assert not path.is_file() or PASSWORD.encode() not in path.read_bytes(), f"{path} holds the password"

    moved = autocomp(*words, "--out", there)  # another folder goes on with the study: nothing is left to evaluate
    assert moved.returncode == 0, moved.stderr
    other = json.loads(moved.stdout)
    assert finished(url) == rows
    assert (other["evaluations"], other["best"]["file_bytes"]) == (TRIALS, summary["best"]["file_bytes"])
    for row in other["pareto"]:
        assert Path(row["file"]).is_relative_to(there)
        assert Path(row["file"]).stat().st_size == row["file_bytes"]

    fresh = autocomp(*words, "--out", there, "--fresh")
    assert fresh.returncode == 0, fresh.stderr
    assert json.loads(fresh.stdout)["evaluations"] == TRIALS
    assert len(finished(url)) == TRIALS + json.loads(fresh.stdout)["cache_hits"]
