"""The workers of a run: started once, for the survey, the search and the finish."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from autocomp.cluster.connection import connected
from autocomp.core import plugins
from autocomp.core.executor import Executor
from autocomp.core.workload import Workload
from autocomp.search.job import Guarded
from autocomp.search.reopening import WorkerFactory
from autocomp.search.session import Session
from autocomp.stages.clustering import scoring_gpus, travelling


@contextlib.contextmanager
def hired(session: Session, workload: Workload | None) -> Iterator[Executor | None]:
    """The executor that the settings name, closed afterwards; None where this process does everything itself.

    Args:
        session: of this process.
        workload: the caller's own objects, where these are searched.
    """
    settings, run = session.settings, session.run
    if settings.executor_name == "inline":
        yield None
        return
    gpus = 0
    if settings.cluster is not None:
        factory = travelling(session)
        with connected(settings.cluster) as cluster:
            gpus = scoring_gpus(settings, cluster)
    else:
        factory = WorkerFactory(settings=settings, folder=run.path, workload=workload)
    make = plugins.find("autocomp.executors", "executor", settings.executor_name).make
    executor: Executor = make(Guarded(factory), jobs=settings.jobs, scratch=run.cache, gpus=gpus)
    try:
        yield executor
    finally:
        executor.close()
