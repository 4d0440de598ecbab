"""The run folder: what is where, whose it is, and the errors of writing into it."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from autocomp.core.owner import Holder, Owner, holder
from autocomp.core.settings import Settings
from autocomp.errors import StorageError

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_CLOSED = {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ENAMETOOLONG}


@contextlib.contextmanager
def storage_errors(path: Path) -> Iterator[None]:
    """Turn operating system refusals below ``path`` into one clear :class:`StorageError`."""
    try:
        yield
    except OSError as error:
        where = error.filename or path
        if error.errno in _FULL:
            message = f"no space left writing {where}; free some and run the same command again: it goes on from here"
            raise StorageError(message) from error
        if error.errno in _CLOSED:
            message = f"cannot write {where}: {error.strerror}; choose another folder with --out"
            raise StorageError(message) from error
        raise


def write_atomic(path: Path, data: bytes) -> None:
    """Replace ``path`` by ``data`` so that a reader, or a run after a kill, sees the old or the new file whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as out:
            out.write(data)
            out.flush()
            os.fsync(out.fileno())
        os.chmod(name, 0o644)
        os.replace(name, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(name)
        raise


class RunFolder:
    """Paths of one run. Opening it for writing takes an exclusive lock until it is closed.

    Attributes:
        path: absolute path of the folder.
        fresh: it was opened to start over.
    """

    def __init__(self, path: Path) -> None:
        self.path = path.expanduser().absolute()
        self.fresh = False
        self.config = self.path / "config.toml"
        self.journal = self.path / "study.journal"
        self.environment = self.path / "environment.json"
        self.summary = self.path / "summary.json"
        self.artifact = self.path / "model.autocomp"
        self.onnx = self.path / "model.onnx"
        self.candidates = self.path / "candidates"
        self.baselines = self.path / "baselines"
        self.cache = self.path / "cache"
        self.log = self.path / "log.txt"
        self.progress = self.cache / "progress.jsonl"
        self._identity = self.cache / "identity.json"
        self._lock = self.cache / "lock"
        self._owner: Owner | None = None

    @staticmethod
    def existing(path: Path) -> RunFolder:
        """The folder of a run that was made before; ``StorageError`` where it is none."""
        run = RunFolder(path)
        if not run.path.exists():
            raise StorageError(f"no run at {path}; `autocomp search --out {path}` makes one")
        if not run._identity.is_file():
            raise StorageError(f"{path} is not a run folder (no cache/identity.json); give the folder that search made")
        return run

    def open(self, settings: Settings, *, fresh: bool = False, say: Callable[[str], None] | None = None) -> RunFolder:
        """Create or resume; refuse a folder that holds another model, space, ... or something else.

        A new folder is nobody's until :meth:`check_identity`, called once model and data could be loaded: a
        misspelt path does not claim it.

        Args:
            settings: their ``identity()`` must equal the one the folder was made with.
            fresh: start over: what an earlier run left here is removed.
            say: told where the death of a driver on another machine is waited for.
        """
        with storage_errors(self.path):
            # a run killed before its first write leaves nothing but the lock in its cache
            strange = self.path.exists() and any(p.name != "cache" for p in self.path.iterdir())
            if strange and not self._identity.is_file():
                raise StorageError(f"{self.path} holds other files and no run; choose another folder with --out")
            self.cache.mkdir(parents=True, exist_ok=True)
            self._owner = Owner(self._lock, thing="run", where=self.path, say=say)
            self.fresh = fresh
            try:
                if fresh:
                    self._clear()
                if self._identity.is_file():
                    self.check_identity(settings.identity())
            except BaseException:
                self.close()
                raise
        return self

    def check_identity(self, mine: dict[str, Any]) -> None:
        """Refuse where the folder belongs to another run; claim it, or add facts it does not know yet.

        Raises:
            StorageError: naming the setting that differs.
        """
        theirs = json.loads(self._identity.read_text()) if self._identity.is_file() else {}
        for key, value in mine.items():
            if key in theirs and theirs[key] != json.loads(json.dumps(value)):
                raise StorageError(
                    f"{self.path} belongs to a run with {key} = {theirs[key]!r}, not {value!r}; "
                    "choose another folder with --out, or start over with --fresh"
                )
        if set(mine) - set(theirs):
            with storage_errors(self.path):
                write_atomic(self._identity, json.dumps({**theirs, **mine}, indent=1, sort_keys=True).encode())

    def _clear(self) -> None:
        for item in self.path.iterdir():
            if item == self.cache:
                for inner in self.cache.iterdir():
                    if inner.name.startswith("lock"):
                        continue
                    shutil.rmtree(inner) if inner.is_dir() else inner.unlink()
            elif item.is_dir():
                shutil.rmtree(item)
            else:
                item.unlink()

    def write_log(self, entry: str) -> None:
        """Add to ``log.txt``."""
        with storage_errors(self.log), self.log.open("a", encoding="utf-8") as log:
            log.write(f"{entry}\n")

    def forget_summary(self) -> None:
        """What an earlier search with other settings said is gone: its files are about to be replaced."""
        with storage_errors(self.path):
            self.summary.unlink(missing_ok=True)

    def check(self) -> None:
        """Refuse to go on where another process has taken over the folder, which took this one for dead.

        Raises:
            StorageError: as said.
        """
        if self._owner is not None:
            self._owner.check()

    def driver(self) -> Holder | None:
        """Who is driving this run now, on any machine that sees this folder."""
        return holder(self._lock)

    def close(self) -> None:
        """Release the lock (the kernel does it at process end, kill -9 included)."""
        if self._owner is not None:
            self._owner.release()
            self._owner = None

    def write_json(self, path: Path, data: Any) -> None:
        """Atomic JSON file."""
        with storage_errors(self.path):
            write_atomic(path, json.dumps(data, indent=1, allow_nan=False).encode())
