"""Studies in a database, by URL: SQLite on one machine, PostgreSQL for several."""

from __future__ import annotations

import contextlib
import hashlib
import os
import platform
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import sqlalchemy
from optuna.storages import RDBStorage
from sqlalchemy import event, text
from sqlalchemy.exc import ArgumentError, DBAPIError, NoSuchModuleError, SQLAlchemyError

from autocomp.core.owner import Owner
from autocomp.core.settings import without_password
from autocomp.errors import ConfigError, StorageError, UnsupportedError
from autocomp.search.durable import durable, said

if TYPE_CHECKING:
    from sqlalchemy.engine import Connection, Engine

ERRORS = (SQLAlchemyError,)
"""What a database raises when it fails."""

_TRIES, _PAUSE_S = 5, 1.0
"""How often an opening that failed is tried again, and how long after."""
_LIBPQ = {"connect_timeout": 10, "keepalives_idle": 10, "keepalives_interval": 5, "tcp_user_timeout": 30_000}
"""A server that is gone is noticed within half a minute (seconds; the last one milliseconds)."""
_SERVER = {"tcp_keepalives_idle": "10", "tcp_keepalives_interval": "5", "tcp_keepalives_count": "3"}
"""So does the server notice that a machine is gone, and frees its lock (seconds, seconds, times)."""


class Database:
    """A database by its URL.

    Attributes:
        where: the URL without password, for messages.
        file: where it is a file: that file.

    Raises:
        ConfigError: nothing is known by this URL.
        StorageError: there is no such folder.
    """

    def __init__(self, url: str) -> None:
        try:
            parsed = sqlalchemy.engine.make_url(url)
            if parsed.drivername == "postgresql":  # the default depends on the version of SQLAlchemy
                parsed = parsed.set(drivername="postgresql+psycopg")
            self.kind = parsed.get_backend_name()
            driver = parsed.get_dialect().driver
        except (ArgumentError, NoSuchModuleError) as error:
            raise ConfigError(
                f"storage: {error}; write sqlite:///FILE, postgresql://USER@HOST/DATABASE or journal:///FOLDER/FILE"
            ) from None
        self._url = parsed
        self.where = without_password(parsed.render_as_string(hide_password=False))
        in_file = self.kind == "sqlite" and parsed.database not in (None, "", ":memory:")
        self.file = Path(str(parsed.database)).absolute() if in_file else None
        if self.file is not None and not self.file.parent.is_dir():
            raise StorageError(f"storage {self.where}: there is no folder {self.file.parent}; make or mount it")
        self._options: dict[str, Any] = _LIBPQ if driver in ("psycopg", "psycopg2") else {}
        if self.kind == "sqlite":
            self._options = {"timeout": 60}

    def own(self, study: str, lock: Path | None, say: Callable[[str], None] | None) -> Owner | AdvisoryLock | None:
        """The exclusive right to drive ``study``; None where nothing can hold it.

        Args:
            study: name in the database.
            lock: file, for databases that have no place of their own for it.
            say: told where the death of a driver on another machine is waited for.
        """
        if self.kind == "postgresql":
            with self._refusals():
                engine = sqlalchemy.create_engine(
                    self._url, connect_args=self._options, poolclass=sqlalchemy.NullPool, isolation_level="AUTOCOMMIT"
                )
                return AdvisoryLock(engine.connect(), study, self.where)
        if self.file is not None:
            name = re.sub(r"[^A-Za-z0-9._]+", "-", ".".join(filter(None, (self.file.name, study, "pid"))))
            lock = self.file.with_name(name)
        return None if lock is None else Owner(lock, where=self.where, instead="--storage", say=say)

    def connect(self, *, writes: bool) -> RDBStorage:
        """The storage; its tables are made when missing.

        Args:
            writes: False for those who only look: they keep no writer waiting.
        """
        options: dict[str, Any] = {"connect_args": self._options}
        if self.kind != "sqlite":
            options["pool_pre_ping"] = True
        url = self._url.render_as_string(hide_password=False)
        with self._refusals():
            for attempt in range(_TRIES):
                try:
                    storage = RDBStorage(url, engine_kwargs=options)
                    break
                except DBAPIError:  # another search is making the same tables: one of the two is told that they exist
                    if attempt + 1 == _TRIES:
                        raise
                    time.sleep(_PAUSE_S)
        if self.kind == "sqlite" and writes:
            _tune_sqlite(storage.engine)
        return storage

    @contextlib.contextmanager
    def _refusals(self) -> Iterator[None]:
        try:
            yield
        except ImportError as error:
            remedy = 'pip install "autocomp[postgres]"' if self.kind == "postgresql" else "install that driver"
            raise UnsupportedError(f"storage {self.where}: {said(error)}; {remedy}") from None
        except DBAPIError as error:
            raise StorageError(f"storage {self.where}: {said(error)}; check the address and its rights") from None
        except RuntimeError as error:  # Optuna's words for tables of another version
            raise StorageError(f"storage {self.where}: {said(error)}") from None


