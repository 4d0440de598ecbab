"""The page of a sweep: every search in the table and in the pictures, latencies of two devices never in one."""

from __future__ import annotations

import dataclasses
import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from autocomp.core.result import RunSummary
from autocomp.errors import InfeasibleError
from autocomp.sweeps import plan
from autocomp.sweeps.page import page
from autocomp.sweeps.rows import SweepRow
from autocomp.testing.summaries import fake_summary
from tests.report.test_html import Page

FILE = {
    "sweep": {
        "models": ["resnet18", "torchvision:resnet50"],
        "targets": ["cpu-onnxruntime", "cpu-openvino"],
        "budgets": ["4MB", "2MB"],
    }
}


@pytest.fixture(scope="module")
def swept(tmp_path_factory: pytest.TempPathFactory) -> tuple[plan.Sweep, list[SweepRow], dict[str, RunSummary]]:
    """Eight searches: six with an answer, one that failed before it had a summary, one that waits."""
    sweep = plan.read(FILE, {}, tmp_path_factory.mktemp("out"))
    rows, summaries = [], {}
    for number, search in enumerate(sweep.searches):
        row = SweepRow.waiting(search)
        if number == 5:
            row = row.failed(InfeasibleError("no network of this search space\nfits in <2MB>"))
        elif number != 7:
            budget = 4_000_000 if search.budget == "4MB" else 2_000_000
            summary = fake_summary(trials=24, seed=number, budget_bytes=budget)
            if search.target == "cpu-openvino" and search.model == "resnet18":
                predicted = {"latency_source": "predicted", "latency_ms_ci95": None}
                summary = dataclasses.replace(
                    summary,
                    pareto=tuple(dataclasses.replace(r, **predicted) for r in summary.pareto),
                    best=None if summary.best is None else dataclasses.replace(summary.best, **predicted),
                )
            summaries[search.name] = summary
            row = row.ended(summary, resumed=number == 1)
        rows.append(row)
    return sweep, rows, summaries


@pytest.fixture(scope="module")
def text(swept: Any) -> str:
    return page(*swept, plotly_inline=False)


def test_every_search_is_in_the_table(swept: Any, text: str) -> None:
    _, rows, summaries = swept
    shown = Page(text)
    links = {a["href"] for t, a in shown.tags if t == "a" and not a["href"].startswith("#")}
    assert links == {f"{name}/report.html" for name in summaries}
    for row in rows:
        if row.file_bytes is not None:
            assert f"{row.file_bytes:,}" in shown.text
            assert f"{100 * row.score_test:.2f} %" in shown.text
    assert f"{rows[5].name}, infeasible: no network of this search space fits in <2MB>" in shown.text
    assert "predicted" in shown.text
    assert "last start" in shown.text, "its seconds leave out what the start before took"


def test_every_front_is_drawn_once_and_latencies_by_target(swept: Any) -> None:
    shown = Page(page(*swept))
    models: Any = shown.data()["models"]
    summaries = swept[2]
    assert [m["name"] for m in models] == ["resnet18", "torchvision-resnet50"]
    drawn = {s["name"]: s for m in models for s in m["searches"]}
    assert set(drawn) == set(summaries)
    for name, summary in summaries.items():
        assert [p["bytes"] for p in drawn[name]["front"]] == sorted(r.file_bytes for r in summary.pareto)
        assert (drawn[name]["best"] is None) == (summary.best is None)
    assert [m["latencies"] for m in models] == [
        [{"target": "cpu-onnxruntime", "source": "measured"}, {"target": "cpu-openvino", "source": "predicted"}],
        [{"target": "cpu-onnxruntime", "source": "measured"}, {"target": "cpu-openvino", "source": "measured"}],
    ]
    ids = [a["id"] for _, a in shown.tags if "id" in a]
    assert len(ids) == len(set(ids))
    assert {"size-0", "size-1", "latency-0-0", "latency-0-1", "latency-1-0", "latency-1-1"} <= set(ids)
    assert shown.text.count("are never put in one picture") == 2


def test_nothing_from_outside(text: str) -> None:
    shown = Page(text)
    for tag, attributes in shown.tags:
        assert tag not in ("link", "iframe", "object", "embed", "base", "img")
        assert "src" not in attributes
        assert not any(name.startswith("on") for name in attributes)
    policy = next(a["content"] for t, a in shown.tags if a.get("http-equiv") == "Content-Security-Policy")
    assert policy.startswith("default-src 'none'")


def test_before_anything_is_done(tmp_path: Path) -> None:
    sweep = plan.read(FILE, {}, tmp_path)
    shown = Page(page(sweep, [SweepRow.waiting(s) for s in sweep.searches], {}))
    assert "8 searches: 8 waiting" in shown.text
    assert shown.data() == {"models": []}


def test_texts_are_escaped(swept: Any) -> None:
    sweep, rows, summaries = swept
    evil = "</script><script>alert(1)</script>"
    bad = {n: dataclasses.replace(s, metric={**s.metric, "name": evil}) for n, s in summaries.items()}
    worse = [dataclasses.replace(row, model=evil, target=evil, budget=evil, reason=evil) for row in rows]
    shown = Page(page(dataclasses.replace(sweep, source=evil), worse, bad, plotly_inline=False))
    assert len(shown.scripts) == 2
    assert evil in shown.text
    assert "<script>" not in json.dumps(shown.data())


@pytest.mark.parametrize("width", [1400, 600])
def test_a_browser_draws_every_picture(swept: Any, tmp_path: Path, width: int) -> None:
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("no Chromium on this machine: the page was not drawn")
    path = tmp_path / "sweep.html"
    path.write_text(page(*swept), encoding="utf-8")
    done = subprocess.run(
        [
            *(chromium, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}"),
            *("--enable-logging=stderr", "--virtual-time-budget=20000", f"--window-size={width},2000", "--dump-dom"),
            path.as_uri(),
        ],
        capture_output=True,
        text=True,
        timeout=240,
        check=True,
    )
    after = done.stdout[: done.stdout.index('<script type="application/json"')]
    assert after.count('class="xtitle"') == after.count('class="ytitle"') == 6
    assert after.count('class="point"') > 100
    assert "Uncaught" not in done.stderr
