"""Jobs through Ray Tune: the contract of executors with workers."""

from __future__ import annotations

import pytest

pytest.importorskip("ray", reason="Ray is not installed: pip install 'autocomp[ray]'")

from autocomp.core.executor import Executor, Factory
from autocomp.executors import ray_tune
from autocomp.testing.executor_contract import WorkersContract


@pytest.mark.usefixtures("cluster")
class TestRayTune(WorkersContract):
    def make_workers(self, factory: Factory, *, jobs: int = 2, timeout_s: float | None = None) -> Executor:
        return ray_tune.make(factory, jobs=jobs, timeout_s=timeout_s)
