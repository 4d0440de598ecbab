"""A run seen from outside: what is said of it while it runs, and once it ended in each way."""

from __future__ import annotations

import contextlib
import io
import os
import pty
import re
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from autocomp.core.progress import Silent
from autocomp.core.progress_log import ProgressLog, logged
from autocomp.core.run_folder import RunFolder
from autocomp.core.settings import Settings
from autocomp.errors import CorruptFileError, StorageError
from autocomp.report.watch import about, follow, verdict, view

STAGES = ("survey", "search", "report")


def begin(folder: Path) -> tuple[RunFolder, Settings]:
    settings = Settings(out=folder, jobs=2)
    run = RunFolder(folder).open(settings)
    run.check_identity(settings.identity())
    return run, settings


def work(progress: Any) -> None:
    progress.stage("survey", total=2)
    progress.advance(2)
    progress.note("head stays float32")
    progress.stage("search", total=8, done=2)
    progress.advance(1, failures={"latency/timeout": 1, "build/oom": 2}, front=4, best="3.9 MB")


def left_by_a_kill(folder: Path) -> RunFolder:
    """A run whose process died without a word: its lock is free, and its file has no end."""
    run, settings = begin(folder)
    with logged(run, settings, Silent(), STAGES) as progress:
        work(progress)
    run.close()
    lines = run.progress.read_text().splitlines(keepends=True)
    run.progress.write_text("".join(lines[:-1]))
    return RunFolder(folder)


def test_running(tmp_path: Path) -> None:
    run, settings = begin(tmp_path / "run")
    log = ProgressLog(Silent(), run.progress, about_of(settings))
    work(log)
    until = time.monotonic() + 30
    while (seen := view(RunFolder(tmp_path / "run"))).facts == {} and time.monotonic() < until:
        time.sleep(0.05)
    assert seen.state == "running"
    assert seen.board.current is not None
    said = seen.to_json()
    assert (said["stage"], said["done"], said["total"], said["error"]) == ("search", 3, 8, None)
    assert (said["front"], said["best"]) == (4, "3.9 MB")
    assert said["failures"] == {"latency/timeout": 1, "build/oom": 2}
    assert said["left_s"] >= 0
    assert [s["state"] for s in said["stages"]] == ["done", "running", "waiting"]
    assert said["notes"] == ["head stays float32"]
    assert list(about(seen)) == [f"{tmp_path / 'run'}: process 1 on h, 2 local processes"]
    line = verdict(seen)
    assert line.startswith("running: search: 3/8, 3 failed (1 latency/timeout, 2 build/oom), 4 on the front, best")
    log.close("finished")
    run.close()


def about_of(settings: Settings) -> dict[str, Any]:
    return {
        "command": "autocomp search", "folder": "/", "host": "h", "process": 1, "jobs": settings.jobs, "cluster": None,
        "stages": list(STAGES),
    }  # fmt: skip


def test_finished(tmp_path: Path) -> None:
    run, settings = begin(tmp_path / "run")
    with logged(run, settings, Silent(), STAGES) as progress:
        work(progress)
    (run.path / "report.html").touch()
    seen = view(run)
    run.close()
    assert seen.state == "finished"
    assert verdict(seen) == (
        f"finished: best 3.9 MB, 4 on the front, 3 failed (1 latency/timeout, 2 build/oom), {run.path / 'report.html'}"
    )
    assert [s.whole for s in seen.board.stages if s.end is not None] == [True, True]


def test_killed_says_what_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["/usr/bin/autocomp", "search", "--budget", "4MB"])
    monkeypatch.chdir(tmp_path)
    run = left_by_a_kill(tmp_path / "run")
    seen = view(run)
    assert seen.state == "killed"
    assert verdict(seen).startswith("killed: the driving process is gone; search: 3/8")
    assert verdict(seen).endswith("; go on with: autocomp search --budget 4MB")
    monkeypatch.chdir("/")
    assert verdict(seen).endswith(f"; go on with: cd {tmp_path} && autocomp search --budget 4MB")
    assert [s["state"] for s in seen.to_json()["stages"]] == ["done", "cut", "waiting"]


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (KeyboardInterrupt(), r"^interrupted; search: 3/8.*go on with: "),
        (StorageError("the disk is full"), r"^failed in search: 3/8.*; the disk is full$"),
    ],
)
def test_interrupted_and_failed(tmp_path: Path, error: BaseException, said: str) -> None:
    run, settings = begin(tmp_path / "run")

    def block() -> None:
        with logged(run, settings, Silent(), STAGES) as progress:
            work(progress)
            raise error

    with pytest.raises(type(error)):
        block()
    run.close()
    assert re.search(said, verdict(view(run)))


def test_following_ends_with_the_run_and_says_each_thing_once(tmp_path: Path) -> None:
    run, settings = begin(tmp_path / "run")
    go_on, out = threading.Event(), io.StringIO()

    def drive() -> None:
        with logged(run, settings, Silent(), STAGES) as progress:
            work(progress)
            go_on.wait(30)
            progress.advance(5, best="3.8 MB")
            progress.stage("report")
            progress.note("smaller, not faster")
        run.close()

    thread = threading.Thread(target=drive)
    thread.start()
    while not run.progress.exists():
        time.sleep(0.01)
    threading.Timer(1.0, go_on.set).start()
    seen = follow(RunFolder(run.path), out, every_s=0.05)
    thread.join()
    assert seen.state == "finished"
    lines = out.getvalue().splitlines()
    assert sum(line.startswith("survey: 2/2, done in") for line in lines) == 1
    assert sum(line.startswith("search: 8/8") and "best 3.8 MB" in line for line in lines) == 1
    assert lines.count("head stays float32") == lines.count("smaller, not faster") == 1


def test_what_cannot_be_watched(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match=r"no run at .*nothing"):
        view(RunFolder(tmp_path / "nothing"))
    with pytest.raises(StorageError, match="not a run folder"):
        view(RunFolder(tmp_path))
    run, _ = begin(tmp_path / "run")
    run.close()
    with pytest.raises(StorageError, match="says nothing of its progress"):
        view(run)
    run.progress.write_text("\0\n")
    with pytest.raises(CorruptFileError, match="line 1"):
        view(run)
    run.progress.write_text("")
    with pytest.raises(CorruptFileError, match="empty"):
        view(run)


def test_display_on_a_terminal(tmp_path: Path) -> None:
    run, settings = begin(tmp_path / "run")
    with logged(run, settings, Silent(), STAGES) as progress:
        work(progress)
    run.close()
    leader, follower = pty.openpty()
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "100", "LINES": "40"}
    command = [sys.executable, "-m", "autocomp", "watch", str(run.path)]
    process = subprocess.Popen(command, stdout=follower, stderr=follower, stdin=follower, env=environment)
    os.close(follower)
    shown = b""
    with contextlib.suppress(OSError):  # Linux says EIO when the other side is closed
        while chunk := os.read(leader, 4096):
            shown += chunk
    os.close(leader)
    assert process.wait(timeout=30) == 0
    text = shown.decode()
    assert text.rindex("\x1b[?25h") > text.rindex("\x1b[?25l"), "the cursor is given back"
    for part in ("survey", "✓", "3/8", "best 3.9 MB", "head stays float32", "finished: "):
        assert part in text
