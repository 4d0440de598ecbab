"""The coordinator: one row a number, told once, resumed from any point."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.trial import TrialState, create_trial

from autocomp.core.outcome import Completed, Failed, Measurement, Stopped
from autocomp.core.space import SearchSpace
from autocomp.errors import StorageError
from autocomp.search import _optuna_private as private
from autocomp.search.coordinator import Coordinator
from autocomp.search.records import OUTCOME, make_record, read_records
from autocomp.search.sampler import Sampler, make_sampler
from autocomp.search.storage import StudyStorage, open_storage
from autocomp.testing.sampler_contract import context_for
from autocomp.testing.study_fakes import fake_outcome, fake_space, within_budget

SPACE = fake_space(4)


class Listed:
    """A sampler that suggests first-unit options from a list, repetitions and all."""

    def __init__(self, options: Iterable[int]) -> None:
        self._options = iter(options)

    def suggest(self, study: optuna.Study, number: int) -> dict[str, int] | None:
        option = next(self._options, None)
        return None if option is None else {"layer0:weights": option} | dict.fromkeys(list(SPACE.parameters())[1:], 0)


class Studies:
    """Opens one study again and again, each time with all that a new process has."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._open: StudyStorage | None = None

    def coordinator(self, sampler: Sampler | str = "random", **changes: Any) -> Coordinator:
        """A coordinator on the study; one that was open before counts as killed."""
        self.close()
        location = changes.pop("location", self.folder / "study.journal")
        self._open = open_storage(location, lock=self.folder / "lock")
        settings: dict[str, Any] = {
            "space": SPACE,
            "sampler": make_sampler(sampler, context_for(SPACE)) if isinstance(sampler, str) else sampler,
            "study_name": "test",
            "identity": {"model": "fake", "seed": 3},
            "budget_trials": 10,
            "constraints": within_budget,
        }
        return Coordinator(storage=self._open, **(settings | changes))

    def close(self) -> None:
        if self._open is not None:
            self._open.close()

    def rows(self, location: str | Path | None = None) -> list[optuna.trial.FrozenTrial]:
        """What another program reads from the storage."""
        with open_storage(location or self.folder / "study.journal", exclusive=False) as storage:
            return optuna.load_study(study_name="test", storage=storage.storage).trials


@pytest.fixture
def studies(tmp_path: Path) -> Iterable[Studies]:
    studies = Studies(tmp_path)
    yield studies
    studies.close()


def run(coordinator: Coordinator, space: SearchSpace = SPACE, limit: int = 1000) -> None:
    while limit and (job := coordinator.ask()) is not None:
        coordinator.tell(job.number, fake_outcome(job.candidate, space))
        limit -= 1


def test_budget_is_spent_and_no_more(studies: Studies) -> None:
    coordinator = studies.coordinator(budget_trials=7)
    run(coordinator)
    assert (coordinator.evaluations, coordinator.remaining, coordinator.running) == (7, 0, 0)
    assert coordinator.ask() is None
    coordinator = studies.coordinator(budget_trials=9)
    run(coordinator)
    assert sorted(coordinator.records) == list(range(9))


def test_rows_hold_all_there_is_to_know(studies: Studies) -> None:
    coordinator = studies.coordinator(budget_trials=3)
    run(coordinator)
    for row in studies.rows():
        record = coordinator.records[row.number]
        assert isinstance(record.outcome, Completed)
        assert row.state is TrialState.COMPLETE
        assert row.values == [record.outcome.kl, float(record.outcome.file_bytes)]
        assert row.constraints == dict(record.constraints) == within_budget(record.outcome)
        in_json = json.loads(json.dumps(record.outcome.to_json()))
        assert row.user_attrs == {"candidate": record.candidate.id, "attempt": 1, OUTCOME: in_json}
        assert SPACE.decode(row.params) == record.candidate
    with open_storage(studies.folder / "study.journal", exclusive=False) as storage:
        study = optuna.load_study(study_name="test", storage=storage.storage)
        assert study.metric_names == ["loss", "file_bytes"]
        assert read_records(study, SPACE, within_budget) == list(coordinator.records.values())


def test_trials_are_granted_once_for_the_same_limits(studies: Studies) -> None:
    coordinator = studies.coordinator(budget_trials=0)
    assert coordinator.grant({"budget": 700}, 4) == 0
    run(coordinator)
    again = studies.coordinator(budget_trials=0)
    assert again.grant({"budget": 700}, 6) == 4
    assert again.remaining == 2
    run(again)
    other = studies.coordinator(budget_trials=0)
    assert other.grant({"budget": 500}, 3) == 0
    assert other.remaining == 3
    run(other)
    assert other.evaluations == 9


