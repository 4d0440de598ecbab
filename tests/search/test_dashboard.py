"""optuna-dashboard opens the study as it lies in the run folder."""

from __future__ import annotations

import json
from pathlib import Path
from wsgiref.util import setup_testing_defaults

import optuna
import pytest
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend

from autocomp.testing.sampler_contract import context_for, coordinate
from autocomp.testing.study_fakes import fake_space


@pytest.fixture
def storage(tmp_path: Path) -> JournalStorage:
    coordinate(tmp_path, "hybrid", context_for(fake_space(4)), 12)
    return JournalStorage(JournalFileBackend(str(tmp_path / "study.journal")))


def test_plain_optuna_loads_it(storage: JournalStorage) -> None:
    study = optuna.load_study(study_name="contract", storage=storage)
    assert study.metric_names == ["loss", "file_bytes"]
    assert len(study.best_trials) >= 1
    assert all(all(v <= 0 for v in t.constraints.values()) for t in study.best_trials)


def test_dashboard_answers(storage: JournalStorage) -> None:
    dashboard = pytest.importorskip("optuna_dashboard", reason="optuna-dashboard is not installed (extra: dashboard)")
    app = dashboard.wsgi(storage)

    def get(path: str) -> tuple[str, bytes]:
        status: list[str] = []
        environ: dict[str, object] = {}
        setup_testing_defaults(environ)
        environ["PATH_INFO"] = path
        body = b"".join(app(environ, lambda code, headers, exc_info=None: status.append(code)))
        return status[0], body

    status, body = get("/api/studies")
    assert status.startswith("200")
    summaries = json.loads(body)["study_summaries"]
    assert [s["study_name"] for s in summaries] == ["contract"]
    status, body = get(f"/api/studies/{summaries[0]['study_id']}")
    assert status.startswith("200")
    detail = json.loads(body)
    assert len(detail["trials"]) == 12
    assert detail["objective_names"] == ["loss", "file_bytes"]
