"""What the terminal shows of a sweep."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from autocomp.report import format as fmt
from autocomp.sweeps.plan import Sweep
from autocomp.sweeps.preview import Preview
from autocomp.sweeps.rows import SweepRow
from autocomp.sweeps.runner import PAGE, TABLE

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderableType
    from rich.table import Table


def sweep_table(sweep: Sweep, rows: Sequence[SweepRow]) -> RenderableType:
    """One line a search, then why some have no answer, then where the page is."""
    from rich.console import Group
    from rich.text import Text

    columns = {
        "model": [row.model for row in rows],
        "target": [row.target for row in rows],
        "budget": [row.budget or "none" for row in rows],
        "seed": [str(row.seed) for row in rows],
        "state": [row.state for row in rows],
        "file": [fmt.size(row.file_bytes) for row in rows],
        "search": [fmt.score(row.score_search, row.metric) for row in rows],
        "test": [fmt.score(row.score_test, row.metric) for row in rows],
        "drop": [fmt.drop(row.drop, row.metric) for row in rows],
        "latency": [_latency(row) for row in rows],
        "evaluations": [fmt.count(row.evaluations) for row in rows],
        "engines": [fmt.count(row.engine_builds) for row in rows],
        "time": [fmt.NONE if row.seconds is None else fmt.seconds(row.seconds) for row in rows],
    }
    spare = ("engines", "evaluations", "search", "time", "drop", "state")
    table = Fitting(f"{sweep.folder.name}: {len(rows)} searches", columns, first_number="file", spare=spare)
    reasons = [f"{row.name}: {row.reason}" for row in rows if row.reason]
    return Group(table, *(Text(line) for line in (*reasons, f"page: {sweep.folder / PAGE}")))


def _latency(row: SweepRow) -> str:
    return fmt.latency(row.latency_ms) + (" predicted" if row.latency_source == "predicted" else "")


def preview_table(sweep: Sweep, lines: Sequence[Preview]) -> RenderableType:
    """What would run, and how long that took before."""
    from rich.console import Group
    from rich.text import Text

    columns = {
        "search": [line.search for line in lines],
        "state": [line.state for line in lines],
        "trials": [f"{min(line.done, line.trials)}/{line.trials}" for line in lines],
        "prices": [line.prices or fmt.NONE for line in lines],
        "engines": [str(line.engines) if line.engines else fmt.NONE for line in lines],
        "time": [_time(line) for line in lines],
    }
    title = f"{sweep.folder.name}: {len(lines)} searches, nothing is run; prices and engines are those in the cache"
    return Group(Fitting(title, columns, first_number="trials"), Text(total(lines)))


def _time(line: Preview) -> str:
    if line.state == "finished":
        return fmt.NONE
    return "unknown" if line.seconds is None else f"about {fmt.seconds(line.seconds)}"


def total(lines: Sequence[Preview]) -> str:
    """ "3 of 12 finished; about 14 min 20 s for 6, unknown for 3"."""
    finished = sum(line.state == "finished" for line in lines)
    left = [line for line in lines if line.state != "finished"]
    told = [line.seconds for line in left if line.seconds is not None]
    words = [f"about {fmt.seconds(sum(told))} for {len(told)}"] if told else []
    words += [f"unknown for {len(left) - len(told)}"] if len(told) < len(left) else []
    return f"{finished} of {len(lines)} finished" + (f"; {', '.join(words)}" if words else "")


class Fitting:
    """A table that leaves columns out where the terminal is too narrow for all; numbers are never cut.

    Args:
        title: above the table.
        columns: head → cells.
        first_number: this column and those after it stand to the right.
        spare: columns that may be left out, the first one first.
    """

    def __init__(
        self, title: str, columns: dict[str, list[str]], *, first_number: str, spare: tuple[str, ...] = ()
    ) -> None:
        self._title, self._columns, self._first_number, self._spare = title, columns, first_number, spare

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[RenderableType]:
        from rich.measure import Measurement
        from rich.text import Text

        wide = options.update(max_width=10_000)
        for count in range(len(self._spare) + 1):
            table = self._table(self._spare[:count])
            if Measurement.get(console, wide, table).maximum <= options.max_width:
                break
        yield table
        if count:
            yield Text(f"left out for want of room: {', '.join(self._spare[:count])} (all are in {TABLE})")

    def _table(self, without: Sequence[str]) -> Table:
        from rich import box
        from rich.table import Table
        from rich.text import Text

        table = Table(box=box.SIMPLE_HEAD, title_justify="left", title_style="bold", pad_edge=False)
        table.title = Text(self._title)
        heads = list(self._columns)
        shown = [head for head in heads if head not in without]
        for head in shown:
            number = heads.index(head) >= heads.index(self._first_number)
            table.add_column(head, justify="right" if number else "left", no_wrap=number, overflow="fold")
        for cells in zip(*(self._columns[head] for head in shown), strict=True):
            table.add_row(*map(Text, cells))
        return table