def test_second_tell_is_ignored_and_counted(studies: Studies) -> None:
    coordinator = studies.coordinator()
    job = coordinator.ask()
    assert job is not None
    outcome = fake_outcome(job.candidate, SPACE)
    assert coordinator.tell(job.number, outcome)
    assert not coordinator.tell(job.number, Failed(stage="build", kind="late", message="again"))
    assert coordinator.records[job.number].outcome == outcome
    assert coordinator.duplicates == 1
    assert studies.rows()[job.number].state is TrialState.COMPLETE
    with pytest.raises(ValueError, match="never handed out"):
        coordinator.tell(99, outcome)


def test_late_outcome_of_an_earlier_process_is_ignored(studies: Studies) -> None:
    run(studies.coordinator(budget_trials=2))
    coordinator = studies.coordinator()
    assert not coordinator.tell(1, Failed(stage="build", kind="late", message="from before"))
    assert coordinator.failures == {}


def test_orphans_come_first_under_their_number(studies: Studies) -> None:
    first = studies.coordinator()
    jobs = [first.ask() for _ in range(3)]
    assert jobs[1] is not None
    first.tell(1, fake_outcome(jobs[1].candidate, SPACE))
    second = studies.coordinator()
    again = [second.ask(), second.ask(), second.ask()]
    assert [(j.number, j.attempt) for j in again if j] == [(0, 2), (2, 2), (3, 1)]
    assert [j.candidate for j in again[:2] if j] == [j.candidate for j in (jobs[0], jobs[2]) if j]
    assert second.remaining == 10 - 1 - 3


def test_three_deaths_are_a_failure(studies: Studies) -> None:
    for attempt in (1, 2, 3):
        job = studies.coordinator().ask()
        assert job is not None
        assert (job.number, job.attempt) == (0, attempt)
    coordinator = studies.coordinator()
    job = coordinator.ask()
    assert job is not None
    assert job.number == 1
    assert coordinator.failures == {"worker/died": 1}
    assert studies.rows()[0].state is TrialState.FAIL


def test_killed_between_outcome_and_state(studies: Studies) -> None:
    """The outcome is on disk, the state is not: the row is finished, not evaluated again."""
    first = studies.coordinator()
    job = first.ask()
    assert job is not None
    outcome = fake_outcome(job.candidate, SPACE)
    private.set_user_attr(first._study, job.number, OUTCOME, outcome.to_json())
    second = studies.coordinator()
    assert second.records[0] == make_record(0, job.candidate, outcome, within_budget)
    following = second.ask()
    assert following is not None
    assert following.number == 1
    row = studies.rows()[0]
    assert (row.state, row.constraints) == (TrialState.COMPLETE, within_budget(outcome))


@pytest.mark.parametrize("sampler", ["tpe", "nsga2", "hybrid", "random"])
def test_killed_after_ask_goes_on_identically(sampler: str, studies: Studies, tmp_path: Path) -> None:
    whole = Studies(tmp_path / "whole")
    run(expected := whole.coordinator(sampler, budget_trials=36))
    whole.close()
    for told in (4, 9, 0, 15):
        coordinator = studies.coordinator(sampler, budget_trials=36)
        run(coordinator, limit=told)
        coordinator.ask()
    run(coordinator := studies.coordinator(sampler, budget_trials=36))
    plain = [dataclasses.replace(r, attempt=1) for r in coordinator.records.values()]
    assert plain == list(expected.records.values())


def test_repeats_are_answered_from_the_rows(studies: Studies) -> None:
    coordinator = studies.coordinator(Listed([0, 1, 0, 0, 2, 1, 3, 4]), budget_trials=4)
    jobs = []
    while (job := coordinator.ask()) is not None:
        jobs.append(job.number)
        coordinator.tell(job.number, fake_outcome(job.candidate, SPACE))
    assert jobs == [0, 1, 4, 6]
    assert (coordinator.evaluations, coordinator.cache_hits) == (4, 3)
    cached = {n: r.cached_from for n, r in coordinator.records.items() if r.cached_from is not None}
    assert cached == {2: 0, 3: 0, 5: 1}
    rows = studies.rows()
    assert [r.state for r in rows] == [TrialState.COMPLETE] * 7
    assert rows[3].values == rows[0].values
    assert rows[3].constraints == rows[0].constraints
    again = studies.coordinator(Listed([]), budget_trials=4)
    assert (again.evaluations, again.cache_hits, again.records) == (4, 3, coordinator.records)


def test_a_sampler_that_only_repeats_comes_to_an_end(studies: Studies) -> None:
    coordinator = studies.coordinator(Listed([1] * 1000), budget_trials=50)
    run(coordinator)
    assert coordinator.evaluations == 1
    assert coordinator.cache_hits <= 16
    assert coordinator.ask() is None


