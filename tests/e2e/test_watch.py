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
PATIENCE_S = 400.0


def present(autocomp: Run, out: Path) -> dict[str, Any]:
    done = autocomp("watch", out, "--json")
    assert done.returncode == 0, done.stderr
    return dict(json.loads(done.stdout))


def start(*arguments: object) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "autocomp", *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_watching_a_search_until_it_is_killed(tiny: Tiny, autocomp: Run, tmp_path: Path) -> None:
    out = tmp_path / "run"
    words = ["search", *tiny.arguments, "--budget", "7kB", "--preset", "quick", "--trials", "500", "--out", out, "-q"]
    started = [search := start(*words)]
    try:
        until = time.monotonic() + PATIENCE_S
        while not (out / "cache" / "progress.jsonl").exists():
            assert time.monotonic() < until
            time.sleep(0.1)
        started += [follower := start("watch", out), other := start("watch", out)]
        while (seen := present(autocomp, out))["stage"] != "search" or seen["done"] < 2:
            assert time.monotonic() < until, seen
            time.sleep(0.5)
        assert (seen["state"], seen["total"], seen["jobs"], seen["process"]) == ("running", 500, None, search.pid)
        assert seen["front"] >= 1
        assert seen["left_s"] > 0
        other.send_signal(signal.SIGINT)
        said = other.communicate(timeout=PATIENCE_S)[1]
        assert other.returncode == 130
        assert said.splitlines() == ["error: interrupted; the run goes on without being watched"]
        assert search.poll() is None
        search.kill()
        said, errors = follower.communicate(timeout=PATIENCE_S)
        assert (follower.returncode, errors) == (0, "")
    finally:
        for process in started:
            process.kill()
            process.communicate()
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
