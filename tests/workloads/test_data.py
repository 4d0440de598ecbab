"""Data by spec: disjoint splits, the rule for halving, and every kind of bad input in one line."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torch.utils.data import Dataset, Subset, TensorDataset

from autocomp.core.progress import Silent
from autocomp.errors import AutocompError, ConfigError, CorruptFileError, DataError, UnknownNameError
from autocomp.workloads import data, normalize, splits
from autocomp.workloads.data import Request, for_model, load_data
from autocomp.workloads.splits import DatasetSplit, ImageFolderSplit, TensorSplit

NONE = normalize.PRESETS["none"]


def write_images(root: Path, part: str, name: str, count: int, *, size: int = 8, mode: str = "RGB") -> None:
    folder = root / part / name
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng([len(part), count, *map(ord, name)])
    for index in range(count):
        shape = (size, size, 3) if mode == "RGB" else (size, size)
        Image.fromarray(rng.integers(0, 256, shape, dtype=np.uint8)).save(folder / f"{index:03}.png")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for part, count in (("train", 12), ("test", 11)):
        for name in ("cat", "ant", "bee"):
            write_images(tmp_path, part, name, count)
    return tmp_path


def load(spec: str, channels: int | None = 3, **request: Any) -> data.Data:
    request.setdefault("normalization", NONE)
    return for_model(load_data(spec, Request(**request)), channels, Silent())


def files(split: Any) -> set[str]:
    return {f"{p.parent.name}/{p.name}" for p in split.paths}


def test_test_is_halved_per_class_by_file_order(folder: Path) -> None:
    found = load_data(f"imagefolder:{folder}", Request(calibration=20))
    assert found.facts["class_names"] == ["ant", "bee", "cat"]
    assert found.classes == 3
    assert isinstance(found.search, ImageFolderSplit)
    names = ("ant", "bee", "cat")
    assert files(found.search) == {f"{c}/{i:03}.png" for c in names for i in range(5)}
    assert files(found.test) == {f"{c}/{i:03}.png" for c in names for i in range(5, 11)}
    assert all("train" in p.parts for p in found.calibration.paths)  # type: ignore[union-attr]
    assert len(found.calibration) == 20


def test_val_is_the_search_split_where_there_is_one(folder: Path) -> None:
    for name in ("ant", "bee", "cat"):
        write_images(folder, "val", name, 4)
    found = load_data(f"imagefolder:{folder}", Request())
    assert all("val" in p.parts for p in found.search.paths)  # type: ignore[union-attr]
    assert len(found.test) == 33


def test_calibration_follows_the_seed_and_the_rest_does_not(folder: Path) -> None:
    first, same, other = (load_data(f"imagefolder:{folder}", Request(calibration=9, seed=s)) for s in (1, 1, 2))
    assert first.calibration == same.calibration
    assert first.calibration != other.calibration
    assert first.search == other.search
    assert first.test == other.test


def test_decoded_and_lazy_images_are_the_same(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ready = load(f"imagefolder:{folder}", normalization=normalize.PRESETS["imagenet"])
    monkeypatch.setattr(splits, "MEMORY_BYTES", 0)
    lazy = load(f"imagefolder:{folder}", normalization=normalize.PRESETS["imagenet"])
    assert isinstance(ready.search, TensorSplit)
    assert isinstance(lazy.search, ImageFolderSplit)
    for (x, y), (u, v) in zip(ready.search.batches(4), lazy.search.batches(4), strict=True):
        assert torch.equal(x, u)
        assert torch.equal(y, v)
    first = lazy.search.paths[0]
    pixels = torch.tensor(np.asarray(Image.open(first))).permute(2, 0, 1).float() / 255
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    assert torch.allclose(next(iter(ready.search.batches(1)))[0][0], (pixels - mean) / std, atol=1e-6)


def test_images_are_brought_to_size(tmp_path: Path) -> None:
    image = Image.new("RGB", (20, 10))
    image.paste((255, 0, 0), (10, 0, 20, 10))
    small = splits.fit(image, 8)
    assert small.size == (8, 8)
    assert small.getpixel((0, 4))[0] < 10
    assert small.getpixel((7, 4))[0] > 245
    assert splits.fit(small, 8) is small
    assert splits.fit(Image.new("RGB", (500, 375)), 224).size == (224, 224)
    assert splits.fit(Image.new("L", (3, 300)), 32).size == (32, 32)


def test_unequal_images_become_224_and_equal_ones_keep_their_size(folder: Path) -> None:
    assert load_data(f"imagefolder:{folder}", Request()).facts["image_size"] == 8
    write_images(folder, "train", "ant", 12, size=10)
    assert load_data(f"imagefolder:{folder}", Request()).facts["image_size"] == 224
    assert load_data(f"imagefolder:{folder}", Request(size=16)).facts["image_size"] == 16


def test_grey_and_colour_follow_the_model(tmp_path: Path) -> None:
    for part in ("train", "test"):
        for name in ("a", "b"):
            write_images(tmp_path, part, name, 16, mode="L" if name == "a" else "RGB")
    assert next(iter(load(f"imagefolder:{tmp_path}").search.batches(2)))[0].shape == (2, 3, 8, 8)
    assert next(iter(load(f"imagefolder:{tmp_path}", channels=1).search.batches(2)))[0].shape == (2, 1, 8, 8)


@pytest.mark.parametrize(
    ("break_it", "message"),
    [
        (lambda root: root.rename(root.parent / "gone"), "there is no such folder"),
        (lambda root: (root / "test").rename(root / "testing"), "there is no folder test/"),
        (lambda root: [(root / "train" / n).rename(root / n) for n in ("ant", "bee", "cat")], "no class folders"),
        (lambda root: [(root / "train" / n).rename(root / n) for n in ("ant", "bee")], "a single class (cat)"),
        (lambda root: [p.unlink() for p in (root / "train" / "bee").iterdir()], "bee: no images inside"),
        (lambda root: [p.unlink() for p in (root / "test").rglob("*.png")], "test: no images inside"),
        (lambda root: (root / "test" / "bee").rename(root / "test" / "wasp"), "class folder wasp is not in train/"),
        (lambda root: (root / "test" / "bee" / "003.png").write_bytes(b"\x89PNG\r\n cut"), "bee/003.png"),
        (lambda root: [p.unlink() for p in (root / "test").rglob("00[2-9].png")], "at least 8 are needed"),
    ],
)
def test_bad_folders_are_named(folder: Path, break_it: Any, message: str, tmp_path: Path) -> None:
    root = tmp_path / "data"
    root.mkdir()
    for part in ("train", "test"):
        (folder / part).rename(root / part)
    break_it(root)
    with pytest.raises(DataError, match=re.escape(message)) as caught:
        load(f"imagefolder:{root}")
    assert "\n" not in str(caught.value)


def test_one_folder_under_two_names_is_refused(folder: Path) -> None:
    (folder / "val").symlink_to(folder / "test")
    with pytest.raises(DataError, match="must be disjoint"):
        load(f"imagefolder:{folder}")


def write_npz(path: Path, **changes: Any) -> str:
    rng = np.random.default_rng(0)
    arrays: dict[str, Any] = {
        "x_train": rng.integers(0, 256, (40, 3, 8, 8), dtype=np.uint8),
        "y_train": np.arange(40) % 4,
        "x_test": rng.integers(0, 256, (40, 3, 8, 8), dtype=np.uint8),
        "y_test": np.arange(40) % 4,
    } | changes
    np.savez(path, **{k: v for k, v in arrays.items() if v is not None})
    return f"npz:{path}"


def test_npz(tmp_path: Path) -> None:
    found = load(write_npz(tmp_path / "d.npz"), calibration=16)
    assert (len(found.calibration), len(found.search), len(found.test), found.classes) == (16, 20, 20, 4)
    x, y = next(iter(found.test.batches(64)))
    assert x.dtype == torch.float32
    assert 0 <= x.min() <= x.max() <= 1
    assert torch.bincount(y).tolist() == [5] * 4
    three = load(
        write_npz(
            tmp_path / "e.npz", x_search=np.random.default_rng(3).random((12, 3, 8, 8)), y_search=np.arange(12) % 4
        )
    )
    assert (len(three.search), len(three.test)) == (12, 40)


def test_npz_layouts_and_sizes(tmp_path: Path) -> None:
    rng = np.random.default_rng(5)
    last = write_npz(
        tmp_path / "d.npz",
        x_train=rng.integers(0, 256, (40, 8, 8, 3), dtype=np.uint8),
        x_test=rng.integers(0, 256, (40, 8, 8), dtype=np.uint8),
    )
    found = load(last, size=16)
    assert next(iter(found.calibration.batches(2)))[0].shape == (2, 3, 16, 16)
    grey = next(iter(found.test.batches(2)))[0]
    assert grey.shape == (2, 3, 16, 16)
    assert torch.equal(grey[:, 0], grey[:, 1])
    assert any("three equal channels" in note for note in found.notes)


def nan_at(index: int) -> np.ndarray:
    values = np.random.default_rng(0).random((40, 3, 8, 8)).astype(np.float32)
    values[index, 1, 2, 3] = np.nan
    return values


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"x_test": None}, "no array x_test"),
        ({"y_test": np.arange(39) % 4}, "must agree"),
        ({"y_test": np.arange(40) % 4 - 1}, "label -1; labels count from 0"),
        ({"y_train": np.zeros(40, int), "y_test": np.zeros(40, int)}, "a single class"),
        ({"y_test": np.linspace(0, 1, 40)}, "--metric mse"),
        ({"x_test": nan_at(7)}, "NaN"),
        ({"x_test": np.array([{}] * 40, dtype=object)}, "Python objects"),
    ],
)
def test_bad_npz_are_named(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=re.escape(message)) as caught:
        load(write_npz(tmp_path / "d.npz", **changes))
    assert "\n" not in str(caught.value)


def test_damaged_npz(tmp_path: Path) -> None:
    spec = write_npz(tmp_path / "d.npz")
    whole = (tmp_path / "d.npz").read_bytes()
    (tmp_path / "d.npz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(CorruptFileError, match=r"d\.npz"):
        load(spec)
    with pytest.raises(DataError, match="no such file"):
        load(f"npz:{tmp_path / 'none.npz'}")


def test_regression_targets_pass_where_the_metric_takes_them(tmp_path: Path) -> None:
    spec = write_npz(tmp_path / "d.npz", y_train=np.random.rand(40), y_test=np.random.rand(40))
    found = load(spec, labels=False)
    assert found.classes is None
    assert (len(found.search), len(found.test)) == (20, 20)


FACTORY = """
import torch
from torch.utils.data import TensorDataset
def make(seed=0, unknown=3):
    g = torch.Generator().manual_seed(seed)
    x, y = torch.randn(60, 3, 8, 8, generator=g), torch.arange(60) % 3
    return TensorDataset(x[:30], y[:30]), TensorDataset(x[30:], y[30:])
