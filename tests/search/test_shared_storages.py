"""Studies by URL (a journal, SQLite, PostgreSQL): killed, driven twice, and their storage taken away."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.trial import TrialState
from postgres_server import PASSWORD, Server, postgres

from autocomp.search.records import CANDIDATE, OUTCOME
from autocomp.search.storage import open_storage

ROOT = Path(__file__).parents[2]
TRIALS = 20
DEADLINE_S = 120.0


@dataclass
class Store:
    """A storage, and how it goes away and comes back."""

    url: str
    take_away: Callable[[], object]
    bring_back: Callable[[], object]


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with postgres() as running:
        yield running


@pytest.fixture(params=["journal", "sqlite", "postgres"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    if request.param == "postgres":
        server: Server = request.getfixturevalue("server")
        return Store(server.fresh(), server.stop, server.start)
    shared, away = tmp_path / "shared", tmp_path / "away"
    shared.mkdir()
    url = f"journal://{shared}/study.journal" if request.param == "journal" else f"sqlite:///{shared}/study.db"
    return Store(url, lambda: shared.rename(away), lambda: away.rename(shared))


def start(folder: Path, url: str, sleep_s: float = 0.02, study: str = "killed") -> subprocess.Popen[str]:
    folder.mkdir(exist_ok=True)
    command = [sys.executable, str(Path(__file__).with_name("drive.py")), str(folder), "random"]
    command += [str(TRIALS), "1", str(sleep_s), "inline", url, study]
    return subprocess.Popen(command, env={**os.environ, "PYTHONPATH": str(ROOT)}, stderr=subprocess.PIPE, text=True)


def end(process: subprocess.Popen[str]) -> tuple[int, str]:
    _, errors = process.communicate(timeout=DEADLINE_S)
    return process.returncode, errors


def begun(folder: Path) -> int:
    log = folder / "starts.log"
    return len(log.read_text().splitlines()) if log.exists() else 0


def wait_for(process: subprocess.Popen[str], folder: Path, evaluations: int) -> None:
    """Until so many evaluations have begun in ``folder``."""
    until = time.monotonic() + DEADLINE_S
    while begun(folder) < evaluations:
        assert process.poll() is None, end(process)
        assert time.monotonic() < until, "the driver does not get on"
        time.sleep(0.005)


def finished(url: str) -> dict[int, tuple[Any, ...]]:
    with open_storage(url, exclusive=False) as storage:
        study = optuna.load_study(study_name="killed", storage=storage.storage)
        rows = study.get_trials(deepcopy=False)
    return {t.number: (t.state, t.values, t.params, t.user_attrs) for t in rows if t.state.is_finished()}


def check_whole(url: str) -> None:
    rows = finished(url)
    assert sorted(rows) == list(range(TRIALS))
    assert {state for state, *_ in rows.values()} == {TrialState.COMPLETE}
    assert max(Counter(attrs[CANDIDATE] for *_, attrs in rows.values()).values()) == 1
    assert all(OUTCOME in attrs for *_, attrs in rows.values())


def test_killed_studies_lose_nothing(store: Store, tmp_path: Path) -> None:
    before: dict[int, tuple[Any, ...]] = {}
    folder = tmp_path / "run"
    for kill in range(3):
        process = start(folder, store.url)
        wait_for(process, folder, begun(folder) + 3)
        time.sleep(0.02 * kill)
        process.kill()
        assert end(process)[0] == -signal.SIGKILL
        now = finished(store.url)
        assert {n: now.get(n) for n in before} == before, "a finished trial was lost or changed"
        before = now
    assert before
    assert end(start(folder, store.url, sleep_s=0)) == (0, "")
    after = finished(store.url)
    assert {n: after[n] for n in before} == before
    check_whole(store.url)


def test_second_driver_is_refused_from_any_folder(store: Store, tmp_path: Path) -> None:
    first = start(tmp_path / "a", store.url)
    try:
        wait_for(first, tmp_path / "a", 1)
        first.send_signal(signal.SIGSTOP)
        code, said = end(start(tmp_path / "b", store.url))
        assert code == 2
        assert f"process {first.pid}" in said
        assert "is driving this study" in said
        assert said.count("\n") == 1
        assert PASSWORD not in said
        assert begun(tmp_path / "b") == 0
    finally:
        first.kill()
        end(first)
    assert end(start(tmp_path / "b", store.url, sleep_s=0)) == (0, "")
    check_whole(store.url)


def test_storage_that_goes_away_is_one_line_and_the_same_command_goes_on(store: Store, tmp_path: Path) -> None:
    process = start(tmp_path / "run", store.url)
    wait_for(process, tmp_path / "run", 4)
    store.take_away()
    code, said = end(process)
    assert code == 2, said
    assert said.count("\n") == 1
    assert "run the same command again" in said
    assert PASSWORD not in said
    code, said = end(start(tmp_path / "run", store.url))
    assert (code, said.count("\n")) == (2, 1), said
    store.bring_back()
    before = finished(store.url)
    assert len(before) >= 3
    assert end(start(tmp_path / "run", store.url, sleep_s=0)) == (0, "")
    assert {n: finished(store.url)[n] for n in before} == before
    check_whole(store.url)


@pytest.mark.parametrize("store", ["sqlite", "postgres"], indirect=True)
def test_a_database_holds_several_studies_at_once(store: Store, tmp_path: Path) -> None:
    both = [start(tmp_path / name, store.url, study=name) for name in ("killed", "other")]
    assert [end(process) for process in both] == [(0, ""), (0, "")]
    check_whole(store.url)


@pytest.mark.parametrize("store", ["postgres"], indirect=True)
def test_server_that_restarts_takes_the_lock_with_it(store: Store, tmp_path: Path) -> None:
    process = start(tmp_path / "run", store.url)
    wait_for(process, tmp_path / "run", 4)
    process.send_signal(signal.SIGSTOP)
    store.take_away()
    store.bring_back()
    process.send_signal(signal.SIGCONT)
    code, said = end(process)
    assert (code, said.count("\n")) == (2, 1), said
    assert "run the same command again" in said
    assert end(start(tmp_path / "run", store.url, sleep_s=0)) == (0, "")
    check_whole(store.url)
