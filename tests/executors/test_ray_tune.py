"""Jobs through Ray Tune: the contract, and deaths and time limits of trials."""

from __future__ import annotations

import pytest

pytest.importorskip("ray", reason="Ray is not installed: pip install 'autocomp[ray]'")

from autocomp.cluster.connection import Cluster
from autocomp.core.executor import Evaluate, Executor, Factory
from autocomp.core.outcome import Completed, Failed
from autocomp.errors import ConfigError, DataError
from autocomp.executors import ray_tune
from autocomp.search.job import Guarded
from autocomp.testing.executor_contract import ExecutorContract, run_all, some_jobs
from autocomp.testing.study_fakes import FakeFactory

DEADLINE_S = 120.0


@pytest.mark.usefixtures("cluster")
class TestRayTune(ExecutorContract):
    def make(self, factory: Factory) -> Executor:
        return ray_tune.make(factory, jobs=2)


def test_deaths_cost_only_their_own_job(cluster: Cluster) -> None:
    """One job always dies, one only the first time, one hangs; the others do not notice."""
    factory = Guarded(FakeFactory(accidents=((1, "die"), (2, "die-once"), (4, "hang"))))
    executor = ray_tune.make(factory, jobs=2, timeout_s=2.0)
    try:
        events = {e.job.number: e for e in run_all(executor, some_jobs(8))}
    finally:
        executor.close()
    assert sorted(events) == list(range(8))
    died, hung = events[1].outcome, events[4].outcome
    assert isinstance(died, Failed)
    assert (died.stage, died.kind, events[1].job.attempt) == ("worker", "died", 3)
    assert isinstance(hung, Failed)
    assert (hung.stage, hung.kind) == ("worker", "timeout")
    assert isinstance(events[2].outcome, Completed)
    assert events[2].job.attempt == 2
    assert all(isinstance(events[n].outcome, Completed) for n in (0, 3, 5, 6, 7))


def _no_data() -> Evaluate:
    raise DataError("digits.npz: no images; give another --data")


def test_broken_factory_is_one_clear_error(cluster: Cluster) -> None:
    executor = ray_tune.make(Guarded(_no_data), jobs=1)
    try:
        executor.submit(some_jobs(1)[0])
        with pytest.raises(DataError, match=r"digits\.npz: no images"):
            executor.next_event(DEADLINE_S)
    finally:
        executor.close()


@pytest.mark.parametrize(("jobs", "timeout_s"), [(0, None), (1, 0.0)])
def test_bad_settings(jobs: int, timeout_s: float | None) -> None:
    with pytest.raises(ConfigError, match="allowed"):
        ray_tune.RayTune(FakeFactory(), jobs=jobs, timeout_s=timeout_s)
