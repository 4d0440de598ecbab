"""Reports of a run: the page, the tables, the picture, and what the terminal shows."""

from __future__ import annotations

from pathlib import Path

from autocomp.core.result import RunSummary


def write_report(summary: RunSummary, folder: Path) -> list[Path]:
    """Write ``report.html``, ``trials.csv``, ``pareto.csv``, ``pareto.json`` and ``pareto.png`` into ``folder``.

    Returns:
        The files written.

    Raises:
        StorageError: the folder cannot be written.
    """
    from autocomp.report import html, plots, tables

    files = tables.write_csv(summary, folder)
    picture = plots.write_png(summary, folder / "pareto.png")
    page = html.write_html(summary, folder / "report.html", picture=picture.read_bytes())
    return [*files, picture, page]
