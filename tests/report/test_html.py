"""The page: self-contained, escaped, and it holds the numbers."""

from __future__ import annotations

import dataclasses
import json
from html.parser import HTMLParser
from pathlib import Path

import pytest

from autocomp.core.result import RunSummary
from autocomp.errors import StorageError
from autocomp.report import html
from autocomp.testing.summaries import fake_summary

VOID = {"meta", "link", "img", "br", "input", "hr", "source", "base"}
LOADING = {"src", "srcset", "poster", "background", "action", "formaction", "data", "xlink:href"}

PNG = b"a picture, drawn elsewhere"


def small(summary: RunSummary) -> str:
    """The page without plotly."""
    return html.page(summary, plotly_inline=False, picture=PNG)


class Page(HTMLParser):
    """What a browser would see: tags, attributes, text outside scripts and styles, scripts."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.text, self.scripts, self.styles = "", [], ""
        self.open: list[str] = []
        self.feed(text)
        self.close()
        assert not self.open, f"never closed: {self.open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, {k: v or "" for k, v in attrs}))
        if tag not in VOID:
            self.open.append(tag)
        if tag == "script":
            self.scripts.append("")

    def handle_endtag(self, tag: str) -> None:
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] == "script":
            self.scripts[-1] += data
        elif self.open and self.open[-1] == "style":
            self.styles += data
        else:
            self.text += data

    def data(self) -> dict[str, object]:
        return json.loads(next(s for s in self.scripts if s.startswith("{")))


@pytest.fixture(scope="module")
def summary() -> RunSummary:
    return fake_summary()


@pytest.fixture(scope="module")
def page(summary: RunSummary) -> Page:
    return Page(html.page(summary, picture=PNG))


def test_loads_nothing(page: Page) -> None:
    for tag, attributes in page.tags:
        assert tag not in ("link", "iframe", "object", "embed", "base"), tag
        for name, value in attributes.items():
            if name in LOADING:
                assert value.startswith("data:image/png;base64,"), (tag, name, value[:80])
            if name == "href":
                assert value.startswith("#"), value
            assert not name.startswith("on"), "event handlers in markup"
    assert "url(" not in page.styles
    assert "@import" not in page.styles
    policy = next(a["content"] for t, a in page.tags if a.get("http-equiv") == "Content-Security-Policy")
    assert policy.startswith("default-src 'none'")
    assert "http" not in policy


def test_size_of_the_page(summary: RunSummary) -> None:
    """plotly.js is 4.8 MB; all the rest stays small."""
    assert 4_000_000 < len(html.page(summary, picture=PNG)) < 6_000_000
    assert len(html.page(summary, plotly_inline=False)) < 500_000


def test_page_without_plotly_shows_the_picture(summary: RunSummary) -> None:
    page = Page(small(summary))
    assert any(t == "img" and a["alt"] for t, a in page.tags)
    assert not any("id" in a and a["id"].startswith("plot-") for _, a in page.tags)


def test_numbers_of_rows_appear(page: Page, summary: RunSummary) -> None:
    assert summary.best is not None
    rows = [summary.best, summary.float32, *summary.baselines.values(), *summary.pareto]
    for row in rows:
        assert f"{row.file_bytes:,}" in page.text
        assert f"{100 * row.score_search:.2f} %" in page.text
    assert "98.61 %" in page.text, "test score"
    assert "[96.78, 99.40] %" in page.text, "its interval"
    assert "4,000,000" in page.text, "budget"
    for layer in summary.layers:
        assert layer.layer in page.text
        assert f"{layer.coded_bytes:,}" in page.text
    for name, reason in summary.skipped:
        assert name in page.text
        assert reason in page.text
    for text in (*summary.notes, *summary.failures, *summary.versions, summary.target, summary.run):
        assert text in page.text
    for stage in summary.seconds:
        assert stage in page.text


def test_chart_data_holds_every_row_once(page: Page, summary: RunSummary) -> None:
    groups = page.data()["groups"]
    assert isinstance(groups, dict)
    drawn = [p["bytes"] for name in ("infeasible", "feasible", "front") for p in groups[name]]
    assert sorted(drawn) == sorted(r.file_bytes for r in summary.trials)
    assert [p["name"] for p in groups["baselines"]] == list(summary.baselines)
    assert len(groups["best"]) == len(groups["float32"]) == 1


def test_every_text_is_escaped(summary: RunSummary) -> None:
    evil = "</script><script>alert(1)</script><img src=x onerror=alert(1)>{{ 7*7 }}"
    assert summary.best is not None
    bad_row = dataclasses.replace(summary.best, name=evil, notes=(evil,), file=evil, techniques=(evil,))
    bad = dataclasses.replace(
        summary,
        model=evil,
        data=evil,
        target=evil,
        run=evil,
        metric={"name": evil, "direction": evil, "unit": evil},
        best=bad_row,
        float32=dataclasses.replace(summary.float32, name=evil),
        baselines={evil: bad_row},
        pareto=(dataclasses.replace(bad_row, recipe={evil: [{"kind": evil, "bits": evil}]}),),
        constraints={evil: 1.0},
        failures={evil: 1},
        seconds={evil: 1.0},
        versions={evil: evil},
        settings={evil: evil},
        environment={evil: {evil: [evil]}},
        layers=tuple(
            dataclasses.replace(x, layer=evil, kind=evil, choice=evil, executes=evil, prices=((evil, 1, 1.0),))
            for x in summary.layers[:2]
        ),
        skipped=((evil, evil),),
        notes=(evil,),
    )
    page = Page(small(bad))
    assert len(page.scripts) == 2, "the data and the page's own script"
    assert not any(a.get("src") == "x" or "onerror" in a for _, a in page.tags)
    assert evil in page.text
    assert "{{ 7*7 }}" in page.text
    assert "<" not in json.dumps(page.data()).replace("<br>", ""), "hover texts are markup to plotly"


def test_infeasible_run_says_so() -> None:
    page = Page(small(fake_summary(budget_bytes=10)))
    assert "Nothing meets the constraints" in page.text
    assert "smallest file" in page.text


@pytest.mark.parametrize("trials", [0, 1])
def test_nearly_empty_runs(trials: int) -> None:
    Page(small(fake_summary(trials=trials)))


def test_energy_is_shown_where_it_was_counted(summary: RunSummary) -> None:
    assert "Energy of an inference" not in small(summary)
    assert summary.best is not None
    best = dataclasses.replace(summary.best, energy_mj=3.0)
    assert "<dd>3.00 mJ</dd>" in small(dataclasses.replace(summary, best=best))


def test_run_without_latency() -> None:
    page = Page(small(fake_summary(latency=False)))
    assert "latency, measured in turn" not in page.text


def test_no_budget_and_a_loss_as_metric() -> None:
    summary = fake_summary(budget_bytes=None)
    metric = {"name": "mse", "direction": "minimize", "unit": ""}
    trials = tuple(dataclasses.replace(r, score_search=r.kl_search) for r in summary.trials)
    page = Page(small(dataclasses.replace(summary, metric=metric, trials=trials)))
    assert page.data()["loss"] == "mse (search split)"


def test_numbers_that_json_has_no_word_for(summary: RunSummary) -> None:
    broken = dataclasses.replace(summary.trials[0], kl_search=float("inf"), score_search=float("nan"))
    page = Page(small(dataclasses.replace(summary, trials=(broken, *summary.trials[1:]))))
    assert page.data()["groups"]


def test_says_when_it_is_slower(summary: RunSummary) -> None:
    assert summary.best is not None
    slow = dataclasses.replace(summary.best, latency_ms=9.0, latency_ms_ci95=(8.9, 9.1))
    assert "Slower than float32" in Page(small(dataclasses.replace(summary, best=slow))).text
    assert "Slower than float32" not in Page(small(summary)).text


def test_command_repeats_the_request(summary: RunSummary) -> None:
    settings = {**summary.settings, "model": "my file.py:net", "max_latency_s": 0.002, "max_engine_bytes": 8_000_000}
    settings |= {"seed": 3, "trials": 7, "batch_size": [1, 8]}
    command = html.command(dataclasses.replace(summary, settings=settings))
    assert command == (
        "autocomp search 'my file.py:net' --budget 4MB --max-latency 2ms --max-engine-size 8000000 --max-drop 1% "
        "--batch-size 1,8 --trials 7 --seed 3"
    )


def test_call_is_shown_where_the_network_was_an_object(summary: RunSummary) -> None:
    settings = {**summary.settings, "model": "<object>", "data": "<object>", "max_latency_s": 0.002, "preset": "quick"}
    command = html.command(dataclasses.replace(summary, settings=settings | {"batch_size": [1, 8]}))
    assert command.startswith("autocomp.search(model, data, budget='4MB', ")
    for part in ("max_latency='2ms'", "max_drop='1%'", "preset='quick'", "batch_size='1,8'"):
        assert part in command


def test_accessible(page: Page) -> None:
    tags = [t for t, _ in page.tags]
    assert tags.count("h1") == tags.count("main") == 1
    assert tags.count("caption") == tags.count("table")
    assert all("alt" in a for t, a in page.tags if t == "img")
    assert all(a.get("scope") for t, a in page.tags if t == "th")
    assert dict(page.tags)["html"]["lang"] == "en"
    ids = [a["id"] for _, a in page.tags if "id" in a]
    assert len(ids) == len(set(ids))
    assert {a["href"][1:] for t, a in page.tags if t == "a"} <= set(ids)


def test_unwritable_place(summary: RunSummary, tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="cannot write"):
        html.write_html(summary, tmp_path / "missing" / "report.html", plotly_inline=False)
