"""Rows as files that any tool opens: trials.csv, pareto.csv, pareto.json."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from autocomp.core.result import RunSummary
from autocomp.core.row import Row
from autocomp.errors import CorruptFileError, StorageError
from autocomp.report.assets import finite

if TYPE_CHECKING:
    import pandas as pd

COLUMNS = tuple(f.name for f in dataclasses.fields(Row))
AS_JSON = ("score_test_ci95", "latency_ms_ci95", "techniques", "recipe", "notes")
"""Columns whose cells are JSON text in the CSV files."""

REQUIRED = ("feasible", "file_bytes", "score_search", "kl_search", "techniques", "recipe", "notes")
INTEGERS = ("trial", "file_bytes", "engine_bytes")


def frame(rows: Iterable[Row]) -> pd.DataFrame:
    """One row a candidate, one column a field of :class:`Row`; structured fields stay Python values."""
    import pandas as pd

    table = pd.DataFrame([[getattr(r, c) for c in COLUMNS] for r in rows], columns=list(COLUMNS))
    kinds = dict.fromkeys(INTEGERS, "Int64")
    kinds |= dict.fromkeys(("score_search", "score_test", "kl_search", "latency_ms", "energy_mj"), "float64")
    return table.astype(kinds)


def write_csv(summary: RunSummary, folder: Path) -> list[Path]:
    """Write ``trials.csv``, ``pareto.csv`` and ``pareto.json`` into ``folder``.

    Args:
        summary: whose rows are written: every trial, and the front.
        folder: is made where it does not exist.

    Returns:
        The files written.

    Raises:
        StorageError: the folder cannot be written.
    """
    written = []
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, rows in (("trials.csv", summary.trials), ("pareto.csv", summary.pareto)):
            _text(rows).to_csv(folder / name, index=False, lineterminator="\n")
            written.append(folder / name)
        path = folder / "pareto.json"
        path.write_text(json.dumps([finite(r.to_json()) for r in summary.pareto], indent=1) + "\n", encoding="utf-8")
    except OSError as error:
        raise StorageError(f"{folder}: cannot write tables: {error.strerror}; free or open up the folder") from error
    return [*written, path]


def read_csv(path: Path) -> list[Row]:
    """The rows of a file that :func:`write_csv` wrote, equal to what was written.

    Raises:
        CorruptFileError: the file is no such table.
    """
    import pandas as pd

    try:
        table = pd.read_csv(path, dtype=str, keep_default_na=False)
        return [_row({str(k): str(v) for k, v in record.items()}) for record in table.to_dict("records")]
    except (ValueError, KeyError, TypeError) as error:
        raise CorruptFileError(f"{path}: not a table of rows ({error}); run: autocomp report RUN") from error


def _text(rows: Iterable[Row]) -> pd.DataFrame:
    """``frame`` with structured cells as JSON text, absent ones empty."""
    table = frame(rows)
    for name in AS_JSON:
        table[name] = [None if v is None else json.dumps(v, ensure_ascii=False) for v in table[name]]
    return table


def _row(record: dict[str, str]) -> Row:
    fields: dict[str, Any] = {}
    for field in dataclasses.fields(Row):
        cell = record[field.name]
        fields[field.name] = _cell(field.name, cell)
    return Row.from_json(fields)


def _cell(name: str, cell: str) -> Any:
    if name in ("name", "candidate"):
        return cell
    if cell == "":
        if name in REQUIRED:
            raise ValueError(f"no {name}")
        return None
    if name in AS_JSON:
        return json.loads(cell)
    if name in INTEGERS:
        return int(cell)
    if name == "feasible":
        return {"True": True, "False": False}[cell]
    return cell if name in ("file", "latency_source") else float(cell)
