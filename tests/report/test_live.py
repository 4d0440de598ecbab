"""Progress: what is said, how often, and that it never gets in the way."""

from __future__ import annotations

import io
import os
import pty
import subprocess
import sys
import threading

import pytest

from autocomp.report.board import Board, Stage, line
from autocomp.report.live import PLAIN_EVERY_S, SEARCH_STAGES, terminal


class Clock:
    """Time that passes when told to."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_plain_lines_are_few_and_end_each_stage() -> None:
    clock, out = Clock(), io.StringIO()
    with terminal(file=out, clock=clock) as progress:
        progress.stage("survey", total=100)
        for _ in range(100):
            clock.now += 0.4
            progress.advance()
        progress.note("conv1 stays float32")
        progress.stage("search", total=32, done=20)
        clock.now += 1
        progress.advance(12, failures=2, front=7, best="3.9 MB 98.2 %")
    lines = out.getvalue().splitlines()
    assert lines[0] == "survey: 100 steps"
    assert lines[-2] == "search: 32 steps, 20 done before"
    assert lines[-1] == "search: 32/32, 2 failed, 7 on the front, best 3.9 MB 98.2 %, done in 1.0 s"
    assert "survey: 100/100, done in 40 s" in lines
    assert "conv1 stays float32" in lines
    assert len([x for x in lines if x.startswith("survey")]) <= 2 + 40 / PLAIN_EVERY_S


def test_verbose_says_every_step() -> None:
    out = io.StringIO()
    with terminal(verbose=True, file=out, clock=Clock()) as progress:
        progress.stage("search", total=3)
        for _ in range(3):
            progress.advance()
    assert len(out.getvalue().splitlines()) == 5


def test_quiet_says_notes_only() -> None:
    out = io.StringIO()
    with terminal(quiet=True, file=out) as progress:
        progress.stage("search", total=3)
        progress.advance(3, best="x")
        progress.note("the study was resumed")
    assert out.getvalue() == "the study was resumed\n"


def test_cut_off_stage_is_not_called_done() -> None:
    out = io.StringIO()

    def cut_off() -> None:
        with terminal(file=out, clock=Clock()) as progress:
            progress.stage("search", total=3)
            progress.advance()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        cut_off()
    assert out.getvalue().splitlines()[-1] == "search: 1/3, stopped after 0.0 s"


@pytest.mark.parametrize("quiet", [True, False])
def test_closed_file_is_no_error(quiet: bool) -> None:
    out = io.StringIO()
    with terminal(quiet=quiet, file=out) as progress:
        out.close()
        progress.stage("search", total=3)
        progress.advance()
        progress.note("x")


def test_unencodable_text_is_no_error() -> None:
    out = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    with terminal(file=out) as progress:
        progress.note("größer")
        progress.stage("über", total=1)


def test_steps_before_any_stage_are_no_error() -> None:
    with terminal(file=io.StringIO()) as progress:
        progress.advance(front=1)


def test_failures_are_told_by_kind() -> None:
    stage = Stage("search", facts={"failures": {"latency/timeout": 2, "build/oom": 1}, "front": 3})
    assert stage.words(verbose=False) == ["3 failed (2 latency/timeout, 1 build/oom)", "3 on the front"]
    assert Stage("search", facts={"failures": {}}).words(verbose=False) == []


def test_time_left_is_smooth_and_ignores_earlier_runs() -> None:
    clock = Clock()
    board = Board(clock=clock)
    stage = board.begin("search", 100, 50)
    assert stage.left_s(clock.now) is None, "nothing was timed yet"
    for _ in range(10):
        clock.now += 2
        board.advance(1, {})
    assert stage.left_s(clock.now) == pytest.approx(2 * 40)
    clock.now += 20
    board.advance(1, {})
    left = stage.left_s(clock.now)
    assert left is not None
    assert 2 * 39 < left < 20 * 39 / 4, "one slow step moves the estimate a little"


def test_unexpected_stage_comes_before_those_that_wait() -> None:
    board = Board(SEARCH_STAGES, Clock())
    board.begin("training resnet18", 10, 0)
    board.begin("survey", None, 0)
    assert [s.name for s in board.stages][:2] == ["training resnet18", "survey"]
    assert len(board.stages) == len(SEARCH_STAGES) + 1


def test_line_without_total() -> None:
    assert line(Stage("load", start=0.0, done=3), 2.0) == "load: 3, 2.0 s"


def test_threads_lose_no_step() -> None:
    board = Board()
    stage = board.begin("search", 4000, 0)
    threads = [threading.Thread(target=lambda: [board.advance(1, {}) for _ in range(1000)]) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert stage.done == 4000


SCRIPT = """
import time
from autocomp.report.live import SEARCH_STAGES, terminal
with terminal(stages=SEARCH_STAGES) as progress:
    progress.stage("survey", total=2)
    progress.advance(2)
    progress.stage("search", total=30)
    progress.note("a note [kept]")
    for i in range(3):
        time.sleep(0.15)
        progress.advance(front=7, best="3.9 MB")
    END
"""


@pytest.mark.parametrize("end", ["pass", "raise KeyboardInterrupt"])
def test_display_on_a_terminal_gives_the_cursor_back(end: str) -> None:
    leader, follower = pty.openpty()
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "100", "LINES": "40"}
    command = [sys.executable, "-c", SCRIPT.replace("END", end)]
    process = subprocess.Popen(command, stderr=follower, stdout=follower, stdin=follower, env=environment)
    os.close(follower)
    out = b""
    while True:
        try:
            chunk = os.read(leader, 4096)
        except OSError:  # Linux says EIO when the other side is closed
            break
        if not chunk:
            break
        out += chunk
    os.close(leader)
    assert (process.wait(timeout=30) == 0) == (end == "pass")
    shown = out.decode()
    assert "\x1b[?25l" in shown, "cursor hidden"
    assert shown.rindex("\x1b[?25h") > shown.rindex("\x1b[?25l"), "and shown again"
    for text in ("survey", "finish", "3/30", "7 on the front", "best 3.9 MB", "a note [kept]"):
        assert text in shown
    assert ("✗" in shown) == (end != "pass")
