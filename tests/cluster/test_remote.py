"""Calls to an exclusive actor: deaths, freezes, errors, and several callers."""

from __future__ import annotations

import os
import pickle
import signal
import threading
import time
from pathlib import Path

import psutil
import pytest

from autocomp.cluster.actor import Versions, Whereabouts, start
from autocomp.cluster.connection import Cluster, ray
from autocomp.cluster.remote import Remote
from autocomp.errors import DataError, UnsupportedError


class Device:
    """Something that only one may use, with accidents on demand."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def add(self, a: int, b: int) -> tuple[int, int]:
        return a + b, os.getpid()

    def alone(self, seconds: float) -> bool:
        """Whether nobody else was inside."""
        try:
            (self.folder / "inside").mkdir()
        except FileExistsError:
            return False
        time.sleep(seconds)
        (self.folder / "inside").rmdir()
        return True

    def fail(self) -> None:
        raise DataError("no such layer: conv9")

    def die(self, times: int) -> int:
        """Dies so many times in all, then answers."""
        seen = len(list(self.folder.glob("died-*")))
        if seen < times:
            (self.folder / f"died-{seen}").touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return seen


def made(tmp_path: Path, silence_s: float = 60.0) -> tuple[Remote, Whereabouts]:
    def make() -> Device:
        return Device(tmp_path)

    actor = start(make, resources={}, restarts=-1)
    where = ray().get(actor.open.remote(Versions()))
    return Remote((actor,), "the test device", silence_s), where


def test_calls_and_errors(cluster: Cluster, tmp_path: Path) -> None:
    remote, where = made(tmp_path)
    assert remote.call("add", 2, ray().put(3)) == (5, where.pid), "references among the arguments are fetched"
    with pytest.raises(DataError, match="no such layer: conv9"):
        remote.call("fail")
    with pytest.raises(UnsupportedError, match="cannot nothing: AttributeError"):
        remote.call("nothing")


def test_a_death_is_waited_out(cluster: Cluster, tmp_path: Path) -> None:
    remote, where = made(tmp_path)
    assert remote.call("die", 2) == 2
    _, pid = remote.call("add", 1, 1)
    assert pid != where.pid


def test_whatever_kills_it_every_time_is_told(cluster: Cluster, tmp_path: Path) -> None:
    remote, _ = made(tmp_path)
    with pytest.raises(UnsupportedError, match="the test device died 3 times in a row in die") as caught:
        remote.call("die", 9)
    assert caught.value.failure == "died"


def test_a_frozen_process_is_killed_and_started_again(cluster: Cluster, tmp_path: Path) -> None:
    remote, where = made(tmp_path, silence_s=1.0)
    os.kill(where.pid, signal.SIGSTOP)
    total, pid = remote.call("add", 2, 2)
    assert (total, pid != where.pid) == (4, True)
    until = time.monotonic() + 60
    while psutil.pid_exists(where.pid) and time.monotonic() < until:
        time.sleep(0.1)
    assert not psutil.pid_exists(where.pid)


def test_one_at_a_time(cluster: Cluster, tmp_path: Path) -> None:
    """Several callers, each with a copy of its own as other processes have: the device serves one after the other."""
    remote, _ = made(tmp_path)
    copies = [ray().cloudpickle.loads(ray().cloudpickle.dumps(remote)) for _ in range(4)]
    found: list[bool] = []
    threads = [threading.Thread(target=lambda c=c: found.append(c.call("alone", 0.05))) for c in copies]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [True] * 4


def test_a_bench_can_be_pickled(cluster: Cluster, tmp_path: Path) -> None:
    from autocomp.evaluators.remote_bench import RemoteBench

    remote, where = made(tmp_path)
    bench = pickle.loads(ray().cloudpickle.dumps(RemoteBench(remote, {"cpu": {"model": "x"}})))
    assert bench.facts() == {"cpu": {"model": "x"}}
    assert bench._remote.call("add", 1, 2) == (3, where.pid)
