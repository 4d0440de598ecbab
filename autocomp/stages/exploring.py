"""The search stage: the coordinator, its executor, and rows of everything that was evaluated."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import Any

import optuna

from autocomp.core.executor import Executor, Job
from autocomp.core.outcome import Completed, Failed, Outcome
from autocomp.core.progress import Progress
from autocomp.core.row import Row
from autocomp.core.run_folder import RunFolder
from autocomp.executors import inline
from autocomp.planner.plan import plan
from autocomp.search.coordinator import GRANTED, Coordinator
from autocomp.search.evaluator import Evaluator
from autocomp.search.job import Guarded
from autocomp.search.loop import SearchStats, run_search
from autocomp.search.records import CACHED
from autocomp.search.reopening import Worker
from autocomp.search.sampler import SamplerContext, make_sampler
from autocomp.search.session import Session
from autocomp.search.storage import StudyStorage, open_storage
from autocomp.stages.baselines import measure_baselines
from autocomp.stages.limits import Limits
from autocomp.stages.rows import float32_row, make_row

WARM_STARTS = 24
"""Plan candidates across budgets that open a search (fewer where the search is shorter)."""


@dataclass(frozen=True, kw_only=True)
class Explored:
    """What the search stage returns.

    Attributes:
        rows: every evaluated row, in order of trial number.
        float32: the uncompressed network.
        baselines: by name.
        limits: the constraints.
        stats: counts.
        notes: one line each.
    """

    rows: tuple[Row, ...]
    float32: Row
    baselines: dict[str, Row]
    limits: Limits
    stats: SearchStats
    notes: tuple[str, ...] = ()


def identity(session: Session) -> dict[str, Any]:
    """What makes the rows of two studies comparable."""
    return {
        **session.settings.identity(),
        "fingerprint": session.workload.fingerprint,
        "device": session.device(),
    }


def study_name(session: Session) -> str:
    """Name of the study; a storage by URL may hold those of other settings as well, so it tells them apart there."""
    name = f"{session.workload.name}-{session.target.profile.name}-{session.workload.fingerprint[:8]}"
    if session.settings.storage is None:
        return name
    return f"{name}-{hashlib.sha256(json.dumps(identity(session), sort_keys=True).encode()).hexdigest()[:8]}"


def open_study(session: Session, progress: Progress) -> StudyStorage:
    """Where the study is kept, with the exclusive right to drive it; refused where another process has that."""
    run = session.run
    location, lock = session.settings.storage or run.journal, run.cache / "study.lock"
    return open_storage(location, study=study_name(session), lock=lock, say=progress.note)


def prepare_study(session: Session, progress: Progress) -> None:
    """Open the study before anything long begins: what is wrong with it is said now; starting over forgets it."""
    with open_study(session, progress) as storage:
        if session.run.fresh:
            storage.forget(study_name(session))


def trials_done(run: RunFolder) -> int:
    """Evaluations that the run's study holds, of those its present limits are given; the study is only read."""
    if not run.journal.is_file():
        return 0
    with open_storage(run.journal, exclusive=False) as opened:
        names = optuna.get_all_study_names(opened.storage)
        studies = [optuna.load_study(study_name=name, storage=opened.storage) for name in names]
        trials = [trial for study in studies for trial in study.get_trials(deepcopy=False)]
        started_at = sum(int(study.user_attrs.get(GRANTED, {}).get("started_at", 0)) for study in studies)
    finished = sum(trial.state.is_finished() and CACHED not in trial.user_attrs for trial in trials)
    return max(0, finished - started_at)


def explore(evaluator: Evaluator, executor: Executor | None, progress: Progress) -> Explored:
    """Baselines, then warm starts from the plan, then the sampler, until the trials or the time are spent.

    Args:
        evaluator: of this process.
        executor: of the run; None: this process evaluates.
        progress: told of every evaluation.
    """
    session = evaluator.session
    settings, metric = session.settings, session.workload.metric
    reference = evaluator.reference
    score = metric.compute(reference.outputs, reference.targets, reference.outputs)
    limits = Limits.of(settings, metric, score)
    float32 = float32_row(evaluator, limits)
    baselines = measure_baselines(evaluator, limits, float32, progress)
    trials = settings.spend.trials
    prices = evaluator.survey.prices
    starts = plan(prices, session.space, budget_bytes=settings.budget_bytes, count=min(WARM_STARTS, max(1, trials)))
    context = SamplerContext(
        space=session.space,
        prices=prices,
        plan=tuple(starts),
        budget_bytes=settings.budget_bytes,
        seed=settings.seed,
    )

    def constraints(done: Completed) -> dict[str, float]:
        latency_s = done.latency.median_s() if done.latency else None
        return limits.violations(
            file_bytes=done.file_bytes, score=done.score, latency_s=latency_s, engine_bytes=done.engine_bytes
        )

    timed = float32.latency_ms is not None  # else some rows have a latency and others none
    objectives = ("loss", "file_bytes", "latency_s") if timed else ("loss", "file_bytes")
    with open_study(session, progress) as storage:
        coordinator = Coordinator(
            space=session.space,
            sampler=make_sampler(settings.sampler, context),
            storage=storage,
            study_name=study_name(session),
            identity=identity(session),
            budget_trials=0,
            constraints=constraints,
            objectives=objectives,
        )
        progress.stage("search", total=trials, done=coordinator.grant(limits.to_json(), trials))
        log = FailureLog(session.run, progress)
        team = executor or inline.make(Guarded(lambda: Worker(session, evaluator)))
        stats = run_search(coordinator, team, timeout_s=settings.timeout_s, progress=progress, on_outcome=log)
        records = [coordinator.records[n] for n in sorted(coordinator.records)]
    rows = []
    for record in records:
        if record.cached_from is None and isinstance(record.outcome, Completed):
            path = evaluator.kept_path(record.candidate)
            own = path is not None and path.stat().st_size == record.outcome.file_bytes
            file = str(path) if own else None
            name = f"trial {record.number}"
            rows.append(make_row(name, record.candidate, record.outcome, limits, trial=record.number, file=file))
    return Explored(rows=tuple(rows), float32=float32, baselines=baselines, limits=limits, stats=stats)


class FailureLog:
    """Writes the traceback of every failed evaluation into the run's log, and says the first of each kind.

    Args:
        run: whose ``log.txt`` is written.
        progress: told once a kind.
    """

    def __init__(self, run: RunFolder, progress: Progress) -> None:
        self._run, self._progress = run, progress
        self._said: set[str] = set()

    def __call__(self, job: Job, outcome: Outcome) -> None:
        if not isinstance(outcome, Failed):
            return
        where = f"trial {job.number} attempt {job.attempt} failed in {outcome.stage} ({outcome.kind})"
        self._run.write_log(f"{where}: {outcome.message}\n{outcome.traceback}")
        kind = f"{outcome.stage}/{outcome.kind}"
        if kind not in self._said:
            self._said.add(kind)
            self._progress.note(f"trial {job.number} failed in {kind}: {outcome.message} (more in {self._run.log})")
