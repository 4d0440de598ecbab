"""What the terminal shows at the end: short tables and the answer in one sentence."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from autocomp.core.result import RunSummary
from autocomp.core.row import Row
from autocomp.report import format as fmt

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table


class CheckLike(Protocol):
    """One claim that was measured again."""

    @property
    def name(self) -> str: ...
    @property
    def claimed(self) -> str: ...
    @property
    def measured(self) -> str: ...
    @property
    def ok(self) -> bool: ...


def summary_table(summary: RunSummary) -> RenderableType:
    """The answer beside float32 and the baselines, then where the files are and what to know."""
    from rich.console import Group
    from rich.text import Text

    table = _table(f"{summary.model} on {summary.data}, {summary.target}")
    columns = [
        "",
        "file",
        "smaller",
        f"{summary.metric['name']}",
        "95 %",
        fmt.latency_title(summary),
        "meets constraints",
    ]
    rows = [row for row in (summary.best, summary.float32, *summary.baselines.values()) if row is not None]
    counted = any(row.energy_mj is not None for row in rows)
    if counted:
        columns.insert(-1, "energy")
    for number, name in enumerate(columns):
        last = number == len(columns) - 1
        table.add_column(name, justify="left" if last or not number else "right", no_wrap=not last)
    for row in rows:
        table.add_row(*_cells(row, summary, energy=counted), style="bold green" if row is summary.best else "")
    return Group(table, *(Text(line) for line in closing_lines(summary)))


def closing_lines(summary: RunSummary) -> list[str]:
    """The answer in one sentence, notes, where files are; when infeasible, the nearest miss."""
    lines = [fmt.answer(summary)]
    notes = [*summary.notes, *(summary.best.notes if summary.best else ())]
    lines += [f"note: {note}" for note in dict.fromkeys(notes)]
    if summary.failures:
        failed = ", ".join(f"{count} × {kind}" for kind, count in summary.failures.items())
        lines.append(f"failed evaluations: {failed} (see {Path(summary.run) / 'log.txt'})")
    front, feasible = len(summary.pareto), sum(r.feasible for r in summary.pareto)
    lines.append(f"{summary.evaluations} evaluations, {front} on the front, {feasible} of them meet the constraints")
    if summary.best is not None and summary.best.file:
        lines.append(f"file:   {summary.best.file}")
    lines.append(f"report: {Path(summary.run) / 'report.html'}")
    return lines


def survey_table(rows: Sequence[Mapping[str, Any]], title: str = "Prices of every layer and choice") -> Table:
    """The sensitivity table: one line a (unit, choice), columns as the keys of the first row.

    Args:
        rows: mappings with equal keys; numbers are shown by the unit their key ends in.
        title: above the table.
    """
    table = _table(title)
    keys = list(rows[0]) if rows else []
    for key in keys:
        numeric = any(isinstance(row.get(key), int | float) for row in rows)
        table.add_column(key.replace("_", " "), justify="right" if numeric else "left", no_wrap=True)
    previous: object = None
    for row in rows:
        first = row.get(keys[0])
        if previous is not None and first != previous:
            table.add_section()
        table.add_row(*("" if k == keys[0] and first == previous else _value(k, row.get(k)) for k in keys))
        previous = first
    return table


def checks_table(checks: Iterable[CheckLike]) -> Table:
    """What was claimed, what was measured again, and whether it holds."""
    table = _table("Claims, measured again")
    for name in ("claim", "claimed", "measured", "holds"):
        table.add_column(name, justify="right" if name in ("claimed", "measured") else "left")
    for check in checks:
        row = (_plain(check.name), _plain(check.claimed), _plain(check.measured), "yes" if check.ok else "NO")
        table.add_row(*row, style="" if check.ok else "bold red")
    return table


def _table(title: str) -> Table:
    from rich import box
    from rich.table import Table

    return Table(title=_plain(title), box=box.SIMPLE_HEAD, title_justify="left", title_style="bold", pad_edge=False)


def _plain(text: object) -> str:
    """``text`` with rich's own markup taken literally: layer names may hold brackets."""
    from rich.markup import escape

    return escape(str(text))


def _cells(row: Row, summary: RunSummary, *, energy: bool) -> list[str]:
    shown = row.score_test if row.score_test is not None else row.score_search
    return [
        _plain(cell)
        for cell in (
            f"best ({row.name})" if row is summary.best and row.name != "best" else row.name,
            fmt.size(row.file_bytes),
            fmt.times(summary.float32.file_bytes, row.file_bytes),
            fmt.score(shown, summary.metric),
            fmt.score_interval(row.score_test_ci95, summary.metric) or fmt.NONE,
            fmt.latency(row.latency_ms),
            *([fmt.energy(row.energy_mj)] if energy else []),
            "yes" if row.feasible else "no",
        )
    ]


def _value(key: str, value: object) -> str:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return _plain(fmt.NONE if value is None else value)
    if key.endswith("bytes"):
        return fmt.count(value)
    if key in ("parameters", "macs"):
        return fmt.large(value)
    if key.endswith("_s"):
        return fmt.latency(1000 * value)
    return fmt.count(value) if isinstance(value, int) else fmt.loss(value)
