"""What the terminal shows of a sweep."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from autocomp.report import format as fmt
from autocomp.sweeps.plan import Sweep
from autocomp.sweeps.preview import Preview
from autocomp.sweeps.rows import SweepRow
from autocomp.sweeps.runner import PAGE

if TYPE_CHECKING:
    from rich.console import RenderableType


def sweep_table(sweep: Sweep, rows: Sequence[SweepRow]) -> RenderableType:
    """One line a search, then why some have no answer, then where the page is."""
    from rich.console import Group
    from rich.text import Text

    left = ("model", "target", "budget", "seed", "state")
    numbers = ("file", "search", "test", "drop", "latency", "evaluations", "engines", "time")
    lines = [(*_asked(row), *_found(row)) for row in rows]
    table = _table(f"{sweep.folder.name}: {len(rows)} searches", left, numbers, lines)
    reasons = [f"{row.name}: {row.reason}" for row in rows if row.reason]
    return Group(table, *(Text(line) for line in (*reasons, f"page: {sweep.folder / PAGE}")))


def _asked(row: SweepRow) -> tuple[str, ...]:
    return (row.model, row.target, row.budget or "none", str(row.seed), row.state)


def _found(row: SweepRow) -> tuple[str, ...]:
    predicted = " predicted" if row.latency_source == "predicted" else ""
    return (
        fmt.size(row.file_bytes),
        fmt.score(row.score_search, row.metric),
        fmt.score(row.score_test, row.metric),
        fmt.drop(row.drop, row.metric),
        f"{fmt.latency(row.latency_ms)}{predicted}",
        fmt.count(row.evaluations),
        fmt.count(row.engine_builds),
        fmt.NONE if row.seconds is None else fmt.seconds(row.seconds),
    )


def preview_table(sweep: Sweep, lines: Sequence[Preview]) -> RenderableType:
    """What would run, and how long that took before."""
    from rich.console import Group
    from rich.text import Text

    cells = [
        (
            line.search,
            line.state,
            f"{min(line.done, line.trials)}/{line.trials}",
            line.prices or fmt.NONE,
            str(line.engines) if line.engines else fmt.NONE,
            "unknown" if line.seconds is None else "–" if line.state == "finished" else fmt.seconds(line.seconds),
        )
        for line in lines
    ]
    table = _table(
        f"{sweep.folder.name}: {len(lines)} searches, nothing is run",
        ("search", "state"),
        ("trials done", "prices in the cache", "engines in the cache", "estimated time"),
        cells,
    )
    return Group(table, Text(total(lines)))


def total(lines: Sequence[Preview]) -> str:
    """ "3 of 12 finished; about 14 min 20 s for 6, unknown for 3"."""
    finished = sum(line.state == "finished" for line in lines)
    left = [line for line in lines if line.state != "finished"]
    told = [line.seconds for line in left if line.seconds is not None]
    words = [f"about {fmt.seconds(sum(told))} for {len(told)}"] if told else []
    words += [f"unknown for {len(left) - len(told)}"] if len(told) < len(left) else []
    return f"{finished} of {len(lines)} finished" + (f"; {', '.join(words)}" if words else "")


def _table(title: str, left: Sequence[str], right: Sequence[str], lines: Sequence[Sequence[str]]) -> RenderableType:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(title=Text(title), box=box.SIMPLE_HEAD, title_justify="left", title_style="bold", pad_edge=False)
    for name in left:
        table.add_column(name, overflow="fold")
    for name in right:
        table.add_column(name, justify="right")
    for line in lines:
        table.add_row(*map(Text, line))
    return table
