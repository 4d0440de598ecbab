"""What the terminal shows of a sweep holds the numbers of its rows."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console

from autocomp.errors import ConfigError, InfeasibleError
from autocomp.report import format as fmt
from autocomp.sweeps import plan
from autocomp.sweeps.preview import Preview
from autocomp.sweeps.rows import SweepRow, exit_code
from autocomp.sweeps.text import preview_table, sweep_table
from autocomp.testing.summaries import fake_summary


def shown(renderable: object, width: int = 200) -> str:
    console = Console(width=width)
    with console.capture() as capture:
        console.print(renderable)
    return capture.get()


def test_one_line_a_search_then_the_reasons(tmp_path: Path) -> None:
    sweep = plan.read({"sweep": {"budgets": ["4MB", "1kB", "3MB", "2MB"]}}, {}, tmp_path)
    waiting = [SweepRow.waiting(search) for search in sweep.searches]
    assert exit_code(waiting[:1]) == 0
    done = waiting[0].ended(fake_summary(), resumed=False)
    missed = waiting[1].ended(fake_summary(budget_bytes=10), resumed=False)
    refused = waiting[2].failed(InfeasibleError("the smallest file is\n200 kB"))
    failed = waiting[3].failed(ConfigError("no such [file]"))
    assert [r.state for r in (done, missed, refused, failed)] == ["done", "infeasible", "infeasible", "failed"]
    assert (exit_code([done]), exit_code([done, missed]), exit_code([done, missed, failed])) == (0, 3, 2)
    text = shown(sweep_table(sweep, [done, missed, refused, failed]))
    line = next(line for line in text.splitlines() if " 4MB " in line)
    for cell in ("resnet18", "cpu-onnxruntime", "done", "98.61 %", "40", "2 min 37 s"):
        assert cell in line
    assert f"{missed.name}: Nothing meets the constraints. Nearest: smallest file" in text
    assert f"{refused.name}: the smallest file is 200 kB" in text
    assert f"{failed.name}: no such [file]" in text
    assert str(tmp_path / "sweep.html") in text.replace("\n", "")

    narrow = shown(sweep_table(sweep, [done, missed, refused, failed]), width=80)
    assert "left out for want of room: engines" in narrow
    line = next(line for line in narrow.splitlines() if " 4MB " in line)
    for cell in (fmt.size(done.file_bytes), fmt.score(done.score_test, done.metric), fmt.latency(done.latency_ms)):
        assert cell in line, "numbers are never cut"


def test_what_is_not_known_is_not_shown_as_a_number(tmp_path: Path) -> None:
    sweep = plan.read({}, {}, tmp_path)
    lines = [
        Preview(search="a", state="finished", trials=10, done=12, prices="5/5", engines=3, seconds=0.0),
        Preview(search="b", state="begun", trials=10, done=4, prices="", engines=0, seconds=75.0),
        Preview(search="c", state="new", trials=10, done=0, prices="", engines=0, seconds=None),
    ]
    text = shown(preview_table(sweep, lines))
    cells = [line.split() for line in text.splitlines()]
    assert ["a", "finished", "10/10", "5/5", "3", "–"] in cells
    assert ["b", "begun", "4/10", "–", "–", "about", "1", "min", "15", "s"] in cells
    assert ["c", "new", "0/10", "–", "–", "unknown"] in cells
    assert "1 of 3 finished; about 1 min 15 s for 1, unknown for 1\n" in text
