"""Evaluates through Ray Tune, so that its schedulers, resources, callbacks and dashboard see the trials.

Tune's loop runs beside ours: a thin ``Searcher`` hands it the jobs that were submitted and takes their results. It
decides nothing and keeps nothing: the study stays the one record, and nothing is ever restored from Tune's own files.
A trial that dies is a job that is submitted again. Tune does not notice a process that is stopped (``ray_actors``
does), and takes a few tenths of a second a trial.
"""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from autocomp.cluster.actor import Versions
from autocomp.cluster.connection import ONE_CPU, connected, ray
from autocomp.core.executor import Evaluate, Event, Executor, Factory, Result, Task
from autocomp.core.threads import limit_threads
from autocomp.core.told import Told
from autocomp.errors import AutocompError, ConfigError, UnsupportedError
from autocomp.executors._team import again, check_limits, died, timed_out

ray()
from ray import tune  # noqa: E402  after the settings that make it quiet
from ray.tune.search import Searcher  # noqa: E402
from ray.tune.stopper import Stopper  # noqa: E402

os.environ.setdefault("TUNE_FORCE_TRIAL_CLEANUP_S", "2")
logging.getLogger("ray.tune").setLevel(logging.CRITICAL)  # a failed trial is told by its outcome
_JOB, _OUTCOME = "job", "outcome"
_CLOSING_S = 60.0


class Evaluation(tune.Trainable):
    """One job a trial; the actor and what the factory made are used again for the next one."""

    def setup(self, config: dict[str, Any], **shared: Any) -> None:
        """``shared``: factory, versions, timeout_s; ``late``: the folder where a job that took too long is noted."""
        self._factory: Factory = shared["factory"]
        self._versions: Versions = shared["versions"]
        self._timeout_s: float | None = shared["timeout_s"]
        self._late: Path = shared["late"]
        self._evaluate: Evaluate | None = None
        self._job: Task = config[_JOB]

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        self._job = new_config[_JOB]
        return True

    def step(self) -> dict[str, Any]:
        found: list[Result | Told] = []
        work = threading.Thread(target=lambda: found.append(self._outcome()), daemon=True)
        work.start()
        work.join(self._timeout_s)
        if not found:
            late_note(self._late, self._job).touch()
            os._exit(1)  # whatever hangs ends with its process, which Tune replaces
        return {_OUTCOME: found[0], "done": True}

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        """Nothing: the study is the record."""

    def load_checkpoint(self, checkpoint: Any) -> None:
        """Nothing."""

    def _outcome(self) -> Result | Told:
        different = self._versions.mismatch(Versions(), ray().util.get_node_ip_address())
        if different is not None:
            return Told.of(ConfigError(different))
        if self._evaluate is None:
            limit_threads(1)
            try:
                self._evaluate = self._factory()
            except Exception as error:  # noqa: BLE001  the edge of the process: it is raised again in the driver
                return Told.of(error)
            limit_threads(1)
        return self._evaluate(self._job)


def late_note(folder: Path, job: Task) -> Path:
    """The file whose presence says that this attempt took too long."""
    return folder / f"{job.number}-{job.attempt}"


class _Exchange(Searcher, Stopper):
    """What is submitted goes to Tune, what ends comes back. One object in two threads, however Tune copies it."""

    def __init__(self, late: Path, timeout_s: float | None) -> None:
        super().__init__(metric=None, mode=None)
        self._late, self._timeout_s = late, timeout_s
        self.waiting: deque[Task] = deque()
        self.running: dict[str, Task] = {}
        self.results: deque[Event | AutocompError] = deque()
        self.changed = threading.Condition()
        self.closing = False

    def suggest(self, trial_id: str) -> Any:
        """Configuration of the next trial; None: not now."""
        with self.changed:
            if self.closing:
                return Searcher.FINISHED
            if not self.waiting:
                return None
            self.running[trial_id] = self.waiting.popleft()
            return {_JOB: self.running[trial_id]}

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        with self.changed:
            job = self.running.pop(trial_id, None)
            if job is None or self.closing:
                return
            outcome = None if error or result is None else result.get(_OUTCOME)
            if isinstance(outcome, Told):
                self.results.append(outcome.error("evaluation workers cannot start"))
            elif outcome is not None:
                self.results.append(Event(job=job, outcome=outcome))
            elif late_note(self._late, job).exists():
                self.results.append(Event(job=job, outcome=timed_out(self._timeout_s)))
            elif (restarted := again(job)) is not None:
                self.waiting.appendleft(restarted)
            else:
                self.results.append(Event(job=job, outcome=died("died", job)))
            self.changed.notify_all()

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        return False

    def stop_all(self) -> bool:
        return self.closing

    def save(self, checkpoint_path: str) -> None:
        """Nothing: the study is the record."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing."""

    def __deepcopy__(self, memo: object) -> _Exchange:
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        return _Exchange, (self._late, self._timeout_s)


