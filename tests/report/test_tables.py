"""Tables: what is read back is what was written."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autocomp.core.row import Row
from autocomp.errors import CorruptFileError, StorageError
from autocomp.report import tables
from autocomp.testing.summaries import fake_summary


def test_round_trip(tmp_path: Path) -> None:
    summary = fake_summary()
    files = tables.write_csv(summary, tmp_path)
    assert [f.name for f in files] == ["trials.csv", "pareto.csv", "pareto.json"]
    assert tables.read_csv(tmp_path / "trials.csv") == list(summary.trials)
    assert tables.read_csv(tmp_path / "pareto.csv") == list(summary.pareto)
    stored = json.loads((tmp_path / "pareto.json").read_text())
    assert [Row.from_json(r) for r in stored] == list(summary.pareto)


def test_columns_are_the_fields_of_a_row(tmp_path: Path) -> None:
    summary = fake_summary(trials=3)
    tables.write_csv(summary, tmp_path)
    header = (tmp_path / "trials.csv").read_text().splitlines()[0]
    assert tuple(header.split(",")) == tables.COLUMNS
    assert tuple(tables.frame(summary.trials).columns) == tables.COLUMNS


def test_empty(tmp_path: Path) -> None:
    tables.write_csv(fake_summary(trials=0), tmp_path)
    assert tables.read_csv(tmp_path / "trials.csv") == []
    assert len(tables.frame([])) == 0


numbers = st.floats(allow_nan=False, allow_infinity=False)
texts = st.text(st.characters(exclude_categories=("Cs",), exclude_characters="\r\x00"), max_size=12)
intervals = st.none() | st.tuples(numbers, numbers)
rows = st.builds(
    Row,
    name=texts,
    trial=st.none() | st.integers(0, 10**6),
    candidate=texts,
    feasible=st.booleans(),
    file=st.none() | texts.filter(bool),
    file_bytes=st.integers(0, 2**53),
    engine_bytes=st.none() | st.integers(0, 2**53),
    score_search=numbers,
    score_test=st.none() | numbers,
    score_test_ci95=intervals,
    kl_search=numbers,
    latency_ms=st.none() | numbers,
    latency_ms_ci95=intervals,
    latency_source=st.none() | st.sampled_from(["measured", "predicted"]),
    energy_mj=st.none() | numbers,
    techniques=st.lists(texts, max_size=2).map(tuple),
    recipe=st.dictionaries(texts, st.lists(st.dictionaries(texts, texts | st.integers(), max_size=2), max_size=2)),
    notes=st.lists(texts, max_size=2).map(tuple),
)


@settings(max_examples=40, deadline=None)
@given(st.lists(rows, max_size=4))
def test_any_rows_round_trip(tmp_path_factory: pytest.TempPathFactory, values: list[Row]) -> None:
    folder = tmp_path_factory.getbasetemp() / "tables"
    summary = dataclasses.replace(fake_summary(trials=0), trials=tuple(values), pareto=())
    tables.write_csv(summary, folder)
    assert tables.read_csv(folder / "trials.csv") == values


def test_foreign_files_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "x.csv"
    for text in ("", "a,b\n1,2\n", ",".join(tables.COLUMNS) + "\n" + "," * (len(tables.COLUMNS) - 1) + "\n"):
        file.write_text(text)
        with pytest.raises(CorruptFileError, match=r"x\.csv"):
            tables.read_csv(file)


def test_folder_that_is_a_file(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("")
    with pytest.raises(StorageError, match="cannot write"):
        tables.write_csv(fake_summary(trials=0), file)
