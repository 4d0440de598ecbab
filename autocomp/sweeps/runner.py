"""Run a sweep: one search after the other, its state written after each; the same call goes on where it stopped."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import traceback
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from typing import Any

import autocomp
from autocomp import pipeline
from autocomp.core.owner import Owner
from autocomp.core.progress import Progress
from autocomp.core.result import RunSummary
from autocomp.core.run_folder import RunFolder, storage_errors, write_atomic
from autocomp.errors import AutocompError, StorageError, UnexpectedError
from autocomp.report import format as fmt
from autocomp.report.assets import finite
from autocomp.stages.opening import already_finished
from autocomp.sweeps.page import page
from autocomp.sweeps.plan import Search, Sweep
from autocomp.sweeps.rows import BEGUN, STATE, SweepRow, earlier, frame

PAGE, TABLE, LOG = "sweep.html", "sweep.csv", "log.txt"


def run(
    sweep: Sweep,
    *,
    progress: Callable[[], AbstractContextManager[Progress]],
    say: Callable[[str], None],
    fresh: bool = False,
) -> list[SweepRow]:
    """Do every search that is not finished yet. One that cannot be done is a row with its reason.

    Args:
        sweep: what was asked.
        progress: opens the receiver of one search's progress.
        say: takes one line between the searches.
        fresh: start over in a folder that holds an earlier sweep.

    Returns:
        One row a search, in the order of the file.

    Raises:
        StorageError: the folder belongs to something else, is in use, or cannot be written.
    """
    with storage_errors(sweep.folder), _opened(sweep, fresh=fresh):
        before = {} if fresh else earlier(sweep.folder)
        board = Board(sweep)
        for search in sweep.searches:
            finished = None if fresh else already_finished(RunFolder(search.settings.out), search.settings)
            if finished is not None:
                known = before.get(search.name)
                board.end(search, finished, resumed=known is not None and known.resumed)
        board.store()
        for number, search in enumerate(sweep.searches, start=1):
            place = f"{number} of {len(sweep.searches)}: {search.name}"
            row = board.rows[search.name]
            if search.name in board.summaries:
                say(f"{place}: finished before, {outcome(row, board.summaries[search.name])}")
                continue
            say(place)
            resumed = not fresh and RunFolder(search.settings.out).journal.is_file()
            board.set(search, dataclasses.replace(row, state=BEGUN, resumed=resumed))
            try:
                with storage_errors(search.settings.out), progress() as receiver:
                    found = pipeline.search(search.settings, receiver, fresh=fresh)
            except Exception as error:  # noqa: BLE001 - a defect that one search meets must not keep the others back
                log = sweep.folder / LOG
                _log(log, search, error)
                said = error if isinstance(error, AutocompError) else UnexpectedError.of(error, log)
                board.set(search, row.failed(said))
                say(f"{place}: {board.rows[search.name].reason}")
            else:
                board.end(search, found, resumed=resumed)
                board.store()
                say(f"{place}: {outcome(board.rows[search.name], found)}")
        return list(board.rows.values())


def outcome(row: SweepRow, summary: RunSummary) -> str:
    """What a search found, in one line."""
    return row.reason or fmt.answer(summary)


class Board:
    """Rows so far, and the files of the sweep that are made from them.

    Args:
        sweep: what was asked.

    Attributes:
        rows: by name of the search, in the order they run.
        summaries: of the finished searches, by name; without their trials, which the page does not show.
    """

    def __init__(self, sweep: Sweep) -> None:
        self._sweep = sweep
        self.rows = {search.name: SweepRow.waiting(search) for search in sweep.searches}
        self.summaries: dict[str, RunSummary] = {}

    def end(self, search: Search, summary: RunSummary, *, resumed: bool) -> None:
        """A search is finished."""
        self.rows[search.name] = self.rows[search.name].ended(summary, resumed=resumed)
        self.summaries[search.name] = dataclasses.replace(summary, trials=(), layers=())

    def set(self, search: Search, row: SweepRow) -> None:
        """Replace the row of a search, and write."""
        self.rows[search.name] = row
        self.store()

    def store(self) -> None:
        """Write ``sweep.json``, ``sweep.csv`` and ``sweep.html``, each at once."""
        folder, rows = self._sweep.folder, list(self.rows.values())
        write_atomic(folder / STATE, json.dumps(finite(state(self._sweep, rows)), indent=1, allow_nan=False).encode())
        write_atomic(folder / TABLE, frame(rows).to_csv(index=False, lineterminator="\n").encode())
        write_atomic(folder / PAGE, page(self._sweep, rows, self.summaries).encode())


def state(sweep: Sweep, rows: list[SweepRow]) -> dict[str, Any]:
    """What ``sweep.json`` holds and ``--json`` prints."""
    counts: dict[str, int] = {}
    for row in rows:
        counts[row.state] = counts.get(row.state, 0) + 1
    return {
        "sweep": str(sweep.folder),
        "file": sweep.source,
        "autocomp": autocomp.__version__,
        "counts": counts,
        "rows": [dataclasses.asdict(row) for row in rows],
    }


@contextmanager
def _opened(sweep: Sweep, *, fresh: bool) -> Iterator[None]:
    """The folder, held by this process. A folder with other files is refused."""
    folder, cache = sweep.folder, sweep.folder / "cache"
    strange = folder.exists() and any(p.name != "cache" for p in folder.iterdir())
    if (strange and not (folder / STATE).is_file()) or (cache / "identity.json").is_file():
        raise StorageError(f"{folder} holds other files and no sweep; choose another folder with --out")
    cache.mkdir(parents=True, exist_ok=True)
    owner = Owner(cache / "lock", thing="sweep", where=folder)
    try:
        if fresh and sweep.own_cache:
            for part in ("survey", "engines", "coupling"):
                shutil.rmtree(cache / part, ignore_errors=True)
        for search in sweep.searches if fresh else ():  # all at once: what is killed now goes on without --fresh
            if search.settings.out.is_dir():
                with suppress(AutocompError):  # said when its turn comes
                    RunFolder(search.settings.out).open(search.settings, fresh=True).close()
        yield
    finally:
        owner.release()


def _log(path: Path, search: Search, error: Exception) -> None:
    with path.open("a", encoding="utf-8") as log:
        log.write(f"{search.name}{os.linesep}{''.join(traceback.format_exception(error))}{os.linesep}")
