"""Numbers as people read them: one place, so that page, terminal and picture agree."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

from autocomp.core.result import RunSummary
from autocomp.core.row import Row
from autocomp.core.steps import Choice
from autocomp.errors import AutocompError

NONE = "–"

CONSTRAINTS = {
    "max_latency_s": "latency at most",
    "max_latency_ms": "latency at most",
    "max_engine_bytes": "engine at most",
    "max_drop": "metric may drop by at most",
    "budget": "file at most",
}
NEAREST = {
    "file_bytes": "smallest file",
    "latency_ms": "lowest latency",
    "latency_s": "lowest latency",
    "engine_bytes": "smallest engine",
    "score_search": "best metric",
    "score": "best metric",
    "drop": "smallest drop",
}


def size(value: float | None) -> str:
    """Bytes in decimal units: 3_894_287 → "3.89 MB" (1 MB is 1,000,000 bytes)."""
    if value is None or not math.isfinite(value):
        return NONE
    for unit, factor in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if abs(value) >= 0.9995 * factor:
            return f"{digits(value / factor)} {unit}"
    return f"{value:.0f} B"


def digits(value: float) -> str:
    """Three significant digits, zeros kept, never an exponent: 2.8 → "2.80", 1234.5 → "1,234"."""
    if value == 0 or not math.isfinite(value):
        return f"{value:g}"
    rounded = abs(float(f"{value:.3g}"))
    places = max(0, 2 - math.floor(math.log10(rounded)))
    return f"{value:,.{places}f}"


def count(value: float | None) -> str:
    """3894287 → "3,894,287"."""
    return NONE if value is None else f"{value:,.0f}"


def large(value: float | None) -> str:
    """Parameters and MACs: 11_173_962 → "11.2 M"."""
    if value is None:
        return NONE
    for unit, factor in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if value >= 0.9995 * factor:
            return f"{digits(value / factor)} {unit}"
    return f"{value:.0f}"


def score(value: float | None, metric: Mapping[str, str]) -> str:
    """A metric value: fractions as percent, anything else with five significant digits and its unit."""
    if value is None or not math.isfinite(value):
        return NONE
    if metric.get("unit") == "fraction":
        return f"{100 * value:.2f} %"
    unit = metric.get("unit", "")
    return f"{value:.5g} {unit}".strip()


def drop(value: float | None, metric: Mapping[str, str]) -> str:
    """A difference of the metric: fractions as percentage points."""
    if value is None or not math.isfinite(value):
        return NONE
    return f"{100 * value:.2f} points" if metric.get("unit") == "fraction" else f"{value:.5g}"


def score_interval(interval: tuple[float, float] | None, metric: Mapping[str, str]) -> str:
    """ "[96.78, 99.40] %", or "" where there is none."""
    if interval is None:
        return ""
    low, high = (score(v, metric).partition(" ") for v in interval)
    return f"[{low[0]}, {high[0]}] {high[2]}".rstrip()


def latency(value_ms: float | None) -> str:
    """Milliseconds with three significant digits; microseconds below 0.1 ms."""
    if value_ms is None or not math.isfinite(value_ms):
        return NONE
    return f"{digits(1000 * value_ms)} µs" if value_ms < 0.1 else f"{digits(value_ms)} ms"


def latency_interval(interval_ms: tuple[float, float] | None) -> str:
    """ "[1.27, 1.36] ms", or "" where there is none."""
    if interval_ms is None:
        return ""
    if interval_ms[1] < 0.1:
        return f"[{digits(1000 * interval_ms[0])}, {digits(1000 * interval_ms[1])}] µs"
    return f"[{digits(interval_ms[0])}, {digits(interval_ms[1])}] ms"


def energy(value_mj: float | None) -> str:
    """Joules of one inference with three significant digits, in J, mJ or µJ."""
    if value_mj is None or not math.isfinite(value_mj):
        return NONE
    if value_mj >= 1000:
        return f"{digits(value_mj / 1000)} J"
    return f"{digits(1000 * value_mj)} µJ" if value_mj < 0.1 else f"{digits(value_mj)} mJ"


def loss(value: float | None) -> str:
    """A loss with three significant digits."""
    if value is None or not math.isfinite(value):
        return NONE
    return "0" if value == 0 else f"{value:.3g}"


def seconds(value: float) -> str:
    """Wall time: "0.6 s", "41 s", "2 min 05 s", "1 h 02 min"."""
    if value < 10:
        return f"{value:.1f} s"
    whole = round(value)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def times(reference: float | None, value: float | None) -> str:
    """How many times smaller (or faster) ``value`` is than ``reference``: "11.5×"."""
    if not reference or not value:
        return NONE
    return f"{digits(reference / value)}×"


def quantity(name: str, value: float, metric: Mapping[str, str]) -> str:
    """A limit or a nearest miss, by the unit its name ends in."""
    if name.endswith("_bytes") or name == "budget":
        return f"{count(value)} bytes ({size(value)})"
    if name.endswith("_ms"):
        return latency(value)
    if name.endswith("_s"):
        return latency(1000 * value)
    if "drop" in name:
        return drop(value, metric)
    return score(value, metric) if name.startswith("score") or name == metric.get("name") else f"{value:.5g}"


def words(name: str) -> str:
    """ "max_drop" → what people call it."""
    return CONSTRAINTS.get(name) or NEAREST.get(name) or name.replace("_", " ")


def loss_label(summary: RunSummary) -> str:
    """Axis title of ``kl_search``: KL divergence, or the user's own loss where there are no classes."""
    rows = summary.trials or summary.pareto
    if rows and summary.metric.get("direction") == "minimize" and all(r.kl_search == r.score_search for r in rows):
        return f"{summary.metric['name']} (search split)"
    return "KL divergence to float32 (nats, search split)"


