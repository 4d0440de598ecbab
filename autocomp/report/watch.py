"""A run seen from outside: read from its folder, by any process on any machine that sees it."""

from __future__ import annotations

import shlex
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TextIO

from autocomp.core.progress_log import Record, read_progress
from autocomp.core.run_folder import RunFolder
from autocomp.errors import StorageError
from autocomp.report import live
from autocomp.report.board import FACTS, Board, Stage, line, spoken

EVERY_S = 1.0
"""How often a run is looked at."""


@dataclass(frozen=True, kw_only=True)
class View:
    """What is known of a run at one moment.

    Attributes:
        run: its folder.
        state: "running", "finished", "interrupted" (Ctrl-C), "failed" (an error) or "killed" (its process is gone
            without a word).
        board: stages; times are seconds since 1970 by the clock of the driving machine.
        notes: (time, text) of warnings and answers, oldest first.
        start: what the driving process said of itself.
        heard_at_s: time of its last word.
        text: why it failed.
    """

    run: Path
    state: str
    board: Board
    notes: tuple[tuple[float, str], ...]
    start: Record
    heard_at_s: float
    text: str = ""

    @property
    def stage(self) -> Stage | None:
        """The stage that runs, or the last one there was."""
        begun = [s for s in self.board.stages if s.start is not None]
        return self.board.current or (begun[-1] if begun else None)

    @property
    def facts(self) -> dict[str, Any]:
        """The newest value of each fact that any stage told."""
        return {key: value for stage in self.board.stages for key, value in stage.facts.items()}

    def to_json(self) -> dict[str, Any]:
        """For ``autocomp watch --json``."""
        now, stage = self.board.clock(), self.stage
        running = self.board.current
        return {
            "run": str(self.run),
            "state": self.state,
            "stage": None if stage is None else stage.name,
            "done": None if stage is None else stage.done,
            "total": None if stage is None else stage.total,
            "left_s": None if running is None else running.left_s(now),
            "failures": self.facts.get("failures", {}),
            "front": self.facts.get("front"),
            "best": self.facts.get("best"),
            "facts": self.facts,
            "jobs": self.start["jobs"],
            "cluster": self.start["cluster"],
            "host": self.start["host"],
            "process": self.start["process"],
            "started_at_s": self.start["at_s"],
            "heard_at_s": self.heard_at_s,
            "stages": [_stage(s, now) for s in self.board.stages],
            "notes": [text for _, text in self.notes],
            "error": self.text or None,
            "command": self.start["command"],
            "folder": self.start["folder"],
        }


def view(run: RunFolder) -> View:
    """The run as it is now.

    Raises:
        StorageError: there is no run, or it never said anything of its progress, or it cannot be read.
        CorruptFileError: its progress file is damaged.
    """
    try:
        records = read_progress(run.progress)
    except FileNotFoundError:
        RunFolder.existing(run.path)  # names what is missing
        raise StorageError(f"{run.path} says nothing of its progress; run its search command again") from None
    end = next((r for r in records if r["is"] == "end"), None)
    if end is not None:
        state = str(end["how"])
    elif run.driver() is not None:
        state = "running"
    else:
        records = read_progress(run.progress)  # it may have ended between the two looks
        end = next((r for r in records if r["is"] == "end"), None)
        state = "killed" if end is None else str(end["how"])
    return View(
        run=run.path,
        state=state,
        board=_board(records, state),
        notes=tuple((r["at_s"], r["text"]) for r in records if r["is"] == "note"),
        start=records[0],
        heard_at_s=records[-1]["at_s"],
        text="" if end is None else end["text"],
    )


def follow(run: RunFolder, out: TextIO, *, verbose: bool = False, every_s: float = EVERY_S) -> View:
    """Draw the run's progress until it ends; returns the last view.

    Args:
        run: a run folder.
        out: a terminal is drawn on; a pipe or file gets lines.
        verbose: every fact.
        every_s: seconds between two looks.
    """
    seen = view(run)
    screen: _Screen = _Drawn(out, seen, verbose) if live.draws(out) else _Lines(out, verbose)
    try:
        for text in about(seen):
            screen.note(text)
        said: set[tuple[float, str]] = set()
        while True:
            for note in seen.notes:
                if note not in said:
                    said.add(note)
                    screen.note(note[1])
            screen.show(seen)
            if seen.state != "running":
                return seen
            time.sleep(every_s)
            seen = view(run)
    finally:
        screen.stop()


