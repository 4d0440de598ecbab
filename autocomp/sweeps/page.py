"""sweep.html: the fronts of all searches, and the table, in one page that needs nothing but itself."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from typing import Any

from autocomp.core.result import RunSummary
from autocomp.core.row import Row
from autocomp.report import assets
from autocomp.report import format as fmt
from autocomp.report.html import point
from autocomp.sweeps.plan import Sweep
from autocomp.sweeps.rows import SweepRow


def page(
    sweep: Sweep, rows: Sequence[SweepRow], summaries: Mapping[str, RunSummary], *, plotly_inline: bool = True
) -> str:
    """The page as text.

    Args:
        sweep: what was asked.
        rows: of all its searches.
        summaries: of the finished ones, by name.
        plotly_inline: False leaves plotly.js out; the page is then the table alone.
    """
    data = chart_data(rows, summaries)
    return assets.render(
        "sweeps/page",
        data,
        plotly_inline=plotly_inline,
        title=sweep.folder.name,
        sweep=sweep,
        rows=rows,
        fmt=fmt,
        models=data["models"],
        states={state: sum(r.state == state for r in rows) for state in dict.fromkeys(r.state for r in rows)},
        version=next((s.versions.get("autocomp", "") for s in summaries.values()), ""),
    )


def chart_data(rows: Sequence[SweepRow], summaries: Mapping[str, RunSummary]) -> dict[str, Any]:
    """What page.js draws: the fronts by model. Texts are escaped for plotly's hover boxes."""
    models: dict[str, list[SweepRow]] = {}
    for row in rows:
        if row.name in summaries:
            models.setdefault(row.model, []).append(row)
    return {"models": [_model(name, found, summaries) for name, found in models.items()]}


def _model(name: str, rows: Sequence[SweepRow], summaries: Mapping[str, RunSummary]) -> dict[str, Any]:
    first = summaries[rows[0].name]
    searches = [_search(row, summaries[row.name]) for row in rows]
    planes = dict.fromkeys((s["target"], source) for s in searches for source in s["sources"])
    return {
        "name": html.escape(name),
        "loss": html.escape(fmt.loss_label(first)),
        "metric": html.escape(f"{first.metric['name']} (search split)"),
        "percent": first.metric.get("unit") == "fraction",
        "float32": point(first.float32, first),
        "searches": searches,
        "latencies": [{"target": target, "source": source} for target, source in planes],
    }


def _search(row: SweepRow, summary: RunSummary) -> dict[str, Any]:
    shown: list[Row] = sorted(summary.pareto, key=lambda r: r.file_bytes)
    points = [{**point(r, summary), "source": r.latency_source} for r in shown]
    best = None if summary.best is None else {**point(summary.best, summary), "source": summary.best.latency_source}
    return {
        "name": html.escape(row.name),
        "target": html.escape(row.target),
        "budget": html.escape(row.budget or "no budget"),
        "seed": f"seed {row.seed}",
        "budget_bytes": summary.budget_bytes,
        "front": points,
        "best": best,
        "sources": list(dict.fromkeys(p["source"] for p in points if p["ms"] is not None)),
    }
