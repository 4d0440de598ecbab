"""One driver at a time for a run or a study, on one machine and between machines.

Two things are held. An exclusive ``flock`` is certain, and the kernel frees it on any death; but some shared file
systems lack it, and others keep it to one machine. So there is a *lease* beside it: a file made with ``O_EXCL``
(atomic on local disks and on NFS 3 and later, as Optuna's ``JournalFileOpenLock`` assumes too), whose time stamp
its owner renews every :data:`BEAT_S` seconds. A lease of this machine is dead where the flock is free. One of
another machine is dead where no renewal is seen in :data:`LOOKS` looks; no two clocks are compared for that. Whoever
was not heard of for so long and wakes up finds another lease in place of its own (:meth:`Owner.check`), and stops.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import fcntl
import json
import os
import platform
import threading
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import IO

from autocomp.errors import StorageError

BEAT_S = 5.0
"""Seconds between two renewals of a lease."""
LOOKS = 6
"""A lease that stays the same in so many looks, one a beat, is abandoned."""
_PEEK_S = 0.05
"""A flock that is held may be a look of :func:`holder`: it is tried again after so long, twice."""
_NO_FLOCK = {errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EINVAL}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Holder:
    """Who holds a lease.

    Attributes:
        host: name of the machine.
        machine: what tells machines apart, whatever their names.
        process: process id there.
        token: unique to this holding.
        renewed_ns: time stamp of the last renewal, by the clock of the file system.
    """

    host: str = "unknown"
    machine: str = ""
    process: int = 0
    token: str = ""
    renewed_ns: int = dataclasses.field(default=0, compare=False)

    def __str__(self) -> str:
        if not self.process:
            return "another process"
        return f"process {self.process}" + ("" if self.machine == machine() else f" on {self.host}")


class Owner:
    """Exclusive right to drive what ``path`` stands for, held until :meth:`release` or the end of the process.

    Args:
        path: file that is locked; its lease is ``path`` with ".lease" behind it.
        thing, where, instead: what is driven, where it lies, and the option that names another place, for messages.
        say: told once where the death of an owner on another machine is waited for.

    Raises:
        StorageError: another process holds it, or the folder cannot be written.
    """

    def __init__(
        self,
        path: Path,
        *,
        thing: str = "study",
        where: object = None,
        instead: str = "--out",
        say: Callable[[str], None] | None = None,
    ) -> None:
        self._lease = _lease_of(path)
        self._thing, self._where, self._instead = thing, where or path.parent, instead
        self._say = say or (lambda _: None)
        self._me = Holder(host=platform.node(), machine=machine(), process=os.getpid(), token=uuid.uuid4().hex)
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file: IO[str] | None = path.open("a+", encoding="ascii")
        except OSError as error:
            raise StorageError(f"{path}: {error.strerror}; choose an output folder that can be written") from None
        try:
            self._take(_flock(self._file))
        except BlockingIOError:
            self.release()
            raise self._refused(_read(self._lease) or Holder()) from None
        except OSError as error:
            self.release()
            raise StorageError(
                f"{path}: cannot be locked ({error.strerror}); free or open up the disk, or choose another"
            ) from None
        except BaseException:
            self.release()
            raise
        self._thread = threading.Thread(target=self._renew, name="autocomp-lease", daemon=True)
        self._thread.start()

    def check(self) -> None:
        """Refuse to go on where another driver has taken over, which took this one for dead.

        Raises:
            StorageError: the lease is gone or another's.
        """
        held = _read(self._lease)
        if held is None:
            raise StorageError(
                f"{self._lease} is gone: its folder was removed, moved or unmounted; bring it back and run the same "
                "command again"
            )
        if held.token != self._me.token:
            raise StorageError(
                f"{held} has taken over this {self._thing} ({self._where}): nothing was heard of this process "
                f"for {BEAT_S * LOOKS:.0f} s; let it go on, or stop it and run the same command again"
            )

    def release(self) -> None:
        """Give the right back; harmless when done before."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        with contextlib.suppress(OSError):
            held = _read(self._lease)
            if held is not None and held.token == self._me.token:
                self._lease.unlink()
        if self._file is not None:
            self._file.close()
            self._file = None

    def _take(self, flocked: bool) -> None:
        """Make the lease, once whoever holds one is known to be dead."""
        while not _create(self._lease, self._me):
            held = _read(self._lease)
            if held is None:
                continue
            if not (flocked and held.machine == machine()):
                self._wait_out(held)
            self._remove(held)

    def _wait_out(self, held: Holder) -> None:
        self._say(
            f"{held} held this {self._thing} and did not let go of it; going on without it if nothing is heard of it "
            f"for {BEAT_S * LOOKS:.0f} s"
        )
        for _ in range(LOOKS):
            time.sleep(BEAT_S)
            now = _read(self._lease)
            if now is None:
                return
            if now.token != held.token or now.renewed_ns != held.renewed_ns:
                raise self._refused(now)

    def _remove(self, dead: Holder) -> None:
        """Take the lease of ``dead`` away; put back what another taker made in the meantime."""
        aside = self._lease.with_name(f"{self._lease.name}.{self._me.token}")
        try:
            self._lease.rename(aside)
        except FileNotFoundError:
            return
        found = _read(aside)
        if found is not None and found.token != dead.token:
            with contextlib.suppress(OSError):
                os.link(aside, self._lease)
            aside.unlink()
            raise self._refused(found)
        aside.unlink()

    def _refused(self, held: Holder) -> StorageError:
        return StorageError(
            f"{self._where}: {held} is driving this {self._thing}; wait for it, stop it, or choose another "
            f"{self._instead}"
        )

    def _renew(self) -> None:
        while not self._stop.wait(BEAT_S):
            with contextlib.suppress(OSError):  # :meth:`check` tells the driver, where it matters
                held = _read(self._lease)
                if held is not None and held.token == self._me.token:
                    os.utime(self._lease)


