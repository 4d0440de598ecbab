"""``autocomp watch`` beside a real search: while it runs, when it is killed, and on what is no run."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tiny_workload import Tiny

Run = Callable[..., subprocess.CompletedProcess[str]]
AUTOCOMP = (sys.executable, "-m", "autocomp")


def present(autocomp: Run, out: Path) -> dict[str, Any]:
    done = autocomp("watch", out, "--json")
    assert done.returncode == 0, done.stderr
    return dict(json.loads(done.stdout))


def test_watching_a_search_until_it_is_killed(tiny: Tiny, autocomp: Run, tmp_path: Path) -> None:
    out = tmp_path / "run"
    command = [*AUTOCOMP, "search", *tiny.arguments, "--budget", "7kB", "--preset", "quick", "--trials", "500"]
    search = subprocess.Popen([*command, "--out", str(out)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    try:
        until = time.monotonic() + 120
        while not (out / "cache" / "progress.jsonl").exists() and time.monotonic() < until:
            time.sleep(0.1)
        follower, other = (subprocess.Popen([*AUTOCOMP, "watch", str(out)], **pipes) for _ in range(2))
        while (seen := present(autocomp, out))["stage"] != "search" or seen["done"] < 2:
            assert time.monotonic() < until, seen
        assert (seen["state"], seen["total"], seen["jobs"], seen["process"]) == ("running", 500, 1, search.pid)
        assert seen["front"] >= 1
        assert seen["left_s"] > 0
        other.send_signal(signal.SIGINT)
        said = other.communicate(timeout=60)[1]
        assert other.returncode == 130
        assert said.splitlines() == ["error: interrupted; the run goes on without being watched"]
        assert search.poll() is None
    finally:
        search.kill()
        search.wait()
    said, errors = follower.communicate(timeout=60)
    assert (follower.returncode, errors) == (0, "")
    assert str(out) in said.splitlines()[0]
    assert "baselines: 3/3, done in" in said
    last = said.splitlines()[-1]
    assert last.startswith("killed: the driving process is gone; search: ")
    assert f"go on with: autocomp search {tiny.arguments[0]}" in last
    assert f"--trials 500 --out {out}" in last
    line = autocomp("watch", out, "-q")
    assert (line.returncode, line.stdout.splitlines()) == (0, [last])
    assert present(autocomp, out)["state"] == "killed"


@pytest.mark.parametrize("how", [(), ("--json",), ("-q",)])
def test_what_cannot_be_watched_is_one_line(autocomp: Run, tmp_path: Path, how: tuple[str, ...]) -> None:
    damaged = tmp_path / "damaged" / "cache"
    damaged.mkdir(parents=True)
    (damaged / "progress.jsonl").write_bytes(b"\x80\x81\n")
    for path, said in ((tmp_path / "nothing", "no run"), (tmp_path, "not a run folder"), (damaged.parent, "line 1")):
        done = autocomp("watch", path, *how)
        assert done.returncode == 2
        assert done.stdout == ""
        assert len(done.stderr.splitlines()) == 1
        assert said in done.stderr