def about(seen: View) -> Iterator[str]:
    """Which run this is, and who drives it."""
    jobs, cluster = seen.start["jobs"], seen.start["cluster"]
    where = f"process {seen.start['process']} on {seen.start['host']}"
    if cluster is not None:
        where += f", Ray cluster {cluster}"
    elif jobs not in (None, 1):
        where += f", {jobs} local processes"
    yield f"{seen.run}: {where}"


def verdict(seen: View) -> str:
    """One line: how it stands, or how it ended and what goes on from there."""
    stage = seen.stage
    doing = "starting" if stage is None else line(stage, seen.board.clock())
    if seen.state == "running":
        return f"running: {doing}"
    if seen.state == "finished":
        found = spoken({key: seen.facts.get(key) for key in FACTS})
        page = seen.run / "report.html"
        return f"finished: {', '.join([*found, str(page)] if page.is_file() else found)}"
    if seen.state == "failed":
        return f"failed in {doing}; {seen.text}"
    ended = "interrupted" if seen.state == "interrupted" else "killed: the driving process is gone"
    return f"{ended}; {doing}; go on with: {go_on(seen)}"


def go_on(seen: View) -> str:
    """The command that goes on with the run, to be given in this folder."""
    command, folder = seen.start["command"], seen.start["folder"]
    return str(command) if folder in ("", str(Path.cwd())) else f"cd {shlex.quote(folder)} && {command}"


def _board(records: list[Record], state: str) -> Board:
    """The stages as the records tell them."""
    now = float(records[0]["at_s"])

    def clock() -> float:
        return now

    board = Board(records[0]["stages"], clock)
    for record in records:
        now = float(record["at_s"])
        if record["is"] == "stage":
            board.begin(record["name"], record["total"], record["done"])
        elif record["is"] == "advance" and board.current is not None:
            board.advance(record["done"] - board.current.done, record["facts"])
    if state != "running":
        board.end(whole=state == "finished")
    else:
        board.clock = time.time
    return board


def _stage(stage: Stage, now: float) -> dict[str, Any]:
    spent = None if stage.start is None else (now if stage.end is None else stage.end) - stage.start
    state = "waiting" if stage.start is None else "running" if stage.end is None else "done" if stage.whole else "cut"
    return {"name": stage.name, "state": state, "done": stage.done, "total": stage.total, "seconds": spent}


class _Screen(Protocol):
    def note(self, text: str) -> None: ...

    def show(self, seen: View) -> None: ...

    def stop(self) -> None: ...


class _Drawn(live.Drawn):
    """The display of a search, of another process's board."""

    def __init__(self, out: TextIO, seen: View, verbose: bool) -> None:
        super().__init__(live.console_of(out), seen.board, verbose=verbose)
        self.start()

    def show(self, seen: View) -> None:
        self.board = seen.board


class _Lines:
    """Lines for a pipe: each stage once it has ended, the running one every few seconds."""

    def __init__(self, out: TextIO, verbose: bool) -> None:
        self._out, self._verbose = out, verbose
        self._ended: set[int] = set()
        self._said = 0.0

    def note(self, text: str) -> None:
        print(text, file=self._out, flush=True)

    def show(self, seen: View) -> None:
        now = seen.board.clock()
        for place, stage in enumerate(seen.board.stages):
            if stage.end is not None and place not in self._ended:
                self._ended.add(place)
                self.note(line(stage, now, verbose=self._verbose))
        current = seen.board.current
        if current is not None and now - self._said >= live.PLAIN_EVERY_S:
            self._said = now
            self.note(line(current, now, verbose=self._verbose))

    def stop(self) -> None: ...
