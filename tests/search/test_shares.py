"""A survey in parts is the survey in one piece."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from autocomp.core.executor import Event, Priced, Share, Task
from autocomp.core.outcome import Failed
from autocomp.core.progress import Silent
from autocomp.search.job import run_job
from autocomp.search.reopening import Worker
from autocomp.search.session import Session
from autocomp.search.shares import price_together, shares
from autocomp.survey.survey import survey, unpriced
from autocomp.testing.joint import joint_session
from autocomp.testing.networks import example

TABLES = {
    "prune": {"multiple": 1, "ratio": [0.5], "criterion": "l2"},
    "rank": {"method": ["svd"], "rank": [0.5]},
    "weights": {"bits": [8, 4], "rounding": "nearest"},
    "activations": {"precisions": ["float32", "int8"], "calibrator": "minmax"},
}


class TwoWorkers:
    """Two slots whose tasks run one after the other in this process, as a worker does them."""

    def __init__(self, session: Session, *, dies_at: int | None = None) -> None:
        self.worker, self.dies_at = Worker(session), dies_at
        self.waiting: list[Task] = []
        self.done: list[Share] = []

    def slots(self) -> int:
        return 2 - len(self.waiting)

    def submit(self, job: Task) -> None:
        self.waiting.append(job)

    def next_event(self, timeout_s: float | None = None) -> Event | None:
        task = self.waiting.pop(0)
        assert isinstance(task, Share)
        if task.number == self.dies_at:
            return Event(job=task, outcome=Failed(stage="worker", kind="died", message="3 times in a row"))
        self.done.append(task)
        outcome = run_job(self.worker, task)
        assert isinstance(outcome, Priced), outcome
        return Event(job=task, outcome=outcome)

    def close(self) -> None: ...


def session_in(folder: Path) -> Session:
    model, inputs = example("residual", samples=24)
    return joint_session(model, inputs, folder, tables=TABLES, classes=5)


@given(st.lists(st.text(min_size=1), unique=True), st.lists(st.text(min_size=1), unique=True), st.integers(1, 9))
def test_shares_are_a_partition(units: list[str], structures: list[str], workers: int) -> None:
    parts = shares(units, structures, workers)
    assert len(parts) <= 2 * workers
    assert all(parts)
    assert sorted(n for part in parts for n in part) == sorted([*units, *structures])
    assert [n for part in parts for n in part if n in units and n not in structures] == [
        n for n in units if n not in structures
    ], "units keep their order"


@pytest.mark.parametrize("dies_at", [None, 1])
def test_the_same_prices(tmp_path: Path, dies_at: int | None) -> None:
    """Bit for bit, also where a worker failed and the survey prices its share itself."""
    alone, together = session_in(tmp_path / "alone"), session_in(tmp_path / "together")
    whole = survey(alone.survey_order()).prices
    names = unpriced(together.survey_order())
    workers = TwoWorkers(together, dies_at=dies_at)
    price_together(together, workers, Silent())
    lost = [] if dies_at is None else shares_of(together, names)[dies_at]
    assert unpriced(together.survey_order()) == [n for n in names if n in lost]
    assert len(workers.done) == 4 - (dies_at is not None)
    found = survey(together.survey_order()).prices
    for table, other in ((whole.storage, found.storage), (whole.structure, found.structure)):
        assert set(table) == set(other)
        for name, prices in table.items():
            assert prices.choices == other[name].choices
            assert np.array_equal(prices.bytes, other[name].bytes)
            assert np.array_equal(prices.kl, other[name].kl)
            assert np.array_equal(prices.delta, other[name].delta)
    assert dataclasses.replace(whole, seconds={}).fixed_bytes == found.fixed_bytes


def shares_of(session: Session, names: list[str]) -> list[tuple[str, ...]]:
    units = [n for n in names if n in session.space.units]
    return shares(units, [n for n in names if n not in session.space.units], 2)
