"""Who may drive: on one machine, and between machines that share a file system with or without flock."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from autocomp.core import owner
from autocomp.core.owner import Owner, holder
from autocomp.errors import StorageError

ROOT = Path(__file__).parents[2]
BEAT_S = 0.3


def lease_of(path: Path) -> Path:
    return path.with_name(path.name + ".lease")


def leave_lease(path: Path, machine: str, age_s: float = 0.0) -> None:
    """What a driver leaves behind that dies without a word."""
    lease = lease_of(path)
    lease.write_text(json.dumps({"host": "there", "machine": machine, "process": 77, "token": "old"}))
    stamp_ns = lease.stat().st_mtime_ns - int(age_s * 1e9)
    os.utime(lease, ns=(stamp_ns, stamp_ns))


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(owner, "BEAT_S", BEAT_S)


def test_one_owner_until_release(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    first = Owner(path, thing="run", where="here")
    assert holder(path) == first._me
    with pytest.raises(StorageError, match=f"^here: process {os.getpid()} is driving this run; wait for it"):
        Owner(path, thing="run", where="here")
    first.check()
    first.release()
    first.release()
    assert holder(path) is None
    assert not lease_of(path).exists()
    Owner(path).release()


def test_lease_of_a_process_that_died_here_is_taken_at_once(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    path.touch()
    leave_lease(path, owner.machine())
    assert holder(path) is None
    said: list[str] = []
    Owner(path, say=said.append).release()
    assert said == [], "nothing was waited for"


@pytest.mark.usefixtures("quick")
def test_silent_lease_of_another_machine_is_waited_out(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    leave_lease(path, "another", age_s=3600)
    assert holder(path) is None, "no sign of life for a beat and a half"
    said: list[str] = []
    second = Owner(path, thing="run", say=said.append)
    assert len(said) == 1
    assert "process 77 on there held this run" in said[0]
    second.check()
    second.release()


@pytest.mark.usefixtures("quick")
def test_beating_lease_of_another_machine_is_respected(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    leave_lease(path, "another", age_s=3600)  # clocks of file systems are off; only a change counts
    stop = threading.Event()

    def beat() -> None:
        while not stop.wait(BEAT_S / 2):
            os.utime(lease_of(path))

    thread = threading.Thread(target=beat)
    thread.start()
    try:
        with pytest.raises(StorageError, match="process 77 on there is driving this study"):
            Owner(path)
        seen = holder(path)
        assert seen is not None
        assert str(seen) == "process 77 on there"
    finally:
        stop.set()
        thread.join()


@pytest.mark.usefixtures("quick")
def test_owner_whose_lease_was_taken_or_removed_stops(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    mine = Owner(path, thing="run")
    leave_lease(path, "another")
    with pytest.raises(StorageError, match="process 77 on there has taken over this run"):
        mine.check()
    mine.release()
    assert lease_of(path).exists(), "another's lease is not ours to remove"
    lease_of(path).unlink()
    with pytest.raises(StorageError, match="is gone"):
        mine.check()


def test_lease_that_another_taker_made_is_put_back(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    mine = Owner(path)
    dead = owner.Holder(token="somebody who died")
    with pytest.raises(StorageError, match="is driving this study"):
        mine._remove(dead)
    mine.check()
    mine.release()


def elsewhere(path: Path, name: str, seconds: float) -> subprocess.Popen[str]:
    command = [sys.executable, str(Path(__file__).with_name("elsewhere.py")), str(path), name, str(seconds)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)


def says(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline()


def test_two_machines_without_flock(tmp_path: Path) -> None:
    """Refused while the first lives; taken over once it is killed; and one that slept through that stops."""
    path = tmp_path / "lock"
    first = elsewhere(path, "one", 600)
    assert says(first) == "held\n"
    second = elsewhere(path, "two", 600)
    assert says(second) == "waits\n"
    assert f"lost: {tmp_path}: process {first.pid}" in says(second)
    assert second.wait() == 2
    first.send_signal(signal.SIGSTOP)
    third = elsewhere(path, "three", 600)
    assert [says(third), says(third)] == ["waits\n", "held\n"]
    first.send_signal(signal.SIGCONT)
    assert f"process {third.pid}" in says(first), "the sleeper says who has taken over"
    assert first.wait() == 2
    third.kill()
    third.wait()
    fourth = elsewhere(path, "four", 0)
    assert [says(fourth), says(fourth)] == ["waits\n", "held\n"]
    assert fourth.wait() == 0
    for process in (first, second, third, fourth):
        process.stdout.close()  # type: ignore[union-attr]


def test_full_disk_leaves_no_lease_behind(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10, hard))
    try:
        with pytest.raises(StorageError, match=r"lock: cannot be locked \(File too large\)"):
            Owner(path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert not lease_of(path).exists()
    Owner(path).release()
