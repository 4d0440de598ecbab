"""What a run folder promises: whole files, one driver, no mixing of runs, one clear line when it cannot be written."""

from __future__ import annotations

import dataclasses
import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from autocomp.core.run_folder import RunFolder, storage_errors, write_atomic
from autocomp.core.settings import Settings
from autocomp.errors import StorageError


def settings(out: Path, **changes: object) -> Settings:
    return dataclasses.replace(Settings(out=out), **changes)


def claimed(out: Path) -> RunFolder:
    run = RunFolder(out).open(settings(out))
    run.check_identity(settings(out).identity())
    return run


def test_a_folder_is_nobody_s_until_it_is_claimed(tmp_path: Path) -> None:
    out = tmp_path / "run"
    RunFolder(out).open(settings(out, data="npz:misspelt")).close()
    RunFolder(out).open(settings(out, data="npz:right")).close()


def test_same_settings_open_again_and_another_model_is_refused(tmp_path: Path) -> None:
    out = tmp_path / "run"
    claimed(out).close()
    RunFolder(out).open(settings(out, trials=7, budget_bytes=1)).close()
    with pytest.raises(StorageError, match=r"belongs to a run with model = 'resnet18', not 'resnet20'.*--fresh"):
        RunFolder(out).open(settings(out, model="resnet20"))


def test_fresh_removes_what_was_there_and_takes_another_model(tmp_path: Path) -> None:
    out = tmp_path / "run"
    run = claimed(out)
    run.summary.write_text("{}")
    run.candidates.mkdir()
    (run.cache / "prices").write_text("x")
    run.close()
    run = RunFolder(out).open(settings(out, model="resnet20"), fresh=True)
    assert not run.summary.exists()
    assert not run.candidates.exists()
    assert not (run.cache / "prices").exists()
    run.close()


def test_a_folder_with_other_files_is_refused_untouched(tmp_path: Path) -> None:
    precious = tmp_path / "thesis.tex"
    precious.write_text("work of years")
    with pytest.raises(StorageError, match="holds other files"):
        RunFolder(tmp_path).open(settings(tmp_path), fresh=True)
    assert precious.read_text() == "work of years"
    assert os.listdir(tmp_path) == ["thesis.tex"]


def test_two_processes_cannot_drive_one_run(tmp_path: Path) -> None:
    out = tmp_path / "run"
    run = RunFolder(out).open(settings(out))
    code = (
        "import sys; from pathlib import Path; from autocomp.core.run_folder import RunFolder;"
        "from autocomp.core.settings import Settings; from autocomp.errors import StorageError\n"
        "try: RunFolder(Path(sys.argv[1])).open(Settings(out=Path(sys.argv[1])))\n"
        "except StorageError as e: print(e)"
    )
    seen = subprocess.run([sys.executable, "-c", code, str(out)], capture_output=True, text=True, check=True).stdout
    assert f"process {os.getpid()} is driving this run" in seen
    run.close()
    again = subprocess.run([sys.executable, "-c", code, str(out)], capture_output=True, text=True, check=True).stdout
    assert again == ""


def test_what_is_known_later_is_added_and_then_held(tmp_path: Path) -> None:
    run = claimed(tmp_path / "run")
    run.check_identity({"fingerprint": "a"})
    run.check_identity({"fingerprint": "a"})
    with pytest.raises(StorageError, match="fingerprint = 'a', not 'b'"):
        run.check_identity({"fingerprint": "b"})


@pytest.mark.parametrize(
    ("code", "said"),
    [(errno.ENOSPC, "no space left.*goes on from here"), (errno.EROFS, "cannot write.*--out")],
)
def test_refusals_of_the_system_become_one_line(tmp_path: Path, code: int, said: str) -> None:
    with pytest.raises(StorageError, match=said), storage_errors(tmp_path):
        raise OSError(code, os.strerror(code), str(tmp_path / "x"))


def test_unwritable_parent_is_one_line(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("")
    with pytest.raises(StorageError, match="--out"):
        RunFolder(file / "run").open(settings(file / "run"))


def test_atomic_write_leaves_the_old_file_when_it_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x"
    write_atomic(path, b"old")

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        write_atomic(path, b"new")
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["x"]


def test_not_a_run(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="no run at"):
        RunFolder.existing(tmp_path / "absent")
    with pytest.raises(StorageError, match="not a run folder"):
        RunFolder.existing(tmp_path)
