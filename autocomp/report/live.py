"""Live progress in the terminal: a checklist of stages, a bar, and the best so far.

On a terminal a display that redraws itself; into a file or a pipe plain lines, at most one every few
seconds; with ``quiet`` only notes. A terminal that goes away (closed, broken pipe) ends the display and
nothing else. The cursor is given back on any exit, Ctrl-C too.
"""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, TextIO

from autocomp.core.progress import Progress
from autocomp.report.board import Board, Stage, line
from autocomp.report.format import seconds

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.live import Live

SEARCH_STAGES = ("survey", "baselines", "search", "finish", "decide", "report")
"""The stages of ``autocomp search``, for the checklist."""

PLAIN_EVERY_S = 5.0
GONE = (OSError, ValueError)
"""What a terminal that went away raises: broken pipe, "I/O operation on closed file", unencodable text."""


class Quiet:
    """Notes only."""

    def __init__(self, file: TextIO) -> None:
        self.file: TextIO | None = file

    def stage(self, name: str, total: int | None = None, done: int = 0) -> None: ...

    def advance(self, steps: int = 1, **facts: Any) -> None: ...

    def note(self, text: str) -> None:
        self._write(text)

    def close(self, *, whole: bool = True) -> None: ...

    def _write(self, text: str) -> None:
        if self.file is None:
            return
        try:
            self.file.write(text + "\n")
            self.file.flush()
        except GONE:
            self.file = None


class Plain(Quiet):
    """Lines for files, pipes and logs.

    Args:
        file: where to.
        board: what is known.
        verbose: every step gets its line.
    """

    def __init__(self, file: TextIO, board: Board, *, verbose: bool) -> None:
        super().__init__(file)
        self.board, self.verbose = board, verbose
        self._said = 0.0

    def stage(self, name: str, total: int | None = None, done: int = 0) -> None:
        with self.board.lock:
            self._finish()
            self.board.begin(name, total, done)
            self._said = self.board.clock()
            known = "" if total is None else f" {total} steps" + (f", {done} done before" if done else "")
            self._write(f"{name}:{known or ' started'}")

    def advance(self, steps: int = 1, **facts: Any) -> None:
        with self.board.lock:
            stage, now = self.board.advance(steps, facts), self.board.clock()
            if stage is not None and (self.verbose or now - self._said >= PLAIN_EVERY_S):
                self._said = now
                self._write(line(stage, now, verbose=self.verbose))

    def close(self, *, whole: bool = True) -> None:
        with self.board.lock:
            self._finish(whole=whole)

    def _finish(self, *, whole: bool = True) -> None:
        stage = self.board.end(whole=whole)
        if stage is not None:
            self._write(line(stage, self.board.clock(), verbose=self.verbose))


class Drawn:
    """The display for a terminal.

    Args:
        console: rich's, on the terminal.
        board: what is known.
        verbose: all facts are shown.
    """

    def __init__(self, console: Console, board: Board, *, verbose: bool) -> None:
        from rich.live import Live
        from rich.spinner import Spinner

        self.console, self.board, self.verbose = console, board, verbose
        ascii_only = console.options.ascii_only
        self._done, self._cut, self._waiting = ("+", "x", "-") if ascii_only else ("✓", "✗", "·")
        self._spinner = Spinner("line" if ascii_only else "dots", style="cyan")
        self._live: Live | None = Live(
            get_renderable=self.render, console=console, refresh_per_second=5, redirect_stdout=False
        )

    def start(self) -> None:
        """Draw, and keep drawing in a thread."""
        self._guard(lambda live: live.start(refresh=True))

    def stage(self, name: str, total: int | None = None, done: int = 0) -> None:
        self.board.begin(name, total, done)

    def advance(self, steps: int = 1, **facts: Any) -> None:
        self.board.advance(steps, facts)

    def note(self, text: str) -> None:
        from rich.text import Text

        self._guard(lambda live: live.console.print(Text(text)))

    def close(self, *, whole: bool = True) -> None:
        """The running stage is over; so is the display."""
        self.board.end(whole=whole)
        self.stop()

    def stop(self) -> None:
        """End the display and give the cursor back."""
        self._guard(lambda live: live.stop())
        self._live = None

    def _guard(self, do: Callable[[Live], None]) -> None:
        if self._live is None:
            return
        try:
            do(self._live)
        except GONE:
            self._live = None

    def render(self) -> RenderableType:
        """The checklist, the running stage last with its bar."""
        from rich.console import Group
        from rich.table import Table

        with self.board.lock:
            now = self.board.clock()
            table = Table.grid(padding=(0, 1))
            for stage in self.board.stages:
                table.add_row(*self._row(stage, now))
            current = self.board.current
            if current is None:
                return table
            return Group(table, *self._bar(current, now))

    def _row(self, stage: Stage, now: float) -> list[RenderableType]:
        from rich.text import Text

        if stage.start is None:
            return [Text(self._waiting, style="dim"), Text(stage.name, style="dim")]
        spent = Text(seconds((now if stage.end is None else stage.end) - stage.start), style="dim")
        if stage.end is None:
            return [self._spinner, Text(stage.name, style="bold"), spent]
        mark = Text(self._done, style="green") if stage.whole else Text(self._cut, style="red")
        return [mark, Text(stage.name), spent, Text(", ".join(stage.words(verbose=self.verbose)), style="dim")]

    def _bar(self, stage: Stage, now: float) -> Iterator[RenderableType]:
        from rich.progress_bar import ProgressBar
        from rich.table import Table
        from rich.text import Text

        left = stage.left_s(now)
        if stage.total:
            row = Table.grid(padding=(0, 1))
            row.add_row(
                ProgressBar(total=stage.total, completed=min(stage.done, stage.total), width=32),
                Text("" if left is None else f"about {seconds(left)} left", style="dim"),
            )
            yield row
        words = stage.words(verbose=self.verbose)
        if words:
            yield Text(", ".join(words), style="cyan", overflow="ellipsis", no_wrap=True)


@contextlib.contextmanager
def terminal(
    quiet: bool = False,
    verbose: bool = False,
    file: TextIO | None = None,
    *,
    stages: Sequence[str] = (),
    clock: Callable[[], float] = time.monotonic,
) -> Iterator[Progress]:
    """Progress for a terminal, a pipe or nobody; pick by what ``file`` is.

    Args:
        quiet: only notes.
        verbose: every fact, and into a pipe every step.
        file: default: standard error at the time of the call.
        stages: names of the stages to expect (:data:`SEARCH_STAGES`), for the checklist.
        clock: seconds, monotonic.
    """
    out = sys.stderr if file is None else file
    receiver: Quiet | Drawn
    if quiet:
        receiver = Quiet(out)
    elif draws(out):
        receiver = Drawn(console_of(out), Board(stages, clock), verbose=verbose)
        receiver.start()
    else:
        receiver = Plain(out, Board(stages, clock), verbose=verbose)
    whole = False
    try:
        yield receiver
        whole = True
    finally:
        receiver.close(whole=whole)


def draws(file: TextIO) -> bool:
    """Whether ``file`` is a terminal that can move its cursor."""
    try:
        return file.isatty() and os.environ.get("TERM", "") not in ("", "dumb")
    except ValueError:
        return False


def console_of(file: TextIO) -> Console:
    """Rich's console on ``file``, which outlives its terminal."""
    from rich.console import Console

    class Lasting(Console):
        """Rich ends the program when its terminal is closed; a search goes on."""

        def on_broken_pipe(self) -> None:
            self.quiet = True

    return Lasting(file=file)
