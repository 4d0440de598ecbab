"""optuna-dashboard opens a study as it lies in the run folder, in SQLite and in PostgreSQL."""

from __future__ import annotations

import contextlib
import json
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from postgres_server import postgres

from autocomp.testing.sampler_contract import context_for, coordinate
from autocomp.testing.study_fakes import fake_space


@pytest.fixture(params=["journal", "sqlite", "postgres"])
def address(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """A finished study of each kind, as `optuna-dashboard` is told of it."""
    with contextlib.ExitStack() as stack:
        url = ""
        if request.param == "postgres":
            url = stack.enter_context(postgres()).fresh()
        elif request.param == "sqlite":
            url = f"sqlite:///{tmp_path}/study.db"
        coordinate(tmp_path, "hybrid", context_for(fake_space(4)), 12, url=url)
        yield url.replace("postgresql:", "postgresql+psycopg:") or str(tmp_path / "study.journal")


def test_plain_optuna_loads_a_journal(tmp_path: Path) -> None:
    coordinate(tmp_path, "hybrid", context_for(fake_space(4)), 12)
    storage = JournalStorage(JournalFileBackend(str(tmp_path / "study.journal")))
    study = optuna.load_study(study_name="contract", storage=storage)
    assert study.metric_names == ["loss", "file_bytes"]
    assert len(study.best_trials) >= 1
    assert all(all(v <= 0 for v in t.constraints.values()) for t in study.best_trials)


def test_dashboard_shows_the_study(address: str) -> None:
    pytest.importorskip("optuna_dashboard", reason="optuna-dashboard is not installed (extra: dashboard)")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    code = "import sys; from optuna_dashboard._cli import main; sys.exit(main())"
    command = [sys.executable, "-W", "ignore", "-c", code, address, "--host", "127.0.0.1", "--port", str(port)]
    dashboard = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    until = time.monotonic() + 60

    def get(path: str) -> Any:
        while True:
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=30) as answer:
                    return json.load(answer)
            except urllib.error.HTTPError:
                raise
            except OSError:  # it has not started yet
                assert dashboard.poll() is None, dashboard.communicate()[1]
                assert time.monotonic() < until
                time.sleep(0.1)

    try:
        summaries = get("/api/studies")["study_summaries"]
        assert [s["study_name"] for s in summaries] == ["contract"]
        detail = get(f"/api/studies/{summaries[0]['study_id']}")
        assert len(detail["trials"]) == 12
        assert detail["objective_names"] == ["loss", "file_bytes"]
        failed = [t["number"] for t in detail["trials"] if t["state"] == "Fail"]
        assert failed == [6]
        assert all("candidate" in {a["key"] for a in t["user_attrs"]} for t in detail["trials"])
    finally:
        dashboard.kill()
        dashboard.communicate()