class RayTune:
    """``jobs`` concurrent trials of one Tune experiment on the connected cluster.

    Args:
        factory: picklable; put into the object store once, called once in each actor.
        jobs: trials at a time.
        timeout_s: seconds a job may take, or None.
        scratch: a folder that all nodes see, for Tune's own files; None: a temporary one.
        resources: what each trial takes.
        leave: called when the actors are gone, or None.

    Raises:
        ConfigError: ``jobs`` below 1 or ``timeout_s`` not positive.
    """

    def __init__(
        self,
        factory: Factory,
        *,
        jobs: int,
        timeout_s: float | None = None,
        scratch: Path | None = None,
        resources: Mapping[str, float] = ONE_CPU,
        leave: Callable[[], None] | None = None,
    ) -> None:
        check_limits(jobs, timeout_s)
        self._jobs, self._leave = jobs, leave
        self._failure: Exception | None = None
        self._folder = Path(tempfile.mkdtemp(prefix="autocomp-tune-", dir=scratch))
        late = self._folder / "late"
        late.mkdir()
        self._exchange = _Exchange(late, timeout_s)
        trainable = tune.with_parameters(
            Evaluation, factory=factory, versions=Versions(), timeout_s=timeout_s, late=late
        )
        self._tuner = tune.Tuner(
            tune.with_resources(trainable, dict(resources)),
            tune_config=tune.TuneConfig(
                search_alg=self._exchange, num_samples=-1, max_concurrent_trials=jobs, reuse_actors=True
            ),
            run_config=tune.RunConfig(
                storage_path=str(self._folder),
                verbose=0,
                stop=self._exchange,
                failure_config=tune.FailureConfig(max_failures=0),
            ),
        )
        self._loop = threading.Thread(target=self._fit, name="ray-tune", daemon=True)
        self._loop.start()

    def _fit(self) -> None:
        try:
            self._tuner.fit()
        except Exception as error:  # noqa: BLE001  the edge of the thread: next_event raises it
            self._failure = error
        with self._exchange.changed:
            self._exchange.changed.notify_all()

    def slots(self) -> int:
        """Trials that may be submitted now."""
        with self._exchange.changed:
            events = sum(isinstance(r, Event) for r in self._exchange.results)
            return max(0, self._jobs - len(self._exchange.waiting) - len(self._exchange.running) - events)

    def submit(self, job: Task) -> None:
        """Offer ``job`` to Tune."""
        if self.slots() == 0:
            raise RuntimeError("submit() while slots() is 0")
        with self._exchange.changed:
            self._exchange.waiting.append(job)

    def next_event(self, timeout_s: float | None = None) -> Event | None:
        """The next job that is over; None after ``timeout_s``, or at once when there is no job.

        Raises:
            AutocompError: what the factory raised in a worker.
            UnsupportedError: Tune's loop ended.
        """
        exchange = self._exchange
        give_up = None if timeout_s is None else time.monotonic() + timeout_s
        with exchange.changed:
            while not exchange.results:
                if not exchange.waiting and not exchange.running:
                    return None
                if not self._loop.is_alive():
                    raise UnsupportedError(f"Ray Tune ended: {self._failure}; try --executor ray_actors")
                patience = None if give_up is None else give_up - time.monotonic()
                if patience is not None and patience <= 0:
                    return None
                exchange.changed.wait(1.0 if patience is None else min(1.0, patience))
            found = exchange.results.popleft()
        if isinstance(found, AutocompError):
            raise found
        return found

    def close(self) -> None:
        """End the experiment and its actors; jobs under way are dropped."""
        with self._exchange.changed:
            self._exchange.closing = True
            self._exchange.waiting.clear()
        self._loop.join(_CLOSING_S)
        shutil.rmtree(self._folder, ignore_errors=True)
        if self._leave is not None:
            self._leave()


def make(
    factory: Factory,
    *,
    jobs: int | None = None,
    timeout_s: float | None = None,
    scratch: Path | None = None,
    gpus: int = 0,
) -> Executor:
    """The executor on the connected cluster; a program that is connected to none gets that of ``--cluster auto``.

    Arguments as for :class:`RayTune`; ``jobs`` None: one a CPU of the cluster, or one each of ``gpus``, which the
    trials share, one each or equal parts of one (0: they take none).
    """
    with contextlib.ExitStack() as stack:
        cluster = stack.enter_context(connected("auto"))
        trials, each = cluster.crew(jobs, gpus)
        executor = RayTune(
            factory,
            jobs=trials,
            timeout_s=timeout_s,
            scratch=scratch,
            resources=each,
            leave=lambda: connection.close(),
        )
        connection = stack.pop_all()
        return executor
