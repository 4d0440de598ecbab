"""Workers that score on GPUs, on a cluster that says it has two. What a GPU computes: ``pytest -m gpu``."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from autocomp.cluster.connection import Cluster, Node
from autocomp.core.progress import Silent
from autocomp.core.settings import Settings
from autocomp.errors import ConfigError
from autocomp.stages.clustering import joined, scoring_gpus

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
    with joined(Settings(device="cuda", cluster="auto", resources={"GPU": 2.0}), Silent(), scores=True):
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
    assert refused.startswith("--device cuda: of the cluster's GPUs (2) none is left that no latencies are measured on")


def test_a_cluster_without_gpus_is_refused_at_once(cluster: Cluster) -> None:
    settings = Settings(device="cuda", cluster="auto")
    none_left = pytest.raises(ConfigError, match=r"of the cluster's GPUs \(0\) none is left")
    with none_left, joined(settings, Silent(), scores=True):
        pass
    with joined(settings, Silent()):  # verify, without a GPU
        pass


@pytest.mark.parametrize(
    ("nodes", "resources", "gpus"),
    [
        ([{"GPU": 2, "CPU": 8}], {}, 2),
        ([{"GPU": 4, "CPU": 2}], {}, 2),  # two CPUs, two workers
        ([{"GPU": 2, "CPU": 8}, {"GPU": 1, "CPU": 0}], {}, 2),  # no worker fits on a node that is there to measure
        (
            [{"GPU": 2, "CPU": 8}, {"GPU": 1, "CPU": 4, "orin": 1}],
            {"orin": 1},
            2,
        ),  # a label takes the GPU as well
        ([{"GPU": 2, "CPU": 8, "orin": 1}], {"orin": 1, "GPU": 1}, 1),
        ([{"GPU": 1, "CPU": 8, "orin": 1}], {"orin": 1}, 0),
        ([{"CPU": 8}, {"GPU": 1, "CPU": 0, "orin": 1}, {"GPU": 1, "CPU": 0, "other": 1}], {"orin": 1}, 0),
    ],
)
def test_gpus_that_workers_can_have(nodes: list[dict[str, float]], resources: dict[str, float], gpus: int) -> None:
    class Known(Cluster):
        def nodes(self) -> tuple[Node, ...]:
            return tuple(Node(id=str(i), address="", resources=node) for i, node in enumerate(nodes))

        def here(self) -> str:
            return "0"

    settings = Settings(target="cuda-torch", device="cuda", cluster="auto", resources=resources)
    known = Known(address="", started=False)
    if gpus:
        assert scoring_gpus(settings, known) == gpus
    else:
        with pytest.raises(ConfigError, match="none is left"):
            scoring_gpus(settings, known)
    assert scoring_gpus(dataclasses.replace(settings, device="cpu"), known) == 0
