"""Opening studies: torn tails, stale locks, other owners, bad places."""

from __future__ import annotations

import multiprocessing
import os
import resource
from pathlib import Path

import optuna
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from optuna.storages.journal import JournalFileOpenLock

from autocomp.core.owner import Owner
from autocomp.errors import ConfigError, CorruptFileError, StorageError
from autocomp.search._optuna_private import JournalLock
from autocomp.search.durable import durable
from autocomp.search.journal import repair_journal
from autocomp.search.storage import open_storage


def make_study(path: Path, rows: int = 3) -> None:
    with open_storage(path) as storage:
        study = optuna.create_study(study_name="s", storage=storage.storage, load_if_exists=True)
        for i in range(rows):
            study.add_trial(optuna.trial.create_trial(value=float(i)))


def count(path: Path) -> int:
    with open_storage(path) as storage:
        return len(optuna.load_study(study_name="s", storage=storage.storage).trials)


@pytest.mark.parametrize("tail", [b'{"op_code": 4, "wor', b"\0" * 4096, b"x" * 200_000])
def test_torn_tail_is_cut_and_the_study_goes_on(tail: bytes, tmp_path: Path) -> None:
    path = tmp_path / "study.journal"
    make_study(path)
    whole = path.read_bytes()
    path.write_bytes(whole + tail)
    make_study(path, rows=1)
    assert path.read_bytes().startswith(whole)
    assert count(path) == 4


@given(text=st.binary(max_size=400).map(lambda b: b.replace(b"\r", b"")), tail=st.binary(max_size=200))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60, deadline=None)
def test_repair_keeps_exactly_the_whole_lines(tmp_path: Path, text: bytes, tail: bytes) -> None:
    path = tmp_path / "journal"
    path.write_bytes(text + tail)
    cut = repair_journal(path, JournalLock(str(path)))
    kept = path.read_bytes()
    assert kept == (text + tail)[: (text + tail).rfind(b"\n") + 1]
    assert cut == len(text + tail) - len(kept)
    assert not (tmp_path / "journal.lock").exists()


def test_journal_cut_anywhere_can_be_continued(tmp_path: Path) -> None:
    path = tmp_path / "study.journal"
    make_study(path)
    whole = path.read_bytes()
    first = whole.index(b"\n") + 1
    for length in range(first, len(whole), 37):
        path.write_bytes(whole[:length])
        make_study(path, rows=1)
        assert 1 <= count(path) <= 4


def test_stale_lock_of_ours_is_cleared_at_once(tmp_path: Path) -> None:
    path = tmp_path / "study.journal"
    make_study(path)
    JournalLock(str(path)).acquire()  # and its owner was killed here
    lock = tmp_path / "study.journal.lock"
    assert lock.exists()
    JournalLock(str(path)).clear_stale()
    assert not lock.exists()


def test_lock_of_another_program_is_waited_for(tmp_path: Path) -> None:
    path = tmp_path / "study.journal"
    make_study(path)
    JournalFileOpenLock(str(path)).acquire()
    JournalLock(str(path)).clear_stale()
    assert (tmp_path / "study.journal.lock").exists()
    os.symlink(path, tmp_path / "linked.lock")
    JournalLock(str(tmp_path / "linked")).clear_stale()
    assert (tmp_path / "linked.lock").is_symlink()
    assert count(path) == 3  # after Optuna's grace period


def test_corrupt_line_is_named(tmp_path: Path) -> None:
    path = tmp_path / "study.journal"
    make_study(path)
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join([lines[0], b"not a record\n", *lines[1:]]))
    with pytest.raises(CorruptFileError, match=r"study\.journal: line 2 is no record") as caught:
        open_storage(path)
    assert "\n" not in str(caught.value)
    Owner(tmp_path / "study.pid").release()  # a failed opening holds nothing


def test_second_owner_is_refused_until_the_first_ends(tmp_path: Path) -> None:
    path = tmp_path / "study.journal"
    with open_storage(path):
        with pytest.raises(StorageError, match=f"process {os.getpid()} is driving this study"):
            open_storage(path)
        with open_storage(path, exclusive=False):
            pass
    with open_storage(path):
        pass