def pairs():
    g = torch.Generator().manual_seed(0)
    x, y = torch.randn(90, 3, 8, 8, generator=g), torch.arange(90) % 3
    return (x[:30], y[:30]), (x[30:60], y[30:60]), (x[60:], y[60:])
def broken():
    raise RuntimeError("the disk\\nis gone")
one = 5
"""


def test_factories(tmp_path: Path) -> None:
    file = tmp_path / "mydata.py"
    file.write_text(FACTORY)
    found = load(f"{file}:make")
    assert (len(found.calibration), len(found.search), len(found.test), found.classes) == (30, 15, 15, 3)
    assert len(load(f"{file}:pairs").search) == 30
    with pytest.raises(DataError, match=r"RuntimeError: the disk$"):
        load(f"{file}:broken")
    with pytest.raises(DataError, match=r"expected \(train, test\)"):
        load(f"{file}:one")
    with pytest.raises(UnknownNameError, match="did you mean make"):
        load(f"{file}:mak")
    with pytest.raises(ConfigError, match="there is no file"):
        load(f"{tmp_path}/none.py:make")
    (tmp_path / "bad.py").write_text("import no_such_package_here")
    with pytest.raises(DataError, match="no_such_package_here"):
        load(f"{tmp_path}/bad.py:make")
    with pytest.raises(UnknownNameError, match="imagefolder:PATH"):
        load("imagefolder")


class Broken(Dataset[Any]):
    """Items of various faults."""

    def __init__(self, fault: str) -> None:
        self.fault = fault

    def __len__(self) -> int:
        return 30

    def __getitem__(self, index: int) -> Any:
        if index >= 30:
            raise IndexError
        x, y = torch.full((3, 4, 4), float(index) + (0.5 if self.fault == "none" else 0)), index % 3
        if index == 17:
            match self.fault:
                case "nan":
                    x[0, 0, 0] = float("nan")
                case "shape":
                    x = torch.zeros(3, 5, 4)
                case "pair":
                    return x
                case "image":
                    return Image.new("RGB", (4, 4)), y
        return x, y


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("nan", "item 17 holds NaN"),
        ("shape", "differ in shape"),
        ("pair", "item 17 is no (input, target)"),
        ("image", "17"),
    ],
)
def test_bad_datasets_are_named(fault: str, message: str) -> None:
    for made in ((Broken("none"), Broken(fault)), (Broken(fault), Broken("none"))):
        with pytest.raises(DataError, match=re.escape(message)):
            for_model(data.from_objects(made, "mine", Request(labels=False)), 3, Silent())


def test_lazy_datasets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(splits, "MEMORY_BYTES", 0)
    base = TensorDataset(torch.randn(60, 3, 4, 4), torch.arange(60) % 3)
    made = data.from_objects((Subset(base, range(30)), Subset(base, range(30, 60))), "mine", Request())
    found = for_model(made, 3, Silent())
    assert isinstance(found.search, DatasetSplit)
    x, y = next(iter(found.search.head(5).batches(3)))
    assert x.shape == (3, 3, 4, 4)
    assert y.shape == (3,)
    assert found.identity() == for_model(made, 3, Silent()).identity()


def test_shared_samples_are_refused() -> None:
    x, y = torch.randn(60, 3, 4, 4), torch.arange(60) % 3
    whole = TensorDataset(x, y)
    for made in (
        (whole, whole),
        (Subset(whole, range(40)), Subset(whole, range(20, 60))),
        ((x, y), (x.clone(), y)),
    ):
        with pytest.raises(DataError, match="must be disjoint"):
            for_model(data.from_objects(made, "mine", Request()), 3, Silent())


def test_a_few_equal_samples_are_a_note() -> None:
    x, y = torch.randn(80, 3, 4, 4), torch.arange(80) % 4
    x[40] = x[0]
    found = for_model(data.from_objects(((x[:40], y[:40]), (x[40:], y[40:])), "mine", Request()), 3, Silent())
    assert any("1 equal samples occur in both" in note for note in found.notes)


@given(st.lists(st.integers(0, 4), min_size=1, max_size=60))
def test_halving_is_a_partition_by_order_within_each_class(labels: list[int]) -> None:
    first, second = data.halves(labels)
    assert sorted([*first, *second]) == list(range(len(labels)))
    for label in set(labels):
        a = [i for i in first if labels[i] == label]
        b = [i for i in second if labels[i] == label]
        assert len(b) - len(a) in (0, 1)
        assert not a or max(a) < min(b)


def test_normalisation_by_numbers() -> None:
    assert normalize.parse("0.5,0.5,0.5/0.25,0.25,0.25").for_channels(3).std == (0.25,) * 3
    assert normalize.parse("0.1/0.3").for_channels(3).mean == (0.1,)
    assert normalize.PRESETS["cifar10"].for_channels(1).mean == pytest.approx((0.4734,), abs=1e-4)
    for text in ("imagnet", "1,2/3", "1,2,3", "a/b", "0,0,0/1,0,1", "nan/1", ""):
        with pytest.raises(ConfigError):
            normalize.parse(text)
    with pytest.raises(AutocompError, match="5 channels"):
        normalize.PRESETS["imagenet"].for_channels(5)
