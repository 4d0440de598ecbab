"""All files of a report."""

from __future__ import annotations

from pathlib import Path

from autocomp.report import write_report
from autocomp.testing.summaries import fake_summary


def test_files(tmp_path: Path) -> None:
    files = write_report(fake_summary(trials=8), tmp_path / "run")
    assert {f.name for f in files} == {"trials.csv", "pareto.csv", "pareto.json", "pareto.png", "report.html"}
    assert all(f.stat().st_size for f in files)
