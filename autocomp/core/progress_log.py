"""What a search says of its progress, in a file as well: ``autocomp watch`` follows it from anywhere.

One JSON object a line, appended as things happen. The file is for people: nothing is decided by it, no part of a
search waits for it (a thread writes), and a disk that takes no more of it ends only the file. It is replaced when
another process goes on with the run, and written anew, shorter, where it has grown: readers read it whole.
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import shlex
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any

from autocomp.core.progress import Progress
from autocomp.core.run_folder import RunFolder, write_atomic
from autocomp.core.settings import Settings, without_password
from autocomp.errors import CorruptFileError, StorageError

LIMIT_BYTES = 256_000
"""The file is written anew, without what is outdated, when it has grown to this."""
TICK_S = 0.5
"""What is said within this time is written together."""
KEPT = 50
"""Stages and notes that a file written anew keeps, the newest ones; a note is cut at 1000 characters."""

Record = dict[str, Any]


@contextlib.contextmanager
def logged(run: RunFolder, settings: Settings, progress: Progress, stages: Sequence[str]) -> Iterator[Progress]:
    """Progress for the block that is also written to ``run.progress``, and how the block ended.

    Args:
        run: an open run folder.
        settings: of the run: how many jobs, which cluster.
        progress: is told everything as it would be without the file.
        stages: names of the stages to expect, for the checklist.
    """
    about = {"command": _command(), "folder": _folder(), "host": platform.node(), "process": os.getpid()}
    about |= {"jobs": settings.jobs, "cluster": settings.cluster, "stages": list(stages)}
    log = ProgressLog(progress, run.progress, about)
    how, text = "failed", ""
    try:
        yield log
        how = "finished"
    except KeyboardInterrupt:
        how = "interrupted"
        raise
    except Exception as error:
        text = " ".join(str(error).split()) or type(error).__name__
        raise
    finally:
        log.close(how, text)


class ProgressLog:
    """Tells another receiver, and writes it down.

    Args:
        inner: the other receiver.
        path: file, replaced.
        about: what the first record says of the process.
    """

    def __init__(self, inner: Progress, path: Path, about: dict[str, Any]) -> None:
        self._inner, self._path = inner, path
        self._start = _record("start", **about)
        self._stages: deque[Record] = deque(maxlen=KEPT)
        self._notes: deque[Record] = deque(maxlen=KEPT)
        self._steps: Record | None = None  # of the running stage; cumulative, so only the newest counts
        self._end: Record | None = None
        self._unsaid: list[Record] = []
        self._lock = threading.RLock()
        self._something, self._closing = threading.Event(), threading.Event()
        self._file: IO[bytes] | None = None
        try:
            self._write_whole()
        except OSError as error:
            self._give_up(error)
        self._thread = threading.Thread(target=self._write_on, name="autocomp-progress", daemon=True)
        self._thread.start()

    def stage(self, name: str, total: int | None = None, done: int = 0) -> None:
        self._inner.stage(name, total, done)
        record = _record("stage", name=name, total=total, done=done)
        with self._lock:
            self._stages += [record] if self._steps is None else [self._steps, record]
            self._steps = _record("advance", done=done, facts={})
            self._say(record)

    def advance(self, steps: int = 1, **facts: Any) -> None:
        self._inner.advance(steps, **facts)
        with self._lock:
            if self._steps is None:
                return
            record = _record("advance", done=self._steps["done"] + steps, facts={**self._steps["facts"], **facts})
            self._steps = record
            self._say(record)

    def note(self, text: str) -> None:
        self._inner.note(text)
        record = _record("note", text=without_password(text)[:1000])
        with self._lock:
            self._notes.append(record)
            self._say(record)

    def close(self, how: str, text: str = "") -> None:
        """Say how it ended, and end the file.

        Args:
            how: "finished", "interrupted" or "failed".
            text: why it failed, one line.
        """
        with self._lock:
            self._end = _record("end", how=how, text=without_password(text)[:1000])
            self._say(self._end)
        self._closing.set()
        self._thread.join()
        if self._file is not None:
            self._file.close()
            self._file = None

    def _say(self, record: Record) -> None:
        with self._lock:
            if self._unsaid and self._unsaid[-1]["is"] == record["is"] == "advance":
                self._unsaid.pop()
            self._unsaid.append(record)
        self._something.set()

    def _write_on(self) -> None:
        done = False
        while not done:
            self._something.wait()
            done = self._closing.wait(TICK_S)
            self._something.clear()
            self._write()

    def _write(self) -> None:
        with self._lock:
            data, self._unsaid = _lines(self._unsaid), []
        if self._file is None or not data:
            return
        try:
            if self._file.tell() + len(data) > LIMIT_BYTES:
                self._file.close()
                self._write_whole()
            else:
                self._file.write(data)
                os.fsync(self._file.fileno())  # so that other machines see it
        except OSError as error:
            self._give_up(error)

    def _write_whole(self) -> None:
        """Replace the file by what is known now, and keep it open for more."""
        with self._lock:
            self._unsaid.clear()
            known = [*self._stages, *self._notes, *([] if self._steps is None else [self._steps])]
            known.sort(key=lambda record: float(record["at_s"]))
            ends = [] if self._end is None else [self._end]
        write_atomic(self._path, _lines([self._start, *known, *ends]))
        self._file = self._path.open("ab", buffering=0)

    def _give_up(self, error: OSError) -> None:
        if self._file is not None:
            with contextlib.suppress(OSError):
                self._file.close()
            self._file = None
        self._inner.note(f"{self._path}: {error.strerror}; `autocomp watch` sees nothing further of this run")


def read_progress(path: Path) -> list[Record]:
    """The records of a file, the first of which is its "start"; a line that is just being written is left out.

    Raises:
        FileNotFoundError: there is none.
        StorageError: it cannot be read.
        CorruptFileError: a line is no record.
    """
    try:
        lines = path.read_bytes().split(b"\n")[:-1]
    except FileNotFoundError:
        raise
    except OSError as error:
        raise StorageError(f"{path} cannot be read: {error.strerror}; ask its owner for the right to") from None
    records = []
    for number, line in enumerate(lines, start=1):
        try:
            record = json.loads(line)
            known = isinstance(record, dict) and isinstance(record["at_s"], int | float) and record["is"] in _FIELDS
            if not known or not _FIELDS[record["is"]] <= set(record) or (number == 1) != (record["is"] == "start"):
                raise ValueError
        except (ValueError, KeyError, TypeError):
            raise CorruptFileError(
                f"{path}: line {number} is no record of a search's progress; run the search command again, which "
                "writes the file anew"
            ) from None
        records.append(record)
    if not records:
        raise CorruptFileError(f"{path} is empty; run the search command again, which writes the file anew")
    return records


_FIELDS: dict[str, set[str]] = {
    "start": {"command", "folder", "host", "process", "jobs", "cluster", "stages"},
    "stage": {"name", "total", "done"},
    "advance": {"done", "facts"},
    "note": {"text"},
    "end": {"how", "text"},
}


def _record(kind: str, **fields: Any) -> Record:
    """A record of now; ``at_s`` is the time of this machine's clock."""
    return {"at_s": round(time.time(), 3), "is": kind, **fields}


def _lines(records: Sequence[Record]) -> bytes:
    return "".join(json.dumps(record, default=str) + "\n" for record in records).encode()


def _command() -> str:
    """What goes on with this run, for people: passwords are hidden, and it does not start over."""
    program = Path(sys.argv[0]).name
    words = ["autocomp"] if program in ("autocomp", "__main__.py") else ["python", sys.argv[0]]
    words += [without_password(word) for word in sys.argv[1:] if word != "--fresh"]
    return shlex.join(words)


def _folder() -> str:
    """Where that command was given; it may have been removed since."""
    try:
        return os.getcwd()
    except FileNotFoundError:
        return ""
