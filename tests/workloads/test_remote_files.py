"""Data at an address: copied once, whole or not at all."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import fsspec
import numpy as np
import pytest
import torch
from PIL import Image

from autocomp.core.settings import Settings
from autocomp.errors import DataError, UnsupportedError
from autocomp.workloads import data, normalize, remote_files


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("AUTOCOMP_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def store() -> Iterator[fsspec.AbstractFileSystem]:
    """A store with addresses of its own, as s3:// has."""
    memory = fsspec.filesystem("memory")
    memory.store.clear()
    yield memory
    memory.store.clear()


def request_for() -> data.Request:
    settings = Settings()
    return data.Request(
        size=8, normalization=normalize.parse("none"), calibration=settings.spend.calibration, seed=0, labels=True
    )


def arrays(folder: Path, seed: int = 0) -> Path:
    rng = np.random.default_rng(seed)
    x, y = rng.normal(size=(40, 3, 8, 8)).astype(np.float32), np.arange(40) % 4
    np.savez(folder / "set.npz", x_train=x, y_train=y, x_test=x + 1, y_test=y)
    return folder / "set.npz"


def test_an_npz_at_an_address_is_the_file(tmp_path: Path, store: fsspec.AbstractFileSystem) -> None:
    path = arrays(tmp_path)
    store.put(str(path), "/bucket/set.npz")
    here = data.load_data(f"npz:{path}", request_for())
    for address in ("memory://bucket/set.npz", f"file://{path}"):
        there = data.load_data(f"npz:{address}", request_for())
        assert there.identity() == here.identity()
        assert there.name == here.name


def test_a_folder_of_images(tmp_path: Path, store: fsspec.AbstractFileSystem) -> None:
    rng = np.random.default_rng(0)
    for part in ("train", "test"):
        for kind in ("cat", "dog"):
            folder = tmp_path / "images" / part / kind
            folder.mkdir(parents=True)
            for i in range(10):
                Image.fromarray(rng.integers(0, 255, (8, 8, 3), dtype=np.uint8)).save(folder / f"{i}.png")
    store.put(str(tmp_path / "images"), "/bucket/images", recursive=True)
    here = data.load_data(f"imagefolder:{tmp_path / 'images'}", request_for())
    there = data.load_data("imagefolder:memory://bucket/images", request_for())
    for part, split in here.splits().items():
        same = there.splits()[part]
        assert len(same) == len(split)
        for mine, theirs in zip(split.batches(8), same.batches(8), strict=True):
            assert torch.equal(mine[0], theirs[0])
            assert torch.equal(mine[1], theirs[1])


def test_copied_once_and_again_where_it_changed(tmp_path: Path, cache: Path, store: fsspec.AbstractFileSystem) -> None:
    store.put(str(arrays(tmp_path)), "/bucket/set.npz")
    first = remote_files.local_copy("memory://bucket/set.npz", "data")
    stamp = first.stat().st_mtime_ns
    assert remote_files.local_copy("memory://bucket/set.npz", "data") == first
    assert first.stat().st_mtime_ns == stamp
    store.put(str(arrays(tmp_path, seed=1)), "/bucket/set.npz")
    second = remote_files.local_copy("memory://bucket/set.npz", "data")
    assert second.read_bytes() == (tmp_path / "set.npz").read_bytes()
    assert not list((cache / "data").glob("part-*"))


def test_what_breaks_off_is_no_copy(
    tmp_path: Path, cache: Path, store: fsspec.AbstractFileSystem, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.put(str(arrays(tmp_path)), "/bucket/set.npz")

    def half(path: str, target: str, **options: object) -> None:
        Path(target).write_bytes(b"PK half of it")
        raise ConnectionResetError(104, "Connection reset by peer")

    with monkeypatch.context() as broken:
        broken.setattr(type(store), "get", lambda self, *a, **k: half(*a, **k))
        with pytest.raises(remote_files.RetryableError, match="Connection reset by peer"):
            remote_files.local_copy("memory://bucket/set.npz", "data npz:...")
    assert list((cache / "data").iterdir()) == []
    whole = remote_files.local_copy("memory://bucket/set.npz", "data")
    assert whole.read_bytes() == (tmp_path / "set.npz").read_bytes()


def test_bad_addresses_are_one_line(store: fsspec.AbstractFileSystem) -> None:
    with pytest.raises(DataError, match=r"there is nothing at memory://bucket/none\.npz"):
        data.load_data("npz:memory://bucket/none.npz", request_for())
    with pytest.raises(UnsupportedError, match="nosuch"):
        data.load_data("npz:nosuch://bucket/set.npz", request_for())
    with pytest.raises(UnsupportedError, match=r"(?i)install.*s3fs|s3fs.*install"):
        data.load_data("npz:s3://bucket/set.npz", request_for())
