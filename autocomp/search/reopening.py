"""Evaluators of a run in other processes, on this machine or another."""

from __future__ import annotations

import dataclasses
import platform
import secrets
from pathlib import Path

from autocomp.core.executor import Finishing, Job, Priced, Result, Share, Task
from autocomp.core.progress import Progress
from autocomp.core.run_folder import RunFolder, storage_errors, write_atomic
from autocomp.core.settings import Settings
from autocomp.core.workload import Workload
from autocomp.errors import StorageError
from autocomp.evaluators.bench import Bench
from autocomp.search.evaluator import Evaluator
from autocomp.search.finishing import finish
from autocomp.search.session import Session, open_session
from autocomp.search.shares import price_share
from autocomp.survey.stored import load_survey

_SHARED = "shared"


def reopened(
    settings: Settings,
    run: RunFolder,
    *,
    workload: Workload | None = None,
    progress: Progress | None = None,
    bench: Bench | None = None,
) -> Evaluator:
    """What evaluates in a run that was surveyed before: later, on this machine or another."""
    session = open_session(settings, run, workload=workload, progress=progress, bench=bench, elsewhere=True)
    return Evaluator(session, load_survey(session.network, session.space, run.cache))


class Worker:
    """What a worker process does: shares of the survey at first, then evaluations, then finishing.

    Args:
        session: opened in this process.
        evaluator: made when it is first needed, with the survey that is done by then, unless given.
    """

    def __init__(self, session: Session, evaluator: Evaluator | None = None) -> None:
        self._session = session
        self._known = evaluator

    def __call__(self, task: Task) -> Result:
        if isinstance(task, Share):
            price_share(self._session, task.names)
            return Priced(names=task.names)
        if isinstance(task, Finishing):
            return finish(self._evaluator, task)
        assert isinstance(task, Job)
        return self._evaluator(task)

    @property
    def _evaluator(self) -> Evaluator:
        session = self._session
        if self._known is None:
            self._known = Evaluator(session, load_survey(session.network, session.space, session.run.cache))
        return self._known


@dataclasses.dataclass(frozen=True)
class WorkerFactory:
    """Picklable recipe for a :class:`Worker` in another process.

    Attributes:
        settings: the run's settings.
        folder: the run folder; the survey is read from its cache.
        workload: given where the caller's own objects are searched, or where it travels; else loaded by its spec.
        bench: where latencies are measured; None: where the evaluator is.
        shared: what the run folder has to hold (:func:`mark_shared`) where the process may be on another machine.
    """

    settings: Settings
    folder: Path
    workload: Workload | None = None
    bench: Bench | None = None
    shared: str | None = None

    def __call__(self) -> Worker:
        run = RunFolder(self.folder)
        if self.shared is not None:
            check_shared(run, self.shared)
        return Worker(open_session(self.settings, run, workload=self.workload, bench=self.bench))


def mark_shared(run: RunFolder) -> str:
    """Write something into the run folder that only this run knows; returns it."""
    mark = secrets.token_hex(8)
    with storage_errors(run.path):
        write_atomic(run.cache / _SHARED, mark.encode())
    return mark


def check_shared(run: RunFolder, mark: str) -> None:
    """Refuse where the run folder is not the one that :func:`mark_shared` wrote to: two disks, one path.

    Raises:
        StorageError: naming this machine.
    """
    path = run.cache / _SHARED
    if not path.is_file() or path.read_text(encoding="ascii") != mark:
        raise StorageError(
            f"{platform.node()} does not see the run folder {run.path} of the program that searches; choose --out on "
            "storage that all nodes of the cluster share"
        )
