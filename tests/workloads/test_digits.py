"""The built-in workload: splits that never change, training that repeats, a cache that mends itself."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from autocomp.core.progress import Silent
from autocomp.workloads import digits, normalize, weight_cache
from autocomp.workloads.digits import Training
from autocomp.workloads.splits import TensorSplit

IMAGENET = normalize.PRESETS["imagenet"]


class Notes(Silent):
    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, text: str) -> None:
        self.notes.append(text)


def rows(split: TensorSplit) -> set[bytes]:
    return {row.numpy().tobytes() for row in split.inputs}


def test_splits_are_stratified_disjoint_and_always_the_same() -> None:
    parts = digits.splits(size=32, normalization=IMAGENET)
    again = digits.splits(size=32, normalization=IMAGENET)
    assert [len(p) for p in parts] == [1007, 390, 400]
    for part, other, each in zip(parts, again, (None, 39, 40), strict=True):
        assert part.inputs.shape[1:] == (3, 32, 32)
        assert torch.equal(part.inputs, other.inputs)
        counts = torch.bincount(part.targets, minlength=10)
        assert counts.min() >= 95 if each is None else counts.tolist() == [each] * 10
        assert torch.bincount(part.head(100).targets, minlength=10).min() > 0  # shuffled
    train, search, test = map(rows, parts)
    assert not train & search
    assert not train & test
    assert not search & test


def test_pixels_are_normalised() -> None:
    plain = digits.splits(size=8, normalization=normalize.PRESETS["none"])[0].inputs
    normed = digits.splits(size=8, normalization=IMAGENET)[0].inputs
    assert plain.min() == 0
    assert plain.max() == 1
    assert torch.equal(plain[:, 0], plain[:, 2])
    mean, std = torch.tensor(IMAGENET.mean).view(3, 1, 1), torch.tensor(IMAGENET.std).view(3, 1, 1)
    assert torch.allclose(normed * std + mean, plain, atol=1e-6)


def tiny() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 4, 3, 2), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(36, 10))


def test_the_same_seed_trains_the_same_weights() -> None:
    train = digits.splits(size=8, normalization=IMAGENET)[0].head(256)
    recipe = Training(epochs=2)
    before = torch.random.get_rng_state()
    first, same, other = (digits._train(tiny, train, recipe, seed, Silent()).state_dict() for seed in (1, 1, 2))
    assert weight_cache.content_hash(first) == weight_cache.content_hash(same)
    assert weight_cache.content_hash(first) != weight_cache.content_hash(other)
    assert torch.equal(before, torch.random.get_rng_state())


def test_training_learns() -> None:
    train, search, _ = digits.splits(size=8, normalization=IMAGENET)
    network = digits._train(tiny, train, Training(epochs=6, peak_rate=1e-2), 0, Silent())
    assert not network.training
    with torch.no_grad():
        accuracy = (network(search.inputs).argmax(1) == search.targets).float().mean()
    assert accuracy > 0.7  # one in ten by chance


class Maker:
    """Counts how often weights are made."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self) -> dict[str, torch.Tensor]:
        self.calls += 1
        return {"w": torch.arange(6.0).view(2, 3), "n": torch.tensor(3)}


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("AUTOCOMP_CACHE", str(tmp_path))
    return tmp_path


def test_weights_are_made_once(cache: Path) -> None:
    make, notes = Maker(), Notes()
    first = weight_cache.cached("net", {"seed": 1}, make, notes)
    second = weight_cache.cached("net", {"seed": 1}, make, notes)
    assert make.calls == 1
    assert weight_cache.content_hash(first) == weight_cache.content_hash(second)
    weight_cache.cached("net", {"seed": 2}, make, notes)
    assert make.calls == 2
    assert notes.notes == []
    assert len(list((cache / "weights").iterdir())) == 2


@pytest.mark.parametrize("damage", ["cut", "flip", "empty", "text"])
def test_a_damaged_file_is_made_again_with_a_note(cache: Path, damage: str) -> None:
    make, notes = Maker(), Notes()
    whole = weight_cache.cached("net", {}, make, notes)
    (file,) = (cache / "weights").iterdir()
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes({"cut": data[:-4], "flip": bytes(data), "empty": b"", "text": b"hello"}[damage])
    mended = weight_cache.cached("net", {}, make, notes)
    assert make.calls == 2
    assert "damaged" in notes.notes[0]
    assert weight_cache.content_hash(whole) == weight_cache.content_hash(mended)
    weight_cache.cached("net", {}, make, notes)
    assert make.calls == 2


def test_interrupted_training_leaves_nothing_behind(cache: Path) -> None:
    def interrupted() -> dict[str, torch.Tensor]:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        weight_cache.cached("net", {}, interrupted, Silent())
    assert list(cache.rglob("*")) == []


def test_a_cache_that_cannot_be_written_costs_a_note(cache: Path) -> None:
    (cache / "weights").write_text("a file where the folder should be")
    notes = Notes()
    assert set(weight_cache.cached("net", {}, Maker(), notes)) == {"w", "n"}
    assert "AUTOCOMP_CACHE" in notes.notes[0]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["resnet18", "resnet20"])
def test_trained_networks_reach_97_percent(cache: Path, name: str) -> None:
    network = digits.trained(name, seed=0, size=32, normalization=IMAGENET, progress=Silent())
    test = digits.splits(size=32, normalization=IMAGENET)[2]
    with torch.no_grad():
        accuracy = (network(test.inputs).argmax(1) == test.targets).float().mean()
    assert accuracy >= 0.97
