"""Where the study is kept: a journal file in the run folder, or a storage by URL.

One process at a time drives a study, on whatever machine: files are owned by a lock and a lease
(``autocomp.core.owner``), a study in PostgreSQL by an advisory lock of the server.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Protocol

import optuna
from optuna.storages import BaseStorage, RDBStorage

from autocomp.core.owner import Owner
from autocomp.errors import StorageError
from autocomp.search import journal
from autocomp.search.durable import durable

optuna.logging.set_verbosity(optuna.logging.CRITICAL)


class Ownership(Protocol):
    """The exclusive right to drive a study."""

    def check(self) -> None:
        """Raise :class:`StorageError` where it was lost."""
        ...

    def release(self) -> None:
        """Give it back; harmless when done before."""
        ...


class StudyStorage:
    """An open Optuna storage.

    Args:
        owner: released by :meth:`close`.
        file: where the study is a file: that file.
        errors: what the storage raises when it fails, beside ``OSError``.

    Attributes:
        storage: for ``optuna.create_study``.
        where: path or URL without password, for messages.
    """

    def __init__(
        self,
        storage: BaseStorage,
        where: str,
        owner: Ownership | None = None,
        *,
        file: Path | None = None,
        errors: tuple[type[Exception], ...] = (),
    ) -> None:
        self.storage = storage
        self.where = where
        self._owner, self._file, self._errors = owner, file, errors
        self._inode = None if file is None else file.stat().st_ino

    @contextlib.contextmanager
    def writing(self) -> Iterator[None]:
        """For blocks that read or write the study: it is still there and still ours; failures become one clear line.

        Raises:
            StorageError: as said.
        """
        with durable(self.where, *self._errors):
            if self._file is not None and (not self._file.exists() or self._file.stat().st_ino != self._inode):
                raise StorageError(
                    f"{self.where} was removed, moved or replaced under this search; bring it back and run the same "
                    "command again"
                )
            if self._owner is not None:
                self._owner.check()
            yield

    def forget(self, study: str) -> None:
        """Remove a study with all its rows; harmless where there is none."""
        with self.writing(), contextlib.suppress(KeyError):
            optuna.delete_study(study_name=study, storage=self.storage)

    def close(self) -> None:
        """Close connections and let another process drive the study."""
        with contextlib.suppress(*self._errors):
            self.storage.remove_session()
        if isinstance(self.storage, RDBStorage):
            self.storage.engine.dispose()
        if self._owner is not None:
            self._owner.release()

    def __enter__(self) -> StudyStorage:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def open_storage(
    location: str | Path,
    *,
    study: str = "",
    lock: Path | None = None,
    exclusive: bool = True,
    say: Callable[[str], None] | None = None,
) -> StudyStorage:
    """Open the journal file or the database at ``location``.

    Args:
        location: path of a journal file (made when missing), or a URL ("sqlite:///study.db",
            "postgresql://me@host/studies", "journal:///shared/study.journal").
        study: which study of a database this process is to be the only driver of.
        lock: file that makes this process the only driver, in place of one beside the journal; also for databases
            that are neither SQLite (beside its file) nor PostgreSQL (in the server).
        exclusive: False to read only: takes no lock and repairs nothing.
        say: told where the death of a driver on another machine is waited for.

    Raises:
        StorageError: driven by another process, or cannot be opened or written.
        CorruptFileError: the journal holds lines that are no records.
        ConfigError, UnsupportedError: no such kind of URL; its driver is not installed.
    """
    owner: Ownership | None
    if isinstance(location, str) and "://" in location and not location.startswith(journal.SCHEME):
        from autocomp.search import database

        found = database.Database(location)
        owner = found.own(study, lock, say) if exclusive else None
        with _released_on_error(owner), durable(found.where, *database.ERRORS):
            storage = found.connect(writes=exclusive)
            return StudyStorage(storage, found.where, owner, file=found.file, errors=database.ERRORS)
    if isinstance(location, str) and location.startswith(journal.SCHEME):
        path, lock = journal.path_of(location), None
    else:
        path = Path(location).absolute()
    if not exclusive and not path.is_file():
        raise StorageError(f"{path}: there is no study; run the search first")
    owner = Owner(lock or path.with_suffix(".pid"), where=path.parent, say=say) if exclusive else None
    with _released_on_error(owner), durable(str(path)):
        return StudyStorage(journal.open_journal(path, repair=exclusive), str(path), owner, file=path)


@contextlib.contextmanager
def _released_on_error(owner: Ownership | None) -> Iterator[None]:
    with contextlib.ExitStack() as stack:
        if owner is not None:
            stack.callback(owner.release)
        yield
        stack.pop_all()
