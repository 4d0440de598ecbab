"""report.html: one page that needs nothing but itself."""

from __future__ import annotations

import base64
import html
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from autocomp.core.result import RunSummary
from autocomp.core.row import Row
from autocomp.core.settings import Settings
from autocomp.errors import StorageError
from autocomp.report import assets, plots
from autocomp.report import format as fmt

LIMITS = {"max_latency_s": "--max-latency", "max_engine_bytes": "--max-engine-size", "max_drop": "--max-drop"}
FLAGS = (
    *("weights", "data", "image_size", "normalize", "metric", "target", "batch_size", "space", "preset", "trials"),
    *("sampler", "storage", "jobs", "cluster", "resources", "executor", "finish", "seed"),
)
"""Options of ``autocomp search`` that are fields of the settings under the same name."""


def write_html(summary: RunSummary, path: Path, plotly_inline: bool = True, *, picture: bytes | None = None) -> Path:
    """Write the page.

    Args:
        summary: the run.
        path: the file, overwritten.
        plotly_inline: False leaves plotly.js out: the front is then a picture (about 0.3 MB in all
            instead of 5 MB), everything else is the same.
        picture: the PNG of :func:`autocomp.report.plots.png`, where it was drawn already.

    Raises:
        StorageError: the file cannot be written.
    """
    text = page(summary, plotly_inline=plotly_inline, picture=picture)
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise StorageError(f"{path}: cannot write: {error.strerror}; free or open up the folder") from error
    return path


def page(summary: RunSummary, *, plotly_inline: bool = True, picture: bytes | None = None) -> str:
    """The page as text; arguments as in :func:`write_html`."""
    return assets.render(
        "report/page",
        chart_data(summary),
        plotly_inline=plotly_inline,
        s=summary,
        fmt=fmt,
        command=command(summary),
        settings=_flat(summary.settings),
        environment=_flat(summary.environment),
        final=[r for r in (summary.best, summary.float32, *summary.baselines.values()) if r is not None],
        slower=_slower(summary),
        legend=fmt.legend(r for r in (*summary.pareto, summary.best) if r is not None),
        picture=base64.b64encode(plots.png(summary) if picture is None else picture).decode(),
    )


def command(summary: RunSummary) -> str:
    """The command line that asks for the same again, from the settings that differ from the defaults."""
    given, usual = summary.settings, Settings().to_json()
    if str(given.get("model", "")).startswith("<"):
        return _call(summary)
    words = ["autocomp", "search"]
    if given.get("model", usual["model"]) != usual["model"]:
        words.append(str(given["model"]))
    if summary.budget_bytes is not None:
        words += ["--budget", str(given.get("budget_text") or summary.budget_bytes)]
    for name, flag in LIMITS.items():
        if given.get(name) is not None:
            words += [flag, _limit(name, given[name])]
    for name in FLAGS:
        words += _flag(name, given, usual)
    return shlex.join(words)


def _call(summary: RunSummary) -> str:
    """The call of :func:`autocomp.search`, where the network was a Python object."""
    usual = Settings().to_json()
    given = {k: v for k, v in summary.settings.items() if k in (*LIMITS, *FLAGS) and k != "data"}
    words = ["model", "data"]
    if summary.budget_bytes is not None:
        words.append(f"budget={(summary.settings.get('budget_text') or summary.budget_bytes)!r}")
    for name, value in given.items():
        if value is not None and name in LIMITS:
            words.append(f"{name.removesuffix('_s').replace('_bytes', '_size')}={_limit(name, value)!r}")
        elif name in FLAGS and _flag(name, given, usual):
            words.append(f"{name}={(','.join(map(str, value)) if isinstance(value, list | tuple) else value)!r}")
    return f"autocomp.search({', '.join(words)})"


def _limit(name: str, value: float) -> str:
    if name == "max_latency_s":
        return f"{1000 * value:g}ms"
    return f"{100 * value:g}%" if name == "max_drop" else str(value)


def _flag(name: str, given: Mapping[str, Any], usual: Mapping[str, Any]) -> list[str]:
    value = given.get(name, usual[name])
    value, default = (",".join(map(str, v)) if isinstance(v, list | tuple) else v for v in (value, usual[name]))
    return [] if value == default else [f"--{name.replace('_', '-')}", str(value)]


def _slower(summary: RunSummary) -> bool:
    """Whether the answer is slower than float32 beyond both intervals: the page then says so."""
    best, base = summary.best, summary.float32
    if best is None or best.latency_ms_ci95 is None or base.latency_ms_ci95 is None:
        return False
    return best.latency_ms_ci95[0] > base.latency_ms_ci95[1]


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Nested mappings as "outer.inner" → text, absent values left out."""
    out: dict[str, str] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            out |= _flat(value, f"{prefix}{key}.")
        elif value not in (None, ""):
            out[f"{prefix}{key}"] = ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
    return out


def chart_data(summary: RunSummary) -> dict[str, Any]:
    """What page.js draws: points by group, limits, layers. Texts are escaped for plotly's hover boxes."""
    on_front = {(r.trial, r.candidate) for r in summary.pareto}
    others = [r for r in summary.trials if (r.trial, r.candidate) not in on_front]
    groups: dict[str, list[Row]] = {
        "infeasible": [r for r in others if not r.feasible],
        "feasible": [r for r in others if r.feasible],
        "front": sorted(summary.pareto, key=lambda r: r.file_bytes),
        "baselines": list(summary.baselines.values()),
        "float32": [summary.float32],
        "best": [] if summary.best is None else [summary.best],
    }
    return {
        "groups": {name: [point(r, summary) for r in rows] for name, rows in groups.items()},
        "budget_bytes": summary.budget_bytes,
        "budget": fmt.size(summary.budget_bytes),
        "max_latency_ms": 1000 * summary.constraints["max_latency_s"]
        if "max_latency_s" in summary.constraints
        else None,
        "loss": fmt.loss_label(summary),
        "metric": html.escape(f"{summary.metric['name']} (search split)"),
        "percent": summary.metric.get("unit") == "fraction",
        "layers": [
            {
                "name": html.escape(layer.layer),
                "choice": html.escape(layer.choice),
                "bits": layer.bits_per_weight,
                "bytes": layer.coded_bytes,
                "kl": layer.kl,
                "executes": html.escape(layer.executes),
                "prices": [[html.escape(label), size, kl] for label, size, kl in layer.prices],
            }
            for layer in summary.layers
        ],
    }


def point(row: Row, summary: RunSummary) -> dict[str, Any]:
    """One network as page scripts draw it."""
    lines = [
        f"{fmt.count(row.file_bytes)} bytes ({fmt.size(row.file_bytes)})",
        f"loss {fmt.loss(row.kl_search)}",
        f"{summary.metric['name']} {fmt.score(row.score_search, summary.metric)} (search)",
    ]
    if row.score_test is not None:
        lines.append(f"{summary.metric['name']} {fmt.score(row.score_test, summary.metric)} (test)")
    if row.latency_ms is not None:
        lines.append(f"{fmt.latency(row.latency_ms)} ({row.latency_source or 'unknown source'})")
    if row.energy_mj is not None:
        lines.append(f"{fmt.energy(row.energy_mj)} an inference")
    lines += [fmt.recipe(row), "meets the constraints" if row.feasible else "does not meet the constraints"]
    return {
        "name": html.escape(row.name),
        "bytes": row.file_bytes,
        "loss": row.kl_search,
        "score": row.score_search,
        "ms": row.latency_ms,
        "ms_ci95": row.latency_ms_ci95,
        "feasible": row.feasible,
        "text": "<br>".join(html.escape(line) for line in lines),
    }
