"""Workers that score on GPUs, on a cluster that says it has two. What a GPU computes: ``pytest -m gpu``."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from autocomp.cluster.connection import Cluster
from autocomp.core.progress import Silent
from autocomp.core.settings import Settings
from autocomp.errors import ConfigError
from autocomp.stages.clustering import joined

ROOT = Path(__file__).parents[2]

TEAMS = """
import json, os, time
from autocomp.cluster.connection import ray
ray().init(address="local", num_cpus=4, num_gpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
from autocomp.core.outcome import Completed
from autocomp.core.progress import Silent
from autocomp.core.settings import Settings
from autocomp.errors import ConfigError
from autocomp.executors import ray_actors, ray_tune
from autocomp.stages.clustering import joined
from autocomp.testing.executor_contract import run_all, some_jobs

def factory():
    def evaluate(job):
        time.sleep(2)  # so that no worker does the task of another
        return Completed(file_bytes=1, kl=0.0, score=0.0, notes=(os.environ.get("CUDA_VISIBLE_DEVICES", "none"),))
    return evaluate

found = {}
for executor in (ray_actors, ray_tune):
    for jobs in (None, 4):
        team = executor.make(factory, jobs=jobs, gpus=2)
        workers = team.slots()
        seen = sorted(event.outcome.notes[0] for event in run_all(team, some_jobs(workers)))
        team.close()
        found[f"{executor.__name__.rpartition('.')[2]} {jobs}"] = seen
try:
    with joined(Settings(device="cuda", cluster="auto", resources={"GPU": 2.0}), Silent()):
        pass
except ConfigError as error:
    found["refused"] = str(error)
print(json.dumps(found))
"""


def test_each_worker_has_a_gpu_or_its_share_of_one() -> None:
    done = subprocess.run(
        [sys.executable, "-c", TEAMS],
        env={**os.environ, "PYTHONPATH": str(ROOT), "RAY_TMPDIR": "/tmp"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    refused = found.pop("refused")
    one_each, two_each = ["0", "1"], ["0", "0", "1", "1"]
    assert found == {
        "ray_actors None": one_each,
        "ray_actors 4": two_each,
        "ray_tune None": one_each,
        "ray_tune 4": two_each,
    }
    assert refused.startswith("--device cuda: the nodes of the cluster offer 2 GPUs, and latencies are measured on 2")


def test_a_cluster_without_gpus_is_refused_at_once(cluster: Cluster) -> None:
    settings = Settings(device="cuda", cluster="auto")
    with (
        pytest.raises(ConfigError, match="the nodes of the cluster offer 0 GPUs; start nodes with GPUs"),
        joined(settings, Silent()),
    ):
        pass
