"""The picture: right format, readable size, no global state."""

from __future__ import annotations

import io
import sys
from pathlib import Path

import pytest
from PIL import Image

from autocomp.errors import StorageError
from autocomp.report import plots
from autocomp.testing.summaries import fake_summary


def size_of(data: bytes) -> tuple[int, int]:
    return Image.open(io.BytesIO(data)).size


def test_two_panels_where_there_is_latency(tmp_path: Path) -> None:
    path = plots.write_png(fake_summary(), tmp_path / "pareto.png")
    assert path.read_bytes().startswith(b"\x89PNG")
    wide = size_of(path.read_bytes())
    narrow = size_of(plots.png(fake_summary(latency=False)))
    assert wide[0] > 1.4 * narrow[0]
    assert wide[1] == narrow[1]


def test_pyplot_is_left_alone() -> None:
    before = "matplotlib.pyplot" in sys.modules
    plots.png(fake_summary(trials=3))
    assert ("matplotlib.pyplot" in sys.modules) == before


def test_same_summary_same_picture() -> None:
    assert plots.png(fake_summary(trials=5)) == plots.png(fake_summary(trials=5))


@pytest.mark.parametrize("arguments", [{"trials": 0}, {"budget_bytes": None}, {"budget_bytes": 10}])
def test_unusual_runs(arguments: dict[str, int | None]) -> None:
    assert plots.png(fake_summary(**arguments))  # type: ignore[arg-type]


def test_unwritable(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="cannot write"):
        plots.write_png(fake_summary(trials=0), tmp_path / "missing" / "x.png")
