"""A PostgreSQL server of the tests' own, in a temporary folder; never one that was there before."""

from __future__ import annotations

import os
import pwd
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

PASSWORD = "s3cret"


class Server:
    """A server on a free port of this machine."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._up = False
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self._port = free.getsockname()[1]
        self._databases = 0

    def fresh(self) -> str:
        """URL of a new, empty database, password included."""
        import psycopg

        self._databases += 1
        address = f"postgresql://tester:{PASSWORD}@127.0.0.1:{self._port}"
        with psycopg.connect(f"{address}/postgres", autocommit=True) as connection:
            connection.execute(f"CREATE DATABASE studies{self._databases}")  # type: ignore[arg-type]
        return f"{address}/studies{self._databases}"

    def create(self) -> None:
        """Make the database cluster. The server refuses to run as root, so then it runs as somebody else."""
        secret = self._folder / "password"
        secret.write_text(PASSWORD)
        if os.geteuid() == 0:
            uid = pwd.getpwnam(_user()).pw_uid
            for path in (self._folder, secret):
                os.chown(path, uid, -1)
        self._run(
            "initdb", "-D", self._data, "-U", "tester", "--auth=scram-sha-256", f"--pwfile={secret}", "--no-sync",
            "--no-locale", "-E", "UTF8",
        )  # fmt: skip

    def start(self) -> None:
        """Start it and wait until it answers."""
        options = f"-p {self._port} -k {self._folder} -c listen_addresses=127.0.0.1 -c fsync=off"
        self._run("pg_ctl", "-D", self._data, "-o", options, "-l", str(self._folder / "log"), "-w", "start")
        self._up = True

    def stop(self, how: str = "immediate") -> None:
        """End it: "immediate" as a power failure would, "fast" cutting off its clients; harmless when done before."""
        if self._up:
            self._run("pg_ctl", "-D", self._data, "-m", how, "-w", "stop")
            self._up = False

    @property
    def _data(self) -> str:
        return str(self._folder / "data")

    def _run(self, *command: str) -> None:
        words = ["runuser", "-u", _user(), "--", *command] if os.geteuid() == 0 else list(command)
        done = subprocess.run(
            words, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd="/",
            check=False, timeout=120,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout


def _user() -> str:
    names = {entry.pw_name for entry in pwd.getpwall()}
    return next((name for name in ("postgres", "nobody") if name in names), "")


@contextmanager
def postgres() -> Iterator[Server]:
    """A running server; skips where its programs or the driver are not installed."""
    pytest.importorskip("psycopg", reason="psycopg is not installed (extra: postgres)")
    for program in ("initdb", "pg_ctl", "postgres"):
        if shutil.which(program) is None:
            pytest.skip(f"no PostgreSQL server here: {program} is not in PATH")
    if os.geteuid() == 0 and not (_user() and shutil.which("runuser")):
        pytest.skip("PostgreSQL does not run as root, and there is no other user here to run it as")
    with tempfile.TemporaryDirectory(prefix="autocomp-pg-") as name:  # not below pytest's folder: root's alone
        server = Server(Path(name))
        server.create()
        server.start()
        try:
            yield server
        finally:
            server.stop()