def test_repeat_of_a_running_candidate_waits_for_it(studies: Studies) -> None:
    coordinator = studies.coordinator(Listed([1, 1, 1, 2]))
    job = coordinator.ask()
    assert job is not None
    assert coordinator.ask() is None
    coordinator.tell(job.number, fake_outcome(job.candidate, SPACE))
    following = coordinator.ask()
    assert following is not None
    assert (following.number, coordinator.cache_hits) == (2, 1)


def test_failures_and_stops_are_states(studies: Studies) -> None:
    coordinator = studies.coordinator(budget_trials=5)
    nan = Completed(file_bytes=100, kl=float("nan"), score=0.5)
    infinite = Completed(file_bytes=100, kl=0.1, score=float("inf"))
    outcomes = [
        Failed(stage="latency", kind="timeout", message="30 s", traceback="long"),
        nan,
        infinite,
        Stopped(reason="over-budget"),
    ]
    for outcome in outcomes:
        job = coordinator.ask()
        assert job is not None
        coordinator.tell(job.number, outcome)
    assert coordinator.failures == {"latency/timeout": 1, "quality/nan": 2}
    rows = studies.rows()
    assert [r.state for r in rows] == [TrialState.FAIL] * 3 + [TrialState.PRUNED]
    assert rows[0].user_attrs["failure"] == "latency/timeout: 30 s"
    assert rows[0].user_attrs[OUTCOME]["kind"] == "timeout"
    assert rows[3].user_attrs[OUTCOME] == {"state": "stopped", "reason": "over-budget"}
    again = studies.coordinator(budget_trials=5)
    assert again.records == coordinator.records
    assert again.remaining == 1


def test_latency_is_a_third_objective(studies: Studies) -> None:
    names = ("loss", "file_bytes", "latency_s")
    coordinator = studies.coordinator(objectives=names, budget_trials=2)
    for latency in (Measurement(samples_s=(0.003, 0.001, 0.002)), None):
        job = coordinator.ask()
        assert job is not None
        coordinator.tell(job.number, dataclasses.replace(fake_outcome(job.candidate, SPACE), latency=latency))
    assert studies.rows()[0].values[2] == 0.002  # type: ignore[index]
    assert coordinator.failures == {"latency/missing": 1}


def test_limits_may_change_between_runs(studies: Studies) -> None:
    run(studies.coordinator(budget_trials=6))
    strict = studies.coordinator(constraints=lambda o: {"file_bytes": o.file_bytes / 100.0 - 1.0})
    assert not any(r.feasible for r in strict.records.values())
    assert all(t.constraints["file_bytes"] > 0 for t in strict._mirror.trials)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"identity": {"model": "other", "seed": 3}}, 'made with model = "fake", now it is "other"'),
        ({"identity": {"model": "fake"}}, "made with seed = 3, now it is null"),
        ({"space": fake_space(5)}, "made with space ="),
        ({"objectives": ("loss", "file_bytes", "latency_s")}, "made with objectives ="),
    ],
)
def test_study_of_other_settings_is_refused(changes: dict[str, Any], message: str, studies: Studies) -> None:
    run(studies.coordinator(budget_trials=1))
    with pytest.raises(StorageError, match=message) as caught:
        studies.coordinator(**changes)
    assert "--fresh" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_study_of_another_program_is_refused(studies: Studies) -> None:
    with open_storage(studies.folder / "study.journal") as storage:
        study = optuna.create_study(study_name="test", storage=storage.storage, directions=["minimize"] * 2)
        study.add_trial(create_trial(values=[1.0, 2.0]))
    with pytest.raises(StorageError, match="not made by autocomp"):
        studies.coordinator()


def test_row_added_by_another_program_is_noticed(studies: Studies) -> None:
    coordinator = studies.coordinator()
    coordinator._study.add_trial(create_trial(state=TrialState.FAIL))
    with pytest.raises(StorageError, match="another program added trial"):
        coordinator.ask()
    again = studies.coordinator()
    job = again.ask()
    assert job is not None
    assert job.number == 1


@pytest.mark.parametrize("url", [lambda folder: f"sqlite:///{folder}/study.db"])
def test_database_instead_of_a_journal(url: Callable[[Path], str], studies: Studies) -> None:
    location = url(studies.folder)
    first = studies.coordinator("hybrid", location=location, budget_trials=12)
    run(first, limit=5)
    first.ask()
    run(second := studies.coordinator("hybrid", location=location, budget_trials=12))
    assert sorted(second.records) == list(range(12))
    studies.close()
    assert [t.state for t in studies.rows(location)] == [TrialState.COMPLETE] * 12
    run(journal := studies.coordinator("hybrid", budget_trials=12))
    assert [r.candidate for r in journal.records.values()] == [second.records[n].candidate for n in range(12)]