def holder(path: Path) -> Holder | None:
    """Who is driving what ``path`` stands for now; None where nobody is, or whoever was died.

    Takes a moment where only the silence of another machine can tell (about a beat).
    """
    held = _read(_lease_of(path))
    flocked: bool | None = None  # None: no word from the file system
    with contextlib.suppress(OSError), path.open("rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            flocked = False
        except BlockingIOError:
            flocked = True
    if flocked:
        return held or Holder()
    if held is None or (flocked is False and held.machine == machine()):
        return None
    if time.time() - held.renewed_ns / 1e9 < LOOKS * BEAT_S:
        return held
    time.sleep(1.5 * BEAT_S)
    now = _read(_lease_of(path))
    return now if now is not None and now.renewed_ns != held.renewed_ns else None


def machine() -> str:
    """What tells this machine, since it was started, from all others; containers on it share flocks, and this."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        return platform.node()


def _flock(file: IO[str]) -> bool:
    """Take the lock; False where the file system has none. ``BlockingIOError`` where another process holds it."""
    for attempt in range(3):
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if attempt == 2:
                raise
            time.sleep(_PEEK_S)
        except OSError as error:
            if error.errno in _NO_FLOCK:
                return False
            raise
        else:
            return True
    raise AssertionError


def _lease_of(path: Path) -> Path:
    return path.with_name(path.name + ".lease")


def _create(lease: Path, me: Holder) -> bool:
    """Whether the lease could be made: nobody has one."""
    try:
        handle = os.open(lease, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)
    except FileExistsError:
        return False
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            fields = {k: v for k, v in dataclasses.asdict(me).items() if k != "renewed_ns"}
            file.write(json.dumps(fields))
            file.flush()
            os.fsync(file.fileno())
    except OSError:  # a full disk
        lease.unlink()
        raise
    return True


def _read(lease: Path) -> Holder | None:
    """The lease as it is now; None where there is none. Opened each time: that makes NFS ask the server."""
    try:
        with lease.open(encoding="utf-8") as file:
            renewed_ns = os.fstat(file.fileno()).st_mtime_ns
            text = file.read()
    except FileNotFoundError:
        return None
    try:
        return Holder(**json.loads(text), renewed_ns=renewed_ns)
    except (ValueError, TypeError):  # just being written
        return Holder(renewed_ns=renewed_ns)
