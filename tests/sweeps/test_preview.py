"""Estimates come from finished searches with the same pace, and are unknown where there is none."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from autocomp.core.settings import Settings
from autocomp.sweeps import plan
from autocomp.sweeps.preview import preview, to_json
from autocomp.sweeps.text import total

ASKED = {"sweep": {"budgets": ["4MB", "2MB"], "seeds": [0, 1]}, "search": {"trials": 10}}


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def finished(folder: Path, settings: Settings, evaluations: int = 10, **seconds: float) -> None:
    """What a finished search leaves that estimates are made from."""
    (folder / "cache").mkdir(parents=True)
    (folder / "cache" / "settings.json").write_text(json.dumps(settings.to_json()))
    told = {"seconds": seconds, "evaluations": evaluations, "engine_builds": 3}
    (folder / "summary.json").write_text(json.dumps(told))


def estimates(sweep: plan.Sweep, **options: Any) -> list[float | None]:
    return [line.seconds for line in preview(sweep, **options)]


def test_nothing_known_is_unknown_and_nothing_is_written(tmp_path: Path) -> None:
    sweep = plan.read(ASKED, {})
    lines = preview(sweep)
    assert [line.seconds for line in lines] == [None] * 4
    assert {(line.state, line.prices, line.engines) for line in lines} == {("new", "", 0)}
    assert total(lines) == "0 of 4 finished; unknown for 4"
    assert to_json(sweep, lines)["seconds"] is None
    assert list(tmp_path.iterdir()) == []


def test_the_first_search_of_a_seed_pays_for_the_survey(tmp_path: Path) -> None:
    sweep = plan.read(ASKED, {})
    like = sweep.searches[0].settings
    earlier = dataclasses.replace(like, budget_bytes=1, budget_text="1", seed=5, trials=20, cache=None)
    times = {"load": 1.0, "finish": 3.0, "pack": 1.0}
    finished(tmp_path / "runs" / "a", earlier, evaluations=20, survey=40.0, search=20.0, **times)
    finished(tmp_path / "runs" / "other" / "b", earlier, evaluations=10, survey=2.0, search=30.0, **times)
    # trials: median of 1 and 3 seconds, 10 of them; other stages: 5 seconds
    assert estimates(sweep) == [40 + 20 + 5, 40 + 20 + 5, 2 + 20 + 5, 2 + 20 + 5]
    assert total(preview(sweep)) == "0 of 4 finished; about 3 min 04 s for 4"


@pytest.mark.parametrize(
    "change", [{"target": "cpu-openvino"}, {"space": "bits"}, {"preset": "quick"}, {"jobs": 2}, {"finish": "none"}]
)
def test_searches_of_another_pace_say_nothing(tmp_path: Path, change: dict[str, Any]) -> None:
    sweep = plan.read(ASKED, {})
    other = dataclasses.replace(sweep.searches[0].settings, **change)
    finished(tmp_path / "runs" / "a", other, survey=40.0, search=20.0)
    assert estimates(sweep) == [None] * 4


def test_a_resumed_search_says_nothing_of_time(tmp_path: Path) -> None:
    sweep = plan.read(ASKED, {}, tmp_path / "out")
    finished(tmp_path / "out" / "gone", sweep.searches[0].settings, survey=40.0, search=20.0)
    assert estimates(sweep) == [65 - 5.0, 65 - 5.0, 60.0, 60.0]
    row = {"model": "m", "target": "t", "budget": "b", "seed": 0, "folder": str(tmp_path / "out" / "gone")}
    (tmp_path / "out" / "sweep.json").write_text(json.dumps({"rows": [{**row, "resumed": True}]}))
    assert estimates(sweep) == [None] * 4


def test_engines_are_counted_where_the_cache_is_shared(tmp_path: Path) -> None:
    sweep = plan.read(ASKED, {}, tmp_path / "out")
    like = sweep.searches[0].settings
    finished(tmp_path / "out" / "gone", like, search=1.0)
    finished(tmp_path / "runs" / "alone", dataclasses.replace(like, cache=None), search=1.0)
    assert {line.engines for line in preview(sweep)} == {3}
    assert {line.engines for line in preview(sweep, fresh=True)} == {0}, "--fresh empties the sweep's own cache"


def test_a_folder_that_cannot_be_read_is_passed_over(tmp_path: Path) -> None:
    (tmp_path / "runs" / "x" / "cache").mkdir(parents=True)
    (tmp_path / "runs" / "x" / "cache" / "settings.json").write_text("{")
    assert estimates(plan.read(ASKED, {})) == [None] * 4
