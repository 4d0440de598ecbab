"""A sweep on a small network: what a user relies on when the command has ended, or was ended."""

from __future__ import annotations

import contextlib
import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tomli_w

import autocomp as package
from autocomp import pipeline
from autocomp.core.progress import Silent
from autocomp.core.result import RunSummary
from autocomp.core.run_folder import RunFolder
from autocomp.core.settings import Settings
from autocomp.errors import StorageError
from autocomp.stages.exploring import trials_done
from autocomp.survey.database import UnitFile
from autocomp.sweeps import plan, runner
from autocomp.sweeps.rows import COLUMNS
from tests.e2e.tiny_workload import Tiny

Run = Callable[..., subprocess.CompletedProcess[str]]
NINE, SEVEN, NOTHING = (f"tiny-{b}-cpu-onnxruntime-s0" for b in ("9kB", "7kB", "100"))


def asked(tiny: Tiny, budgets: list[str], **search: Any) -> dict[str, Any]:
    """What a file would say."""
    model = {"model": tiny.model, "weights": str(tiny.weights), "data": tiny.data, "normalize": "none", "name": "tiny"}
    quick = {"preset": "quick", "space": "quick", "trials": 4, "finish": "none"}
    return {"sweep": {"models": [model], "budgets": budgets}, "search": {**quick, **search}}


def write(file: Path, tiny: Tiny, budgets: list[str], **search: Any) -> Path:
    file.write_text(tomli_w.dumps(asked(tiny, budgets, **search)), encoding="utf-8")
    return file


def times(folder: Path, pattern: str) -> dict[str, int]:
    """When each file was written, ns."""
    return {str(p.relative_to(folder)): p.stat().st_mtime_ns for p in sorted(folder.glob(pattern))}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("sweeps")


@pytest.fixture(scope="module")
def swept(tiny: Tiny, autocomp: Run, folder: Path) -> dict[str, Any]:
    """A sweep over two budgets that can be met and one that cannot: what ``--json`` printed."""
    file = write(folder / "grid.toml", tiny, ["9kB", "7kB", "100"])
    before = autocomp("sweep", file, "--dry-run", "--json", "--out", folder / "out")
    assert json.loads(before.stdout)["seconds"] is None, "nothing is known, nothing is invented"
    assert not (folder / "out").exists(), "a dry run writes nothing"
    done = autocomp("sweep", file, "--json", "--out", folder / "out")
    assert done.returncode == 3, done.stderr
    assert "1 of 3: " + NINE in done.stderr
    return json.loads(done.stdout)  # type: ignore[no-any-return]


def test_every_search_has_its_row(swept: dict[str, Any], folder: Path) -> None:
    out = folder / "out"
    assert swept["counts"] == {"done": 2, "infeasible": 1}
    assert json.loads((out / "sweep.json").read_text()) == swept
    with (out / "sweep.csv").open() as file:
        table = list(csv.DictReader(file))
    assert tuple(table[0]) == COLUMNS
    for row, line in zip(swept["rows"], table, strict=True):
        for column in COLUMNS:
            assert line[column] == ("" if row[column] is None else str(row[column]))
    for row in swept["rows"][:2]:
        summary = json.loads((Path(row["folder"]) / "summary.json").read_text())
        assert os.stat(Path(row["folder"]) / "model.autocomp").st_size == row["file_bytes"]
        assert row["file_bytes"] <= summary["budget_bytes"]
        assert row["score_test"] == summary["best"]["score_test"]
        assert row["drop"] == summary["float32"]["score_search"] - summary["best"]["score_search"]
        assert (row["evaluations"], row["latency_source"]) == (4, "measured")
        assert row["seconds"] == pytest.approx(sum(summary["seconds"].values()), abs=0.01)
    assert "the smallest reachable file is" in swept["rows"][2]["reason"]
    assert NOTHING in (out / "log.txt").read_text()


def test_the_second_budget_prices_nothing(swept: dict[str, Any], folder: Path) -> None:
    out = folder / "out"
    units = times(out, "cache/survey/*.unit")
    assert len(units) >= 5
    assert max(units.values()) < times(out, f"{NINE}/summary.json")[f"{NINE}/summary.json"]
    assert not list(out.glob("*/cache/survey")), "nothing is priced into a search's own cache"
    assert swept["rows"][0]["engine_builds"] > 0
    again = {json.loads(p.read_text())["key"] for p in out.glob("cache/engines/measurement-*.json")}
    assert len(again) >= sum(row["engine_builds"] or 0 for row in swept["rows"])
    seconds = [json.loads((out / n / "summary.json").read_text())["seconds"]["survey"] for n in (NINE, SEVEN)]
    assert seconds[1] < seconds[0]