def latency_title(summary: RunSummary) -> str:
    """Head of the latency column: predicted latencies are never shown as measured ones."""
    rows = [r for r in (summary.best, summary.float32, *summary.baselines.values()) if r is not None]
    return "latency (predicted)" if any(r.latency_source == "predicted" for r in rows) else "latency"


def answer(summary: RunSummary) -> str:
    """The result in one sentence."""
    best, base, metric = summary.best, summary.float32, summary.metric
    if best is None:
        miss = "; ".join(f"{words(k)} {quantity(k, v, metric)}" for k, v in summary.nearest.items())
        return "Nothing meets the constraints." + (f" Nearest: {miss}." if miss else "")
    text = f"{size(best.file_bytes)} ({times(base.file_bytes, best.file_bytes)} smaller than float32)"
    text += f", {metric['name']} {final_score(best, metric)} against {final_score(base, metric)}"
    if best.latency_ms is not None and base.latency_ms is not None:
        text += f", {latency(best.latency_ms)}"
        if best.latency_source == "predicted":
            text += f" against {latency(base.latency_ms)} (predicted)"
        elif best.latency_ratio is not None:  # milliseconds of two moments say less
            text += f": {best.latency_ratio:.2f} x float32's latency, measured in turn"
        else:
            text += f" against {latency(base.latency_ms)}"
    return text + "."


def final_score(row: Row, metric: Mapping[str, str]) -> str:
    """The test score where the row has one, else the search score and its name."""
    if row.score_test is not None:
        return score(row.score_test, metric)
    return f"{score(row.score_search, metric)} (search split)"


def choices(row: Row) -> dict[str, tuple[str, str]]:
    """Unit → (label, full text) of its choice: ("k0.5", "quantize weights (step 0.5)")."""
    return {unit: (_label(steps), _text(steps)) for unit, steps in row.recipe.items()}


def recipe(row: Row, most: int = 4) -> str:
    """A recipe in one line: how many units took each choice, the commonest first."""
    counts: dict[str, int] = {}
    for label, _ in choices(row).values():
        counts[label] = counts.get(label, 0) + 1
    ranked = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    if not ranked:
        return "float32"
    text = ", ".join(f"{n} × {label}" for label, n in ranked[:most])
    return text + (f", {len(ranked) - most} more" if len(ranked) > most else "")


def legend(rows: Iterable[Row]) -> dict[str, str]:
    """What the short labels of these rows' single steps mean, sorted."""
    out = {}
    for row in rows:
        for steps in row.recipe.values():
            for step in steps if isinstance(steps, list | tuple) else ():
                out[_label([step])] = _text([step])
    return dict(sorted(out.items()))


def _label(steps: Any) -> str:
    """The label of a choice; its full text where it is of a kind that this version does not know."""
    try:
        return Choice.from_json(list(steps)).label()
    except (AutocompError, TypeError, ValueError, AttributeError):
        return _text(steps)


def _text(steps: Any) -> str:
    if not isinstance(steps, list | tuple):
        return str(steps)
    return " + ".join(_step(step) for step in steps) or "float"


def _step(step: Any) -> str:
    if not isinstance(step, Mapping):
        return str(step)
    fields = ", ".join(f"{k} {v:g}" if isinstance(v, float) else f"{k} {v}" for k, v in step.items() if k != "kind")
    kind = str(step.get("kind", "?")).replace("_", " ")
    return f"{kind} ({fields})" if fields else kind
