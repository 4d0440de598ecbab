"""The file that says what a search does: whole, bounded, and never in the way."""

from __future__ import annotations

import json
import resource
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from autocomp.core import progress_log
from autocomp.core.progress_log import LIMIT_BYTES, ProgressLog, logged, read_progress
from autocomp.core.run_folder import RunFolder
from autocomp.core.settings import Settings
from autocomp.errors import AutocompError, CorruptFileError, InfeasibleError, StorageError

ABOUT = {"command": "autocomp search", "folder": "/", "host": "h", "process": 1, "jobs": 1, "cluster": None}


class Remembered:
    """What the terminal would have been told."""

    def __init__(self) -> None:
        self.said: list[tuple[Any, ...]] = []

    def stage(self, name: str, total: int | None = None, done: int = 0) -> None:
        self.said.append(("stage", name, total, done))

    def advance(self, steps: int = 1, **facts: Any) -> None:
        self.said.append(("advance", steps, facts))

    def note(self, text: str) -> None:
        self.said.append(("note", text))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "progress.jsonl"


@pytest.fixture
def inner() -> Remembered:
    return Remembered()


@pytest.fixture
def log(path: Path, inner: Remembered) -> Iterator[ProgressLog]:
    log = ProgressLog(inner, path, {**ABOUT, "stages": ["survey", "search"]})
    yield log
    log.close("finished")


def told(path: Path) -> list[dict[str, Any]]:
    return [{k: v for k, v in record.items() if k != "at_s"} for record in read_progress(path)]


def test_both_are_told_everything(log: ProgressLog, inner: Remembered, path: Path) -> None:
    log.stage("survey", total=2)
    log.advance(2, unit="conv1")
    log.note("head stays float32; postgresql://me:secret@host/db")
    log.stage("search", total=9, done=4)
    log.advance(1, failures={"build/oom": 1})
    log.advance(0, workers=3)
    log.close("failed", "disk full")
    assert told(path) == [
        {"is": "start", **ABOUT, "stages": ["survey", "search"]},
        {"is": "stage", "name": "survey", "total": 2, "done": 0},
        {"is": "advance", "done": 2, "facts": {"unit": "conv1"}},
        {"is": "note", "text": "head stays float32; postgresql://me:***@host/db"},
        {"is": "stage", "name": "search", "total": 9, "done": 4},
        {"is": "advance", "done": 5, "facts": {"failures": {"build/oom": 1}, "workers": 3}},
        {"is": "end", "how": "failed", "text": "disk full"},
    ]
    assert [kind for kind, *_ in inner.said] == ["stage", "advance", "note", "stage", "advance", "advance"]


def test_file_is_bounded_and_keeps_what_counts(log: ProgressLog, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress_log, "TICK_S", 0.0)
    sizes = []
    log.stage("survey", total=1)
    log.advance(1)
    log.stage("search", total=100_000)
    for i in range(1, 3001):
        log.advance(1, front=i, best="x" * 200)
        log.note(f"{i} {'y' * 200}")
        if i % 100 == 0:
            sizes.append(path.stat().st_size)
    log.close("finished")
    assert max(sizes) <= LIMIT_BYTES
    records = told(path)
    assert [r["name"] for r in records if r["is"] == "stage"] == ["survey", "search"]
    assert [r for r in records if r["is"] == "advance"][-1]["done"] == 3000
    notes = [int(r["text"].split()[0]) for r in records if r["is"] == "note"]
    assert notes == sorted(set(notes)), "none twice"
    assert notes[-1] == 3000
    assert records[-1]["is"] == "end"


def test_threads_lose_no_step(log: ProgressLog, path: Path) -> None:
    log.stage("search", total=4000)
    threads = [threading.Thread(target=lambda: [log.advance() for _ in range(1000)]) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    log.close("finished")
    assert [r for r in told(path) if r["is"] == "advance"][-1]["done"] == 4000


def test_full_disk_ends_the_file_only(log: ProgressLog, inner: Remembered, path: Path) -> None:
    log.stage("search", total=9)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size, hard))
    try:
        log.advance(3)
        log.close("finished")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert inner.said[1] == ("advance", 3, {})
    assert "autocomp watch" in inner.said[2][1]
    log.advance(1)
    assert len(inner.said) == 4
    assert told(path)[0]["is"] == "start"


def test_folder_that_takes_no_file_is_no_error(tmp_path: Path, inner: Remembered) -> None:
    (tmp_path / "file").touch()
    log = ProgressLog(inner, tmp_path / "file" / "progress.jsonl", {**ABOUT, "stages": []})
    log.stage("search")
    log.close("finished")
    assert [kind for kind, *_ in inner.said] == ["note", "stage"]


@pytest.mark.parametrize(
    ("error", "how"),
    [(None, "finished"), (KeyboardInterrupt(), "interrupted"), (InfeasibleError("too\nsmall"), "failed")],
)
def test_block_says_how_it_ended(tmp_path: Path, inner: Remembered, error: BaseException | None, how: str) -> None:
    settings = Settings(out=tmp_path / "run", jobs=2)
    run = RunFolder(settings.out).open(settings)

    def work() -> None:
        with logged(run, settings, inner, ("search",)) as progress:
            progress.stage("search", total=1)
            if error is not None:
                raise error

    if error is None:
        work()
    else:
        with pytest.raises(type(error)):
            work()
    run.close()
    records = told(run.progress)
    assert (records[0]["jobs"], records[0]["stages"]) == (2, ["search"])
    assert records[-1] == {"is": "end", "how": how, "text": "too small" if isinstance(error, AutocompError) else ""}


def test_command_to_go_on_hides_passwords_and_does_not_start_over(
    tmp_path: Path, inner: Remembered, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["/usr/bin/autocomp", "search", "--fresh", "--out", "my run", "--storage", "postgresql://me:secret@host/db"]
    monkeypatch.setattr("sys.argv", words)
    settings = Settings(out=tmp_path / "run", storage=words[-1])
    run = RunFolder(settings.out).open(settings)
    with logged(run, settings, inner, ()):
        pass
    run.close()
    start = told(run.progress)[0]
    assert start["command"] == "autocomp search --out 'my run' --storage 'postgresql://me:***@host/db'"


def test_line_being_written_is_left_out(log: ProgressLog, path: Path) -> None:
    log.close("finished")
    whole = told(path)
    with path.open("a") as file:
        file.write('{"at_s": 1, "is": "no')
    assert told(path) == whole


@pytest.mark.parametrize(
    "line", ["nonsense", "[]", "{}", '{"at_s": 1, "is": "stage"}', '{"at_s": "x", "is": "note", "text": ""}', "null"]
)
def test_line_that_is_no_record_is_named(log: ProgressLog, path: Path, line: str) -> None:
    log.close("finished")
    lines = path.read_text().splitlines()
    path.write_text("\n".join([lines[0], line, *lines[1:]]) + "\n")
    with pytest.raises(CorruptFileError, match=r"progress\.jsonl: line 2 is no record") as caught:
        read_progress(path)
    assert "\n" not in str(caught.value)


def test_file_of_another_kind(tmp_path: Path) -> None:
    folder = tmp_path / "progress.jsonl"
    folder.mkdir()
    with pytest.raises(StorageError, match="cannot be read: Is a directory"):
        read_progress(folder)
    other = tmp_path / "other"
    other.write_text(json.dumps({"at_s": 1, "is": "note", "text": "no start"}) + "\n")
    with pytest.raises(CorruptFileError, match="line 1"):
        read_progress(other)
