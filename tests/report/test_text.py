"""What the terminal shows at the end."""

from __future__ import annotations

import dataclasses
import io
from dataclasses import dataclass
from typing import Any

from rich.console import Console, RenderableType

from autocomp.report import format as fmt
from autocomp.report import text
from autocomp.testing.summaries import fake_summary


def shown(renderable: RenderableType, width: int = 120) -> str:
    console = Console(file=io.StringIO(), width=width, color_system=None)
    console.print(renderable)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


@dataclass
class Check:
    name: str
    claimed: str
    measured: str
    ok: bool


def test_answer_and_places() -> None:
    summary = fake_summary()
    out = shown(text.summary_table(summary))
    assert "98.61 % against 98.89 %" in out
    for name in summary.baselines:
        assert name in out
    assert "model.autocomp" in out
    assert "report.html" in out
    assert "1 × latency/timeout" in out
    assert "note: int8 is not faster here" in out


def test_the_answer_compares_latencies_as_they_were_measured() -> None:
    summary = fake_summary()
    assert summary.best is not None

    def said(**latency: Any) -> str:
        assert summary.best is not None
        best = dataclasses.replace(summary.best, latency_ms=2.0, **latency)
        base = dataclasses.replace(summary.float32, latency_ms=4.0)
        return fmt.answer(dataclasses.replace(summary, best=best, float32=base))

    assert said(latency_source="measured", latency_ratio=0.987).endswith(
        ", 2.00 ms: 0.99 x float32's latency, measured in turn."
    )
    assert said(latency_source="measured", latency_ratio=None).endswith(", 2.00 ms against 4.00 ms.")
    assert said(latency_source="predicted", latency_ratio=0.5).endswith(", 2.00 ms against 4.00 ms (predicted).")


def test_energy_has_a_column_where_the_device_counts_it() -> None:
    summary = fake_summary()
    assert "energy" not in shown(text.summary_table(summary), 160)
    counted = dataclasses.replace(summary, float32=dataclasses.replace(summary.float32, energy_mj=3.0))
    out = shown(text.summary_table(counted), 160)
    assert "energy" in out
    assert "3.00 mJ" in out


def test_nearest_miss() -> None:
    out = shown(text.summary_table(fake_summary(budget_bytes=10)))
    assert "Nothing meets the constraints. Nearest: smallest file" in out


def test_checks() -> None:
    out = shown(text.checks_table([Check("size [of best]", "3", "3", True), Check("score", "0.9", "0.8", False)]))
    assert "size [of best]" in out
    assert "NO" in out


def test_survey() -> None:
    rows = [
        {"unit": "conv1", "choice": "4b", "coded_bytes": 12345, "kl": 0.001234, "latency_s": None},
        {"unit": "conv1", "choice": "[red]8b", "coded_bytes": 23456, "kl": 0.0, "latency_s": 0.0012},
        {"unit": "fc", "choice": "4b", "coded_bytes": 1, "kl": 2.0, "latency_s": 1.0},
    ]
    out = shown(text.survey_table(rows))
    assert out.count("conv1") == 1
    for part in ("12,345", "0.00123", "1.20 ms", "[red]8b", "coded bytes"):
        assert part in out
    assert shown(text.survey_table([]))