def test_right_is_freed_by_a_kill(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    held = context.Event()
    process = context.Process(target=_hold, args=(tmp_path / "study.pid", held))
    process.start()
    assert held.wait(60)
    with pytest.raises(StorageError, match=f"process {process.pid} is driving"):
        Owner(tmp_path / "study.pid")
    process.kill()
    process.join()
    Owner(tmp_path / "study.pid").release()


def _hold(path: Path, held: object) -> None:
    lock = Owner(path)
    held.set()  # type: ignore[attr-defined]
    multiprocessing.Event().wait()
    lock.release()


def test_reading_what_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="there is no study; run the search first"):
        open_storage(tmp_path / "study.journal", exclusive=False)
    assert list(tmp_path.iterdir()) == []


def test_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="choose an output folder that can be written"):
        open_storage(tmp_path / "file" / "study.journal")


def test_disk_that_fills_up_is_one_line_and_loses_nothing(tmp_path: Path) -> None:
    path = tmp_path / "study.journal"
    make_study(path)
    with open_storage(path) as storage:
        study = optuna.load_study(study_name="s", storage=storage.storage)
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size + 20, hard))
        try:
            with pytest.raises(StorageError, match="File too large; free or open up the folder"), durable(str(path)):
                study.add_trial(optuna.trial.create_trial(value=9.0))
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert not path.read_bytes().endswith(b"\n"), "a part of the record was written"
    make_study(path, rows=1)
    assert count(path) == 4


@pytest.mark.parametrize(
    ("url", "error", "message"),
    [
        ("nonsense://here", ConfigError, "storage: .*nonsense"),
        ("sqlite:////no/such/folder/study.db", StorageError, "there is no folder /no/such/folder; make or mount it"),
        ("journal:////no/such/study.journal", StorageError, "there is no folder /no/such; make or mount it"),
        ("journal://study.journal", ConfigError, "names no absolute path; write journal:///shared/study.journal"),
        ("mysql+no_such_driver://host/studies", ConfigError, "postgresql://USER@HOST/DATABASE"),
        ("postgresql://me:secret@127.0.0.1:1/studies", StorageError, r"//me:\*\*\*@127.0.0.1:1/studies: .* refused"),
    ],
)
def test_bad_urls(url: str, error: type[Exception], message: str, tmp_path: Path) -> None:
    if url.startswith("postgresql"):
        pytest.importorskip("psycopg", reason="psycopg is not installed (extra: postgres)")
    with pytest.raises(error, match=message) as caught:
        open_storage(url, lock=tmp_path / "lock")
    assert "\n" not in str(caught.value)
    assert "secret" not in str(caught.value)


def test_study_that_was_replaced_is_noticed_before_a_write(tmp_path: Path) -> None:
    for url, file in ((f"sqlite:///{tmp_path}/study.db", "study.db"), (f"journal://{tmp_path}/a.journal", "a.journal")):
        with open_storage(url) as storage:
            with storage.writing():
                pass
            (tmp_path / file).rename(tmp_path / "away")
            with pytest.raises(StorageError, match="was removed, moved or replaced"), storage.writing():
                pass
            (tmp_path / file).touch()
            with pytest.raises(StorageError, match="was removed, moved or replaced"), storage.writing():
                pass


def test_looking_on_keeps_no_writer_of_sqlite_waiting(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/study.db"
    with open_storage(url) as storage, open_storage(url, exclusive=False) as looking:
        study = optuna.create_study(study_name="s", storage=storage.storage)
        seen = optuna.load_study(study_name="s", storage=looking.storage)
        with looking.storage.engine.connect() as reading:  # type: ignore[attr-defined]
            reading.exec_driver_sql("SELECT count(*) FROM trials")
            study.add_trial(optuna.trial.create_trial(value=1.0))
        assert len(seen.trials) == 1
        storage.forget("s")
        storage.forget("never there")
        assert optuna.get_all_study_names(looking.storage) == []


def test_sqlite_writes_ahead_and_begins_immediately(tmp_path: Path) -> None:
    with open_storage(f"sqlite:///{tmp_path}/study.db") as storage:
        engine = storage.storage.engine  # type: ignore[attr-defined]
        with engine.connect() as connection:
            assert connection.exec_driver_sql("PRAGMA journal_mode").scalar() == "wal"
        with pytest.raises(StorageError, match="is driving this study"):
            open_storage(f"sqlite:///{tmp_path}/study.db")
