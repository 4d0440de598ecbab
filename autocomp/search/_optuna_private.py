"""Every use of Optuna that its documentation does not promise, in one place with its own test.

Written for Optuna 5. Private are: the storage behind a study and its writing methods, the key of a
constraint, the generation key of NSGA-II, the hypervolume, and the journal's lock file.
"""

from __future__ import annotations

import contextlib
import os
import warnings
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from optuna.exceptions import ExperimentalWarning
from optuna.samplers import NSGAIISampler
from optuna.storages.journal import JournalFileOpenLock

if TYPE_CHECKING:
    from optuna.study import Study
    from optuna.trial import FrozenTrial

_OURS = b"autocomp\n"
_GRACE_S = 3

CONSTRAINT = "constraints:"
"""Prefix of a constraint's key among a row's system attributes."""


class JournalLockLostError(RuntimeError):
    """The lock file of a journal is gone: its folder was removed, moved or unmounted."""


class JournalLock(JournalFileOpenLock):
    """Optuna's journal lock, marked as ours, so that the next owner of the study may clear it at once.

    The lock file is the one Optuna and its dashboard use, so writers exclude one another. Optuna
    alone would wait out a grace period after every ``kill -9`` inside a write.
    """

    def __init__(self, journal: str) -> None:
        super().__init__(journal, grace_period=_GRACE_S)

    def acquire(self) -> bool:
        """Take the lock, blocking."""
        super().acquire()
        with open(self._lock_file, "wb") as file:
            file.write(_OURS)
        return True

    def release(self) -> None:
        """Give the lock back."""
        try:
            super().release()
        except RuntimeError:  # Optuna: "did not possess lock"
            raise JournalLockLostError(f"the lock file {self._lock_file} is gone") from None

    def clear_stale(self) -> None:
        """Remove a lock that a dead autocomp left; call it only as the study's exclusive owner."""
        with contextlib.suppress(FileNotFoundError):
            if os.path.islink(self._lock_file):
                return
            with open(self._lock_file, "rb") as file:
                ours = file.read(len(_OURS)) == _OURS
            if ours:
                os.unlink(self._lock_file)


def set_metric_names(study: Study, names: Sequence[str]) -> None:
    """Name the objectives for the dashboard; public but marked experimental, which warns."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        study.set_metric_names(list(names))


def forget_cached_trials(study: Study) -> None:
    """Make samplers read the rows anew; Optuna does so only in its own ask and tell."""
    study._thread_local.cached_all_trials = None


def trial_of(study: Study, number: int) -> FrozenTrial:
    """The live row ``number`` (not a copy in the in-memory storage: do not change it)."""
    return study.get_trials(deepcopy=False)[number]


def set_user_attr(study: Study, number: int, key: str, value: Any) -> None:
    """Attribute of an unfinished row."""
    study._storage.set_trial_user_attr(_trial_id(study, number), key, value)


def set_constraints(study: Study, number: int, constraints: Mapping[str, float]) -> None:
    """What ``Trial.set_constraint`` writes, for a row that is known by its number."""
    for name, value in constraints.items():
        study._storage.set_trial_system_attr(_trial_id(study, number), CONSTRAINT + name, float(value))


def set_params(study: Study, number: int, trial: FrozenTrial) -> None:
    """Give an unfinished row the parameters and attributes of ``trial``."""
    trial_id, storage = _trial_id(study, number), study._storage
    for name, value in trial.params.items():
        distribution = trial.distributions[name]
        storage.set_trial_param(trial_id, name, distribution.to_internal_repr(value), distribution)
    for key, attr in trial.user_attrs.items():
        storage.set_trial_user_attr(trial_id, key, attr)
    for key, attr in trial.system_attrs.items():
        storage.set_trial_system_attr(trial_id, key, attr)


def study_system_attrs(study: Study) -> dict[str, Any]:
    """Where samplers keep what belongs to no single row (NSGA-II: its parents)."""
    return dict(study._storage.get_study_system_attrs(study._study_id))


def set_study_system_attrs(study: Study, attrs: Mapping[str, Any]) -> None:
    """Put back what :func:`study_system_attrs` returned."""
    for key, value in attrs.items():
        study._storage.set_study_system_attr(study._study_id, key, value)


def mark_first_generation(study: Study, number: int) -> None:
    """Make a warm start a member of NSGA-II's first generation; without it the row is never a parent."""
    study._storage.set_trial_system_attr(_trial_id(study, number), NSGAIISampler._get_generation_key(), 0)


def hypervolume(points: np.ndarray, reference: np.ndarray) -> float:
    """Volume dominated by ``points`` [n, d] (minimised) up to ``reference`` [d]; points beyond it are left out."""
    from optuna._hypervolume import compute_hypervolume

    inside = points[(points <= reference).all(axis=1)]
    return float(compute_hypervolume(inside, reference)) if len(inside) else 0.0


def _trial_id(study: Study, number: int) -> int:
    return int(study._storage.get_trial_id_from_study_id_trial_number(study._study_id, number))