def test_the_same_command_again_does_nothing_twice(swept: dict[str, Any], autocomp: Run, folder: Path) -> None:
    out = folder / "out"
    done_before = {**times(out, "*kB*/**/*"), **times(out, "cache/survey/*.unit")}
    again = autocomp("sweep", folder / "grid.toml", "--json", "--out", out)
    assert again.returncode == 3
    assert json.loads(again.stdout) == swept
    assert again.stderr.count("finished before") == 2
    assert {**times(out, "*kB*/**/*"), **times(out, "cache/survey/*.unit")} == done_before


def test_editing_the_file_adds_and_removes_searches(
    swept: dict[str, Any], tiny: Tiny, autocomp: Run, folder: Path
) -> None:
    out = folder / "out"
    file = write(folder / "edited.toml", tiny, ["15%", "9kB"])
    preview = autocomp("sweep", file, "--dry-run", "--json", "--out", out)
    first, second = json.loads(preview.stdout)["searches"]
    assert (first["state"], first["done"], first["trials"]) == ("new", 0, 4)
    held, needed = map(int, first["prices"].split("/"))
    assert held == needed == len(times(out, "cache/survey/*.unit"))
    assert first["seconds"] > 0
    assert first["engines"] == sum(row["engine_builds"] or 0 for row in swept["rows"])
    assert (second["state"], second["seconds"]) == ("finished", 0)
    units = times(out, "cache/survey/*.unit")
    grid = asked(tiny, ["15%", "9kB"])
    grid["sweep"]["models"].insert(0, {"model": f"{folder / 'nowhere.py'}:make", "name": "broken"})
    file.write_text(tomli_w.dumps(grid), encoding="utf-8")
    done = autocomp("sweep", file, "--json", "--out", out)
    assert done.returncode == 2, "one that cannot be done is a row, and the others go on"
    rows = json.loads(done.stdout)["rows"]
    assert [row["state"] for row in rows] == ["failed", "failed", "done", "done"]
    assert "nowhere.py" in rows[0]["reason"]
    assert "\n" not in rows[0]["reason"]
    assert [Path(row["folder"]).name for row in rows[2:]] == ["tiny-15pct-cpu-onnxruntime-s0", NINE]
    assert rows[3] == swept["rows"][0]
    assert times(out, "cache/survey/*.unit") == units
    assert (out / SEVEN / "model.autocomp").is_file(), "what is no longer asked for stays"
    finished = times(out, "tiny-*/**/*")
    result = package.sweep(asked(tiny, ["15%", "7kB"]), out=out)  # the same from Python, and what was asked before
    assert times(out, "tiny-*/**/*") == finished
    assert list(result.table.columns) == list(COLUMNS)
    assert list(result.table["file_bytes"]) == [row["file_bytes"] for row in (rows[2], swept["rows"][1])]
    with pytest.raises(StorageError, match="holds other files and no sweep"):
        package.sweep(asked(tiny, ["9kB"]), out=out / NINE)


def start(*arguments: object) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "autocomp", *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def wait_for(condition: Callable[[], bool], child: subprocess.Popen[str]) -> None:
    limit = time.monotonic() + 400
    while not condition():
        assert child.poll() is None, child.communicate()
        assert time.monotonic() < limit
        time.sleep(0.05)


@pytest.mark.slow
def test_kill_and_go_on(tiny: Tiny, autocomp: Run, tmp_path: Path) -> None:
    file, out = write(tmp_path / "grid.toml", tiny, ["9kB", "7kB"], trials=5), tmp_path / "out"
    second = RunFolder(out / SEVEN)
    child = start("sweep", file, "--out", out, "-q")
    wait_for(lambda: trials_done(second) >= 2, child)
    child.send_signal(signal.SIGKILL)
    child.communicate()
    state = json.loads((out / "sweep.json").read_text())
    assert [row["state"] for row in state["rows"]] == ["done", "begun"]
    kept, before = trials_done(second), {**times(out, f"{NINE}/**/*"), **times(out, "cache/survey/*.unit")}
    preview = json.loads(autocomp("sweep", file, "--out", out, "--dry-run", "--json").stdout)
    assert [(s["state"], s["done"]) for s in preview["searches"]] == [("finished", 5), ("begun", kept)]
    done = autocomp("sweep", file, "--out", out, "--json", "-q")
    assert done.returncode == 0, done.stderr
    rows = json.loads(done.stdout)["rows"]
    assert [(row["state"], row["evaluations"], row["resumed"]) for row in rows] == [
        ("done", 5, False),
        ("done", 5, True),
    ]
    assert {**times(out, f"{NINE}/**/*"), **times(out, "cache/survey/*.unit")} == before


