"""The Pareto front as a picture for papers, chats and terminals without a browser."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from autocomp.core.result import RunSummary
from autocomp.core.row import Row
from autocomp.errors import StorageError
from autocomp.report import format as fmt

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BLUE, GREY, ORANGE, GREEN, INK = "#2456b3", "#8a94a6", "#b4540a", "#0b7a53", "#1c2430"


def write_png(summary: RunSummary, path: Path) -> Path:
    """Draw loss against file size (and the metric against latency where there are latencies).

    Raises:
        StorageError: the file cannot be written.
    """
    data = png(summary)
    try:
        path.write_bytes(data)
    except OSError as error:
        raise StorageError(f"{path}: cannot write: {error.strerror}; free or open up the folder") from error
    return path


def png(summary: RunSummary) -> bytes:
    """The picture as PNG bytes; no global state of matplotlib is touched."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    timed = any(r.latency_ms is not None for r in (*summary.trials, *summary.pareto))
    figure = Figure(figsize=(13 if timed else 8, 5.4), dpi=130, layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    axes = figure.subplots(1, 2 if timed else 1, squeeze=False)[0]
    _sizes(axes[0], summary)
    if timed:
        _latencies(axes[1], summary)
    _title(figure, summary)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": "autocomp"})
    return buffer.getvalue()


def _title(figure: Figure, summary: RunSummary) -> None:
    figure.suptitle(
        f"{summary.model} on {summary.data}, {summary.target}\n{fmt.answer(summary)}".replace("$", r"\$"),
        fontsize=11,
        color=INK,
    )


def _sizes(axes: Axes, summary: RunSummary) -> None:
    floor = _floor([*summary.trials, *summary.pareto, *summary.baselines.values()])
    _groups(axes, summary, lambda r: (r.file_bytes / 1e6, max(r.kl_search, floor)))
    if summary.budget_bytes is not None:
        axes.axvline(summary.budget_bytes / 1e6, color=ORANGE, linestyle="--", linewidth=1.2)
        axes.annotate(
            f" budget {fmt.size(summary.budget_bytes)}",
            (summary.budget_bytes / 1e6, 1),
            xycoords=("data", "axes fraction"),
            va="top",
            rotation=90,
            ha="right",
            color=ORANGE,
            fontsize=8,
        )
    axes.set_xscale("log")
    axes.set_yscale("log")
    _plain_log_labels(axes)
    axes.set_xlabel("file size (MB = 1,000,000 bytes)")
    axes.set_ylabel(fmt.loss_label(summary))
    axes.set_title("Loss against size of the file", fontsize=10, color=INK)
    axes.legend(fontsize=8, frameon=False)


def _latencies(axes: Axes, summary: RunSummary) -> None:
    scale = 100 if summary.metric.get("unit") == "fraction" else 1
    _groups(axes, summary, lambda r: (r.latency_ms, scale * r.score_search))
    limit = summary.constraints.get("max_latency_s")
    if limit is not None:
        axes.axvline(1000 * limit, color=ORANGE, linestyle="--", linewidth=1.2)
    unit = "%" if scale == 100 else summary.metric.get("unit", "")
    axes.set_xlabel("latency of the engine (ms)")
    axes.set_ylabel(f"{summary.metric['name']} on the search split ({unit})")
    axes.set_title("Metric against latency", fontsize=10, color=INK)


def _groups(axes: Axes, summary: RunSummary, point: Callable[[Row], tuple[float | None, float]]) -> None:
    on_front = {(r.trial, r.candidate) for r in summary.pareto}
    others = [r for r in summary.trials if (r.trial, r.candidate) not in on_front]
    styles: list[tuple[str, Sequence[Row], dict[str, object]]] = [
        ("infeasible", [r for r in others if not r.feasible], {"marker": "x", "color": GREY, "s": 22, "linewidth": 1}),
        ("feasible", [r for r in others if r.feasible], {"marker": "o", "color": BLUE, "s": 20, "alpha": 0.45}),
        (
            "front, infeasible",
            [r for r in summary.pareto if not r.feasible],
            {"marker": "o", "facecolors": "white", "edgecolors": BLUE, "s": 38},
        ),
        ("front", [r for r in summary.pareto if r.feasible], {"marker": "o", "color": BLUE, "s": 42}),
        ("baselines", list(summary.baselines.values()), {"marker": "D", "color": ORANGE, "s": 34}),
        ("float32", [summary.float32], {"marker": "s", "color": INK, "s": 36}),
        ("best", [] if summary.best is None else [summary.best], {"marker": "*", "color": GREEN, "s": 190}),
    ]
    for layer, (label, rows, style) in enumerate(styles, start=2):
        points = [(x, y) for x, y in map(point, rows) if x is not None]
        if points:
            axes.scatter(*zip(*points, strict=True), label=label, zorder=layer, **style)  # type: ignore[arg-type]
    for row in summary.baselines.values():
        x, y = point(row)
        if x is not None:
            axes.annotate(row.name, (x, y), xytext=(6, 4), textcoords="offset points", fontsize=8, color=ORANGE)
    axes.grid(visible=True, which="major", color="#e3e7ee", linewidth=0.7)
    axes.spines[["top", "right"]].set_visible(False)
    axes.margins(x=0.09)


def _floor(rows: Sequence[Row]) -> float:
    """What stands for a loss of 0 on a logarithmic axis: half the smallest loss there is."""
    positive = [r.kl_search for r in rows if r.kl_search > 0]
    return min(positive) / 2 if positive else 1e-6


def _plain_log_labels(axes: Axes) -> None:
    """Sizes are read as numbers, not as powers of ten."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axes.xaxis.set_major_locator(LogLocator(base=10, subs=(1.0, 2.0, 5.0)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())
