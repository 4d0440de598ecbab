"""Studies in a journal file: one record a line, appended and flushed to the disk.

Writers exclude one another with a lock file made by ``O_EXCL``, so the file may lie on a shared file system without
``flock``, NFS 3 or later included. Assumed is what that needs: creating a file is atomic, and what one machine has
written and closed, another that opens the file reads.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend

from autocomp.errors import ConfigError, CorruptFileError, StorageError
from autocomp.search._optuna_private import JournalLock

SCHEME = "journal://"


def path_of(location: str) -> Path:
    """The file of "journal:///shared/study.journal".

    Raises:
        ConfigError: no path, or a relative one.
        StorageError: its folder is not there (a shared file system that is not mounted).
    """
    text = location.removeprefix(SCHEME)
    path = Path("/" + text.lstrip("/"))  # SQLite's URLs have four slashes before an absolute path
    if not text.startswith("/") or not path.name:
        raise ConfigError(f"storage: {location!r} names no absolute path; write journal:///shared/study.journal")
    if not path.parent.is_dir():
        raise StorageError(f"storage {location}: there is no folder {path.parent}; make or mount it")
    return path


def open_journal(path: Path, *, repair: bool) -> JournalStorage:
    """Open the journal at ``path``, made when missing.

    Args:
        repair: remove what a killed writer left; only for the study's exclusive owner.

    Raises:
        CorruptFileError: it holds lines that are no records.
    """
    lock = JournalLock(str(path))
    if repair:
        lock.clear_stale()
        repair_journal(path, lock)
    try:
        return JournalStorage(JournalFileBackend(str(path), lock_obj=lock))
    except (ValueError, KeyError, TypeError) as error:
        raise CorruptFileError(
            f"{path}: line {_first_bad_line(path)} is no record of a study journal ({type(error).__name__}); "
            "restore the file or start over with --fresh"
        ) from None


def repair_journal(path: Path, lock: JournalLock) -> int:
    """Cut what stands behind the last newline: a record that was being written when the power went.

    A later append would glue to it and make the file unreadable for good. Returns the bytes cut.
    """
    if not path.exists():
        return 0
    lock.acquire()
    try:
        with path.open("r+b") as file:
            size = end = file.seek(0, os.SEEK_END)
            while end > 0:
                start = max(0, end - 65536)
                file.seek(start)
                newline = file.read(end - start).rfind(b"\n")
                end = start + newline + 1 if newline >= 0 else start
                if newline >= 0:
                    break
            if end < size:
                file.truncate(end)
                file.flush()
                os.fsync(file.fileno())
            return size - end
    finally:
        lock.release()


def _first_bad_line(path: Path) -> int:
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            try:
                if not isinstance(json.loads(line), dict):
                    return number
            except ValueError:
                return number
    return 1
