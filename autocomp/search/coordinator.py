"""The one owner of the study: asks the sampler, tells results once, and starts again after any death.

The study on disk is the only record of what was tried. Samplers see a copy of it in memory (the
mirror), so that a suggestion costs no reads, and its constraints follow the limits of this run.

Order of writing, so that a kill at any moment loses nothing: a row is created with all its
parameters in one record; its outcome is written before its state; the mirror comes after the disk.
An unfinished row that has an outcome is finished on the next start, one without is started again
under the same number.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any

import optuna
from optuna.samplers import RandomSampler
from optuna.storages import InMemoryStorage
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState, create_trial

from autocomp.core.candidate import Candidate
from autocomp.core.executor import ATTEMPTS, Job
from autocomp.core.outcome import Completed, Failed, Outcome
from autocomp.core.space import SearchSpace
from autocomp.errors import StorageError
from autocomp.search import _optuna_private as private
from autocomp.search.records import (
    ATTEMPT,
    CACHED,
    CANDIDATE,
    Constraints,
    Record,
    candidate_of,
    checked,
    make_record,
    record_of,
)
from autocomp.search.sampler import Sampler, distributions
from autocomp.search.storage import StudyStorage

_REPEATS = 16
"""So many repeated candidates in a row, and the sampler counts as exhausted."""
_IDENTITY, _SAMPLER_STATE, GRANTED = "identity", "sampler_state", "granted"


class Coordinator:
    """Hands out jobs and takes their outcomes. One a study, in one process.

    Args:
        space: what candidates are made of.
        sampler: suggests parameters.
        storage: an exclusively opened storage; the caller closes it.
        study_name: name in the storage.
        identity: settings that make rows comparable (JSON values); a study made with others is refused.
        budget_trials: evaluations in all, earlier runs included; repeated candidates do not count.
        constraints: limits as numbers, at most 0 where met.
        objectives: names in :data:`autocomp.search.records.OBJECTIVES`, all minimised.

    Attributes:
        records: finished rows by number, with constraints by this run's limits.
        duplicates: outcomes told for rows that were finished already, and ignored.

    Raises:
        StorageError: the study belongs to other settings, or cannot be read or written.
    """

    def __init__(
        self,
        *,
        space: SearchSpace,
        sampler: Sampler,
        storage: StudyStorage,
        study_name: str,
        identity: Mapping[str, Any],
        budget_trials: int,
        constraints: Constraints,
        objectives: Sequence[str] = ("loss", "file_bytes"),
    ) -> None:
        self.space = space
        self.objectives = tuple(objectives)
        self.budget_trials = budget_trials
        self.records: dict[int, Record] = {}
        self.duplicates = 0
        self._sampler = sampler
        self._storage = storage
        self._constraints = constraints
        self._distributions = distributions(space)
        self._running: dict[int, Job] = {}
        self._orphans: deque[Job] = deque()
        self._answers: dict[str, int] = {}
        self._open_number: int | None = None
        self._exhausted = False
        directions = [StudyDirection.MINIMIZE] * len(self.objectives)
        self._mirror = optuna.create_study(
            storage=InMemoryStorage(), directions=directions, sampler=RandomSampler(seed=0)
        )
        with self._storage.writing():
            self._study = optuna.create_study(
                study_name=study_name, storage=storage.storage, directions=directions, load_if_exists=True
            )
            self._claim({**identity, "space": space_digest(space), "objectives": list(self.objectives)})
            self._load()

    # what there is

    @property
    def evaluations(self) -> int:
        """Finished rows that were evaluated, failures included."""
        return len(self.records) - self.cache_hits

    @property
    def cache_hits(self) -> int:
        """Finished rows that repeat a candidate and took its outcome."""
        return sum(r.cached_from is not None for r in self.records.values())

    @property
    def running(self) -> int:
        """Jobs handed out and not told yet."""
        return len(self._running)

    @property
    def remaining(self) -> int:
        """Evaluations that may still be handed out; those under way when the last run ended among them."""
        return max(0, self.budget_trials - self.evaluations - len(self._running))

    @property
    def engine_builds(self) -> int:
        """Finished rows whose latency needed an engine of their own: no structure and precision seen before."""
        outcomes = [r.outcome for r in self.records.values() if r.cached_from is None]
        return sum(isinstance(o, Completed) and o.latency is not None and "latency" not in o.cached for o in outcomes)

    @property
    def failures(self) -> dict[str, int]:
        """Count of evaluated failures by "stage/kind"."""
        out: dict[str, int] = {}
        for record in self.records.values():
            if isinstance(record.outcome, Failed) and record.cached_from is None:
                key = f"{record.outcome.stage}/{record.outcome.kind}"
                out[key] = out.get(key, 0) + 1
        return out

    def grant(self, limits: Mapping[str, Any], trials: int) -> int:
        """Set the budget to ``trials`` under these limits; a study asked again under others gets its trials anew.

        Returns:
            How many of them were finished before.
        """
        with self._storage.writing():
            wanted = json.loads(json.dumps(limits))
            known = self._study.user_attrs.get(GRANTED)
            if known is None or known["limits"] != wanted:
                known = {"limits": wanted, "started_at": self.evaluations}
                self._study.set_user_attr(GRANTED, known)
        self.budget_trials = int(known["started_at"]) + trials
        return max(0, self.evaluations - int(known["started_at"]))

    # ask and tell

    def ask(self) -> Job | None:
        """The next job, or None: the budget is handed out, nothing new is left, or all that is left is running.

        Repeated candidates are answered here, from the row that was evaluated.
        """
        with self._storage.writing():
            while self._orphans:
                job = self._restart(self._orphans.popleft())
                if job is not None:
                    return job
            for _ in range(_REPEATS):
                if self.remaining == 0 or self._exhausted:
                    return None
                number = self._open_row()
                params = self._sampler.suggest(self._mirror, number)
                if params is None:
                    self._exhausted = True
                    return None
                candidate = self.space.decode(params)
                if any(job.candidate == candidate for job in self._running.values()):
                    return None
                known = self._answers.get(candidate.id)
                self._create(number, params, candidate, known)
                if known is None:
                    job = Job(number=number, attempt=1, candidate=candidate)
                    self._running[number] = job
                    return job
            self._exhausted = True
            return None

    def tell(self, number: int, outcome: Outcome) -> bool:
        """Write the outcome of a job; False (and nothing written) where its row was finished before.

        Raises:
            ValueError: ``number`` was never handed out.
        """
        job = self._running.get(number)
        if job is None:
            if number not in self.records:
                raise ValueError(f"trial {number} was never handed out")
            self.duplicates += 1
            return False
        with self._storage.writing():
            self._finish(job, checked(outcome, self.objectives))
        return True

    # rows

    def _open_row(self) -> int:
        """Number of the mirror's open row: samplers mark it, and it becomes the next row on disk."""
        if self._open_number is None:
            self._mirror.add_trial(create_trial(state=TrialState.RUNNING))
            self._open_number = len(self._mirror.get_trials(deepcopy=False)) - 1
        return self._open_number

    def _create(self, number: int, params: Mapping[str, int], candidate: Candidate, known: int | None) -> None:
        """The open row becomes a row on disk, in one record: running, or finished like row ``known``."""
        attrs: dict[str, Any] = {CANDIDATE: candidate.id, ATTEMPT: 1}
        record = None
        if known is not None:
            record = dataclasses.replace(self.records[known], number=number, attempt=1, cached_from=known)
            attrs |= {CACHED: known, **record.attributes()}
        self._save_sampler_state()
        system_attrs = dict(private.trial_of(self._mirror, number).system_attrs)
        open_row = self._row(params, attrs, system_attrs, None)
        self._study.add_trial(open_row if record is None else self._row(params, attrs, system_attrs, record))
        written = self._study.get_trials(deepcopy=False)[-1].number
        if written != number:
            raise StorageError(f"{self._storage.where}: another program added trial {written} to this study; run again")
        private.set_params(self._mirror, number, open_row)
        self._open_number = None
        if record is not None:
            self._finish_row(self._mirror, record)
            self.records[number] = record

    def _row(
        self, params: Mapping[str, int], attrs: dict[str, Any], system_attrs: dict[str, Any], record: Record | None
    ) -> FrozenTrial:
        """A row for ``add_trial``: running without a record, else finished by it."""
        return create_trial(
            state=TrialState.RUNNING if record is None else record.state,
            values=None if record is None else record.values(self.objectives),
            params=dict(params),
            distributions=self._distributions,
            user_attrs=attrs,
            system_attrs=system_attrs,
            constraints=dict(record.constraints) if record is not None else None,
        )

    def _finish(self, job: Job, outcome: Outcome) -> None:
        record = make_record(job.number, job.candidate, outcome, self._constraints, attempt=job.attempt)
        for study in (self._study, self._mirror):
            self._finish_row(study, record)
        self._running.pop(job.number, None)
        self._remember(record)

    def _finish_row(self, study: optuna.Study, record: Record) -> None:
        """Outcome first: a row that has one is finished, even if its state could not be written."""
        for key, value in record.attributes().items():
            private.set_user_attr(study, record.number, key, value)
        private.set_constraints(study, record.number, record.constraints)
        study.tell(record.number, record.values(self.objectives), state=record.state)

    def _remember(self, record: Record) -> None:
        self.records[record.number] = record
        if record.cached_from is None:
            self._answers.setdefault(record.candidate.id, record.number)

    # starting again

    def _restart(self, job: Job) -> Job | None:
        """Hand an orphan out again; None where it was started too often and failed now."""
        if job.attempt >= ATTEMPTS:
            message = f"whoever evaluated it died {job.attempt} times without an outcome"
            self._finish(job, Failed(stage="worker", kind="died", message=message))
            return None
        job = dataclasses.replace(job, attempt=job.attempt + 1)
        for study in (self._study, self._mirror):
            private.set_user_attr(study, job.number, ATTEMPT, job.attempt)
        self._running[job.number] = job
        return job

    def _claim(self, identity: Mapping[str, Any]) -> None:
        """Name the study's settings, or compare them with those it was made with."""
        wanted = json.loads(json.dumps(identity))
        found = self._study.user_attrs.get(_IDENTITY)
        if found is None:
            if self._study.get_trials(deepcopy=False):
                raise StorageError(f"{self._storage.where}: study {self._study.study_name!r} was not made by autocomp")
            self._study.set_user_attr(_IDENTITY, wanted)
            private.set_metric_names(self._study, self.objectives)
        elif found != wanted:
            key = next(k for k in {**found, **wanted} if found.get(k) != wanted.get(k))
            raise StorageError(
                f"{self._storage.where}: this study was made with {key} = {_short(found.get(key))}, now it is "
                f"{_short(wanted.get(key))}; choose another --out, or start over with --fresh"
            )

    def _load(self) -> None:
        """Copy the study into the mirror; finish rows that have an outcome, queue those that have none."""
        private.set_study_system_attrs(self._mirror, self._study.user_attrs.get(_SAMPLER_STATE, {}))
        for trial in self._study.get_trials(deepcopy=False):
            self._load_row(trial)

    def _load_row(self, trial: FrozenTrial) -> None:
        candidate = candidate_of(trial, self.space)
        if candidate is None:  # not ours: keeps its number, and samplers do not see it
            self._mirror.add_trial(create_trial(state=TrialState.FAIL))
            return
        attrs = dict(trial.user_attrs)
        system_attrs = {k: v for k, v in trial.system_attrs.items() if not k.startswith(private.CONSTRAINT)}
        record = record_of(trial, self.space, self._constraints)
        if record is not None and not trial.state.is_finished():
            self._finish_row(self._study, record)
        self._mirror.add_trial(self._row(trial.params, attrs, system_attrs, record))
        if record is not None:
            self._remember(record)
        else:
            self._orphans.append(Job(number=trial.number, attempt=int(attrs.get(ATTEMPT, 1)), candidate=candidate))

    def _save_sampler_state(self) -> None:
        """What the sampler keeps for the whole study (NSGA-II's parents), so that a resumed one agrees."""
        state = private.study_system_attrs(self._mirror)
        if state and state != self._study.user_attrs.get(_SAMPLER_STATE):
            self._study.set_user_attr(_SAMPLER_STATE, state)


def space_digest(space: SearchSpace) -> str:
    """Hash of the units and their options in order: equal digests read each other's rows."""
    data = {
        unit.name: {
            axis: [o.to_json() if o is not None else None for o in options] for axis, options in unit.axes.items()
        }
        for unit in space.units.values()
    }
    return hashlib.sha256(json.dumps(data).encode()).hexdigest()[:16]


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else text[:57] + "..."
