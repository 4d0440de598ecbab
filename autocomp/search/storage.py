"""Where the study is kept: a journal file in the run folder, or any Optuna storage URL.

One process at a time drives a study: an exclusive ``flock``, which the kernel frees on any death.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import optuna
from optuna.storages import BaseStorage, JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend

from autocomp.errors import ConfigError, CorruptFileError, StorageError, UnsupportedError
from autocomp.search._optuna_private import JournalLock

if TYPE_CHECKING:
    from sqlalchemy.engine import Connection, Engine

optuna.logging.set_verbosity(optuna.logging.CRITICAL)


class OwnerLock:
    """Exclusive right to drive a study, held until :meth:`release` or the end of the process.

    Args:
        path: file that is locked; it holds the owner's process id for people.

    Raises:
        StorageError: another process holds it, or the folder cannot be written.
    """

    def __init__(self, path: Path) -> None:
        self._file: IO[str] | None = None
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            file = path.open("a+", encoding="ascii")
        except OSError as error:
            raise StorageError(f"{path}: {error.strerror}; choose an output folder that can be written") from None
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            owner = file.read(20).strip()
            file.close()
            process = f"process {owner}" if owner.isdigit() else "another process"
            raise StorageError(
                f"{path.parent}: {process} is driving this study; wait for it, stop it, or choose another --out"
            ) from None
        except OSError as error:
            file.close()
            raise StorageError(f"{path}: cannot be locked ({error.strerror}); choose --out on a local disk") from None
        file.seek(0)
        file.truncate()
        file.write(f"{os.getpid()}\n")
        file.flush()
        self._file = file

    def release(self) -> None:
        """Give the right back; harmless when done before."""
        if self._file is not None:
            self._file.close()
            self._file = None


class StudyStorage:
    """An open Optuna storage.

    Attributes:
        storage: for ``optuna.create_study``.
        where: path or URL without password, for messages.
    """

    def __init__(self, storage: BaseStorage, where: str, owner: OwnerLock | None) -> None:
        self.storage = storage
        self.where = where
        self._owner = owner

    def close(self) -> None:
        """Close connections and let another process drive the study."""
        self.storage.remove_session()
        if isinstance(self.storage, RDBStorage):
            self.storage.engine.dispose()
        if self._owner is not None:
            self._owner.release()

    def __enter__(self) -> StudyStorage:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def open_storage(location: str | Path, *, lock: Path | None = None, exclusive: bool = True) -> StudyStorage:
    """Open the journal file or the database at ``location``.

    Args:
        location: path of a journal file (made when missing), or a URL ("sqlite:///study.db",
            "postgresql://...").
        lock: file that makes this process the only driver; default: beside the journal or the
            SQLite file. Give one for a database server.
        exclusive: False to read only: takes no lock and repairs nothing.

    Raises:
        StorageError: driven by another process, or cannot be opened or written.
        CorruptFileError: the journal holds lines that are no records.
        ConfigError, UnsupportedError: no such kind of URL; its driver is not installed.
    """
    if isinstance(location, str) and "://" in location:
        return _open_url(location, lock, exclusive)
    path = Path(location).absolute()
    if not exclusive and not path.is_file():
        raise StorageError(f"{path}: there is no study; run the search first")
    owner = OwnerLock(lock or path.with_suffix(".pid")) if exclusive else None
    with _released_on_error(owner), durable(str(path)):
        journal_lock = JournalLock(str(path))
        if exclusive:
            journal_lock.clear_stale()
            repair_journal(path, journal_lock)
        try:
            storage = JournalStorage(JournalFileBackend(str(path), lock_obj=journal_lock))
        except (ValueError, KeyError, TypeError) as error:
            raise CorruptFileError(
                f"{path}: line {_first_bad_line(path)} is no record of a study journal ({type(error).__name__}); "
                "restore the file or start over with --fresh"
            ) from None
    return StudyStorage(storage, str(path), owner)


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


@contextlib.contextmanager
def durable(where: str) -> Iterator[None]:
    """Failures of the storage inside the block become one clear :class:`StorageError`."""
    try:
        yield
    except OSError as error:
        raise StorageError(
            f"{where}: {error.strerror or error}; free or open up the folder and run the same command again"
        ) from error
    except optuna.exceptions.StorageInternalError as error:
        cause = str(error.__cause__ or error).splitlines()[0]
        raise StorageError(f"{where}: {cause}; mend the storage and run the same command again") from error


@contextlib.contextmanager
def _released_on_error(owner: OwnerLock | None) -> Iterator[None]:
    with contextlib.ExitStack() as stack:
        if owner is not None:
            stack.callback(owner.release)
        yield
        stack.pop_all()


def _first_bad_line(path: Path) -> int:
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            try:
                if not isinstance(json.loads(line), dict):
                    return number
            except ValueError:
                return number
    return 1


def _open_url(url: str, lock: Path | None, exclusive: bool) -> StudyStorage:
    import sqlalchemy

    try:
        parsed = sqlalchemy.engine.make_url(url)
        driver = parsed.get_backend_name()
        parsed.get_dialect()
    except (sqlalchemy.exc.ArgumentError, sqlalchemy.exc.NoSuchModuleError) as error:
        raise ConfigError(f"storage: {error}; give a path, sqlite:///FILE, postgresql://... or mysql://...") from None
    where = parsed.render_as_string(hide_password=True)
    file = Path(parsed.database).absolute() if driver == "sqlite" and parsed.database else None
    if lock is None and file is not None:
        lock = file.with_name(file.name + ".pid")
    owner = OwnerLock(lock) if exclusive and lock is not None else None
    options: dict[str, Any] = {"connect_args": {"timeout": 60}} if driver == "sqlite" else {"pool_pre_ping": True}
    with _released_on_error(owner), durable(where):
        try:
            storage = RDBStorage(url, engine_kwargs=options, skip_compatibility_check=False)
        except ImportError as error:
            raise UnsupportedError(f"storage {where}: {str(error).splitlines()[0]}; install that driver") from None
        except sqlalchemy.exc.DBAPIError as error:
            raise StorageError(f"storage {where}: {error.orig}; check the address and its rights") from None
        if driver == "sqlite":
            _tune_sqlite(storage.engine)
    return StudyStorage(storage, where, owner)


def _tune_sqlite(engine: Engine) -> None:
    """Write-ahead log, and the write lock taken when a transaction begins.

    By default SQLite upgrades a read to a write in mid-transaction, which two writers can both do
    on the same old state.
    """
    from sqlalchemy import event

    def connect(connection: Any, _record: object) -> None:
        connection.isolation_level = None  # the driver must not begin transactions of its own
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA synchronous=FULL")

    def begin(connection: Connection) -> None:
        connection.exec_driver_sql("BEGIN IMMEDIATE")

    engine.dispose()  # connections opened before the listeners were there
    event.listen(engine, "connect", connect)
    event.listen(engine, "begin", begin)
