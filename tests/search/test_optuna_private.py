"""What we use of Optuna beyond its documentation still is what we think it is."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import optuna
from optuna.distributions import IntDistribution
from optuna.trial import TrialState, create_trial

from autocomp.search import _optuna_private as private


def test_constraints_are_those_of_set_constraint() -> None:
    study = optuna.create_study(directions=["minimize"] * 2)
    theirs = study.ask()
    theirs.set_constraint("latency", 0.5)
    study.add_trial(create_trial(state=TrialState.RUNNING))
    private.set_constraints(study, 1, {"latency": 0.5})
    for number in (0, 1):
        study.tell(number, [1.0, 2.0])
    assert study.trials[0].constraints == study.trials[1].constraints == {"latency": 0.5}
    assert study.best_trials == []


def test_row_created_in_parts_equals_one_created_whole() -> None:
    study = optuna.create_study()
    whole = create_trial(
        state=TrialState.RUNNING,
        params={"a": 3},
        distributions={"a": IntDistribution(0, 5)},
        user_attrs={"candidate": "x"},
        system_attrs={"k": 1},
    )
    study.add_trial(whole)
    study.add_trial(create_trial(state=TrialState.RUNNING))
    private.set_params(study, 1, whole)
    one, two = study.trials
    for name in ("params", "distributions", "user_attrs", "system_attrs", "state"):
        assert getattr(one, name) == getattr(two, name)


def test_generation_key_is_what_nsga2_reads() -> None:
    study = optuna.create_study(directions=["minimize"] * 2)
    for number in range(4):
        study.add_trial(
            create_trial(state=TrialState.RUNNING, params={"a": number}, distributions={"a": IntDistribution(0, 9)})
        )
        private.mark_first_generation(study, number)
        study.tell(number, [float(number), -float(number)])
    study.sampler = optuna.samplers.NSGAIISampler(population_size=4, seed=0)
    trial = study.ask({"a": IntDistribution(0, 9)})
    assert study.get_trials()[trial.number].system_attrs["NSGAIISampler:generation"] == 1
    state = private.study_system_attrs(study)
    assert any("parent" in key for key in state)
    other = optuna.create_study(directions=["minimize"] * 2)
    private.set_study_system_attrs(other, state)
    assert private.study_system_attrs(other) == state


def test_forgotten_cache_shows_new_rows() -> None:
    study = optuna.create_study()
    study.add_trial(create_trial(value=1.0))
    assert len(study._get_trials(deepcopy=False, use_cache=True)) == 1
    study.add_trial(create_trial(value=2.0))
    private.forget_cached_trials(study)
    assert len(study._get_trials(deepcopy=False, use_cache=True)) == 2


def test_hypervolume_of_known_volumes() -> None:
    points = np.array([[1.0, 2.0], [2.0, 1.0], [9.0, 0.0]])
    assert private.hypervolume(points, np.array([3.0, 3.0])) == 3.0
    assert private.hypervolume(points, np.array([0.5, 0.5])) == 0.0


def test_lock_file_is_where_optuna_looks(tmp_path: Path) -> None:
    path = str(tmp_path / "journal")
    lock = private.JournalLock(path)
    lock.acquire()
    assert (tmp_path / "journal.lock").read_bytes().startswith(b"autocomp")
    lock.release()
    assert list(tmp_path.iterdir()) == []