class AdvisoryLock:
    """Exclusive right to drive a study in PostgreSQL, for all machines that share the server.

    A session-level advisory lock: the server holds it for as long as this connection lives, and frees it on any
    death of ours. Source: PostgreSQL 15 documentation, section 13.3.5. It needs a connection of its own, so no pooler
    that hands connections on after each transaction.

    Args:
        connection: in autocommit; closed at the end.
        study: name of the study.
        where: the URL without password, for messages.

    Raises:
        StorageError: another process holds it.
    """

    def __init__(self, connection: Connection, study: str, where: str) -> None:
        self._connection, self._where = connection, where
        key = int.from_bytes(hashlib.sha256(f"autocomp {study}".encode()).digest()[:8], signed=True)
        me = f"process {os.getpid()} on {platform.node()}"[:63]  # what PostgreSQL keeps of a name
        for name, value in {**_SERVER, "application_name": me}.items():
            self._ask("SELECT set_config(:name, :value, false)", name=name, value=value)
        if not self._ask("SELECT pg_try_advisory_lock(:key)", key=key):
            holder = self._ask(_HOLDER, key=key) or "another process"
            self.release()
            raise StorageError(
                f"{where}: {holder} is driving this study; wait for it, stop it, or choose another --storage"
            )

    def check(self) -> None:
        """The lock is held as long as the connection lives.

        Raises:
            StorageError: the connection broke.
        """
        with durable(self._where, *ERRORS):
            self._ask("SELECT 1")

    def release(self) -> None:
        """Give the right back; harmless when done before."""
        with contextlib.suppress(SQLAlchemyError):  # a broken connection holds nothing
            self._connection.close()

    def _ask(self, question: str, **values: object) -> Any:
        return self._connection.execute(text(question), values).scalar()


_HOLDER = """
SELECT application_name FROM pg_locks JOIN pg_stat_activity USING (pid)
WHERE locktype = 'advisory' AND granted AND objsubid = 1
AND pg_locks.database = (SELECT oid FROM pg_database WHERE datname = current_database())
AND (classid::bigint << 32 | objid::bigint) = :key
"""
"""Who holds an advisory lock: its key lies in two halves (PostgreSQL 15 documentation, section 54.12)."""


def _tune_sqlite(engine: Engine) -> None:
    """Write-ahead log, and the write lock taken when a transaction begins.

    By default SQLite upgrades a read to a write in mid-transaction, which two writers can both do
    on the same old state.
    """

    def connect(connection: Any, _record: object) -> None:
        connection.isolation_level = None  # the driver must not begin transactions of its own
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA synchronous=FULL")

    def begin(connection: Connection) -> None:
        connection.exec_driver_sql("BEGIN IMMEDIATE")

    engine.dispose()  # connections opened before the listeners were there
    event.listen(engine, "connect", connect)
    event.listen(engine, "begin", begin)