@pytest.mark.slow
def test_ctrl_c_says_how_to_go_on_and_one_folder_takes_one_sweep(tiny: Tiny, autocomp: Run, tmp_path: Path) -> None:
    file, out = write(tmp_path / "grid.toml", tiny, ["9kB"], trials=500), tmp_path / "out"
    child = start("sweep", file, "--out", out)
    wait_for(lambda: trials_done(RunFolder(out / NINE)) >= 1, child)
    other = autocomp("sweep", file, "--out", out)
    assert other.returncode == 2
    assert "is driving this sweep" in other.stderr
    child.send_signal(signal.SIGINT)
    _, said = child.communicate(timeout=150)
    assert child.returncode == 130, said
    assert f"saved in {out}; the same command goes on from there" in said


@pytest.mark.slow
def test_two_processes_share_a_cache_at_the_same_time(tiny: Tiny, tmp_path: Path) -> None:
    """Two spaces of the same network: each adds its own choices to the same files."""
    common = ["search", *tiny.arguments, "--preset", "quick", "--trials", 4, "--finish", "none", "--json", "-q"]
    children = [
        start(*common, "--budget", "9kB", "--space", space, "--cache", tmp_path / "shared", "--out", tmp_path / space)
        for space in ("quick", "bits")
    ]
    for child in children:
        out, said = child.communicate(timeout=550)
        assert child.returncode == 0, said
        summary = json.loads(out)
        assert os.stat(summary["best"]["file"]).st_size == summary["best"]["file_bytes"] <= 9000
        assert summary["failures"] == {}
    units = [UnitFile(p) for p in (tmp_path / "shared" / "survey").glob("*.unit")]
    for space in ("quick", "bits"):
        index = json.loads((tmp_path / space / "cache" / "survey.json").read_text())
        assert {p.path.name for p in units} >= set(index["units"].values())
    both = set(json.loads((tmp_path / "bits" / "cache" / "survey.json").read_text())["units"].values())
    for unit in units:
        if unit.path.name in both:
            keys = " ".join(unit.choices())
            assert '"bits":3' in keys.replace(" ", ""), "of the space bits"
            assert '"step":0.' in keys.replace(" ", ""), "of the space quick"


def test_a_defect_met_by_one_search_does_not_keep_the_others_back(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = plan.read(write(tmp_path / "grid.toml", tiny, ["9kB", "7kB"]), {}, tmp_path / "out")
    search = pipeline.search

    def broken(settings: Settings, *rest: Any, **options: Any) -> RunSummary:
        if settings.budget_bytes == 9000:
            raise IndexError("list index out of range")
        return search(settings, *rest, **options)

    monkeypatch.setattr(pipeline, "search", broken)
    first, second = runner.run(given, progress=lambda: contextlib.nullcontext(Silent()), say=lambda _: None)
    assert (first.state, second.state) == ("failed", "done")
    assert "unexpected IndexError: list index out of range" in first.reason
    assert "Traceback" in (tmp_path / "out" / "log.txt").read_text()


def test_starting_over_that_is_interrupted_leaves_nothing_of_the_old_sweep(
    swept: dict[str, Any], tiny: Tiny, tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    shutil.copytree(folder / "out", out)
    given = plan.read(write(tmp_path / "grid.toml", tiny, ["9kB", "7kB"]), {}, out)

    def interrupted(*_: Any, **__: Any) -> RunSummary:
        raise KeyboardInterrupt

    monkeypatch.setattr(pipeline, "search", interrupted)
    with pytest.raises(KeyboardInterrupt):
        runner.run(given, progress=lambda: contextlib.nullcontext(Silent()), say=lambda _: None, fresh=True)
    for name in (NINE, SEVEN):
        assert (out / name).is_dir()
        assert not (out / name / "summary.json").exists()
        assert not (out / name / "study.journal").exists()
