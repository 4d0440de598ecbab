"""``--cluster``: the same search, elsewhere."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tiny_workload import Tiny

import autocomp as package
from autocomp.cluster.connection import Cluster, ray

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


@pytest.mark.parametrize("executor", ["ray_actors", pytest.param("ray_tune", marks=pytest.mark.slow)])
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


@pytest.mark.slow
def test_two_searches_of_one_cluster_share_their_caches(cluster: Cluster, tiny: Tiny, tmp_path: Path) -> None:
    """At the same time, by two programs: both find what one alone finds, and nothing is priced or built in vain."""
    address = ray().get_runtime_context().gcs_address
    shared = tmp_path / "cache"
    commands = [
        [sys.executable, "-m", "autocomp", "search", *tiny.arguments, "--budget", budget, "--preset", "quick",
         "--trials", str(TRIALS), "--sampler", "plan", "--cluster", address, "--jobs", "1", "--cache", str(shared),
         "--out", str(tmp_path / budget), "--json", "-q"]
        for budget in ("7kB", "9kB")
    ]  # fmt: skip
    running = [subprocess.Popen(c, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for c in commands]
    for program in running:
        said, errors = program.communicate(timeout=500)
        assert program.returncode == 0, errors
        summary = json.loads(said)
        assert summary["failures"] == {}
        assert summary["evaluations"] == TRIALS
    before = {p: p.stat().st_mtime_ns for p in shared.rglob("*") if p.is_file()}
    assert any(p.suffix == ".unit" for p in before)
    assert any(p.name.startswith("measurement-") for p in before)
    third = [*commands[0][: commands[0].index("--out")], "--out", str(tmp_path / "third"), "--json", "-q"]
    done = subprocess.run(third, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr
    assert {p: p.stat().st_mtime_ns for p in before if p.suffix == ".unit"} == {
        p: t for p, t in before.items() if p.suffix == ".unit"
    }, "a third search prices nothing"


def test_bad_clusters_are_one_line(autocomp: Run, tmp_path: Path) -> None:
    gone = autocomp("search", "--budget", "4MB", "--cluster", "127.0.0.1:1", "--out", tmp_path / "run")
    assert gone.returncode == 2
    assert gone.stderr.count("\n") == 1
    assert "nothing answers there" in gone.stderr


def test_a_resource_that_no_node_has_is_said_at_start(cluster: Cluster, tiny: Tiny, tmp_path: Path) -> None:
    with pytest.raises(package.errors.ConfigError, match=r"no node of the cluster offers that .*CPU=2"):
        searched(tiny, tmp_path / "run", cluster="auto", resources="target_orin=1")
