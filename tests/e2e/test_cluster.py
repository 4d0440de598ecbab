"""``--cluster``: the same search, elsewhere."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tiny_workload import Tiny

import autocomp as package
from autocomp.cluster.connection import Cluster

Run = Callable[..., subprocess.CompletedProcess[str]]
TRIALS = 6


def searched(tiny: Tiny, out: Path, **options: Any) -> package.Result:
    """A search by the plan alone: the same candidates wherever they are evaluated."""
    return package.search(
        tiny.model, tiny.data, weights=str(tiny.weights), normalize="none", budget="7kB", preset="quick",
        trials=TRIALS, sampler="plan", out=str(out), **options,
    )  # fmt: skip


@pytest.fixture(scope="module")
def local(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> package.Result:
    return searched(tiny, tmp_path_factory.mktemp("local") / "run")


def rows_of(result: package.Result) -> list[tuple[Any, ...]]:
    rows = [(str(r.recipe), r.file_bytes, r.score_search, r.feasible) for r in result.summary.trials]
    return sorted(rows)


@pytest.mark.parametrize("executor", ["ray_actors", "ray_tune"])
def test_a_cluster_finds_the_same_rows(
    cluster: Cluster, tiny: Tiny, local: package.Result, tmp_path: Path, executor: str
) -> None:
    """Workers get model and data from the object store, time on one bench, and write into the run folder."""
    found = searched(tiny, tmp_path / "run", cluster="auto", executor=executor, jobs=2)
    assert rows_of(found) == rows_of(local)
    assert found.summary.failures == {}
    best = found.best.row
    assert best.file_bytes == Path(best.file or "").stat().st_size <= 7000
    assert all(row.latency_source == "measured" for row in found.summary.trials)
    measured = list((tmp_path / "run" / "cache" / "engines").glob("measurement-*"))
    assert len(measured) >= found.summary.engine_builds > 0


def test_bad_clusters_are_one_line(autocomp: Run, tmp_path: Path) -> None:
    gone = autocomp("search", "--budget", "4MB", "--cluster", "127.0.0.1:1", "--out", tmp_path / "run")
    assert gone.returncode == 2
    assert gone.stderr.count("\n") == 1
    assert "nothing answers there" in gone.stderr


def test_a_resource_that_no_node_has_is_said_at_start(cluster: Cluster, tiny: Tiny, tmp_path: Path) -> None:
    with pytest.raises(package.errors.ConfigError, match=r"no node of the cluster offers that .*CPU=2"):
        searched(tiny, tmp_path / "run", cluster="auto", resources="target_orin=1")
