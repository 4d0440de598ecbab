"""Finding a cluster, and everything that can be wrong with one."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from autocomp.cluster.actor import Versions, start
from autocomp.cluster.connection import Cluster, connected, ray
from autocomp.core.run_folder import RunFolder
from autocomp.core.told import Told
from autocomp.errors import ConfigError, RetryableError, StorageError, UnknownNameError, UnsupportedError

ROOT = Path(__file__).parents[2]


def test_a_program_that_is_connected_keeps_its_cluster(cluster: Cluster) -> None:
    with connected("auto") as found:
        assert not found.started
        assert found.cores() == 2
    assert ray().is_initialized()


def test_nodes_and_what_they_offer(cluster: Cluster) -> None:
    (node,) = cluster.nodes()
    assert node.id == cluster.here()
    assert cluster.offering({"CPU": 2}) == (node,)
    for wanted in ({"CPU": 3.0}, {"GPU": 1.0}, {"target_orin": 1.0}):
        with pytest.raises(ConfigError, match="no node of the cluster offers that"):
            cluster.offering(wanted)


def in_a_program(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "PYTHONPATH": str(ROOT), **environment}
    return subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, timeout=300)


CONNECT = """
import ray
{before}
from autocomp.cluster.connection import connected
from autocomp.errors import AutocompError
try:
    with connected({address!r}):
        print("connected")
except AutocompError as error:
    print(type(error).__name__, error)
"""


def test_another_version_of_ray_is_one_line(cluster: Cluster) -> None:
    address = ray().get_runtime_context().gcs_address
    done = in_a_program(CONNECT.format(before="ray.__version__ = '2.0.0'", address=address))
    said = done.stdout.strip()
    assert said.startswith("ConfigError --cluster"), done.stderr
    assert "2.0.0" in said
    assert "the same versions of Ray and Python are needed everywhere" in said
    assert "\n" not in said


def test_auto_without_a_cluster_starts_one_and_stops_it() -> None:
    """Nothing of it is left when the program ends."""
    script = CONNECT.format(before="", address="auto").replace('print("connected")', "print(ray.nodes()[0]['NodeID'])")
    done = in_a_program(script, RAY_ADDRESS="local", RAY_TMPDIR="/tmp")
    assert len(done.stdout.strip()) == 56, done.stdout + done.stderr
    assert done.stderr == ""


@pytest.mark.parametrize("address", ["127.0.0.1:{closed}", "ray://127.0.0.1:{closed}"])
def test_nothing_answers(address: str) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound, and never listening
        done = in_a_program(CONNECT.format(before="", address=address.format(closed=taken.getsockname()[1])))
    assert done.stdout.startswith("RetryableError"), done.stdout + done.stderr
    assert "nothing answers there" in done.stdout
    assert done.stdout.count("\n") == 1


@pytest.mark.parametrize("address", ["nowhere", "host:", "ray://host", "host:port"])
def test_what_is_no_address(address: str) -> None:
    done = in_a_program(CONNECT.format(before="", address=address))
    assert done.stdout.startswith("ConfigError"), done.stdout + done.stderr
    assert "HOST:PORT" in done.stdout


def test_another_autocomp_on_a_node_is_said_before_anything_is_made(cluster: Cluster) -> None:
    actor = start(dict)
    found = ray().get(actor.open.remote(Versions(autocomp="0.0.1")))
    ray().kill(actor)
    assert isinstance(found, Told)
    error = found.error("node")
    assert isinstance(error, ConfigError)
    assert "this program autocomp 0.0.1" in str(error)
    assert "install the same everywhere" in str(error)


def test_a_run_folder_that_is_not_shared(tmp_path: Path) -> None:
    """Two disks, one path: what a node without the shared storage would find."""
    from autocomp.search.reopening import check_shared, mark_shared

    here, there = RunFolder(tmp_path / "here"), RunFolder(tmp_path / "there")
    mark = mark_shared(here)
    check_shared(here, mark)
    with pytest.raises(StorageError, match="storage that all nodes of the cluster share"):
        check_shared(there, mark)
    mark_shared(there)
    with pytest.raises(StorageError):
        check_shared(there, mark)


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (RetryableError("later", failure="timeout"), RetryableError),
        (UnknownNameError("target", "x", ["y"]), UnsupportedError),
        (ValueError("two\nlines"), UnsupportedError),
    ],
)
def test_exceptions_travel_as_text(error: Exception, kind: type[Exception]) -> None:
    told = Told.of(error).error("there")
    assert type(told) is kind
    assert "\n" not in str(told)
    assert told.failure == getattr(error, "failure", None)
