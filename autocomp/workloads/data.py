"""Data by spec: calibration, search and test splits that never share a sample."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from autocomp.core.progress import Progress, Silent
from autocomp.errors import DataError, UnknownNameError
from autocomp.workloads import arrays, digits, factories, imagefolder, normalize, remote_files
from autocomp.workloads.splits import AnySplit, DatasetSplit, ImageFolderSplit, TensorSplit, in_memory

SPECS = ("digits", "imagefolder:PATH", "npz:PATH", "package.module:factory", "path/file.py:factory")

MIN_IMAGES = 8
"""Fewer samples in a split say nothing about a network."""

_ORDER_SEED = 0
"""Search and test are shuffled with this, so that their first samples are a fair draw; figures do not depend on it."""


@dataclass(frozen=True, kw_only=True)
class Request:
    """What is wanted of the data.

    Attributes:
        size: side in pixels, or None for the data's own.
        normalization: of pixels.
        calibration: samples drawn from the training data.
        seed: of that draw.
        labels: targets must be class numbers.
    """

    size: int | None = None
    normalization: normalize.Normalization = normalize.PRESETS["imagenet"]
    calibration: int = 512
    seed: int = 0
    labels: bool = True


@dataclass(frozen=True, kw_only=True)
class Data:
    """Three splits and what is known of them.

    Attributes:
        name: for titles.
        calibration, search, test: disjoint; shuffled.
        classes: number of classes, None where targets are no class numbers.
        exact: the classes are named by the data; else they are counted from the largest label.
        facts: for the report.
        notes: one line each.
    """

    name: str
    calibration: AnySplit
    search: AnySplit
    test: AnySplit
    classes: int | None
    exact: bool = False
    facts: dict[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def splits(self) -> dict[str, AnySplit]:
        """By name."""
        return {"calibration": self.calibration, "search": self.search, "test": self.test}

    def identity(self) -> str:
        """Hash of what is in the splits."""
        return hashlib.sha256("".join(s.identity() for s in self.splits().values()).encode()).hexdigest()


def load_data(spec: str, request: Request) -> Data:
    """The data that ``spec`` names; images are not decoded yet (:func:`for_model` does that).

    Raises:
        UnknownNameError, DataError, ConfigError: what is wrong with the spec or the data.
    """
    kind, colon, rest = spec.partition(":")
    if spec == "digits":
        train, search, test = digits.splits(size=request.size or digits.IMAGE_SIZE, normalization=request.normalization)
        return assemble("digits", (train, search, test), request, classes=digits.CLASSES, exact=True)
    if kind == "imagefolder" and colon:
        return _image_folder(_path(rest, spec), request)
    if kind == "npz" and colon:
        path = _path(rest, spec)
        return assemble(path.stem, arrays.read_npz(path, request.normalization, request.size), request)
    if factories.is_factory(spec):
        made = factories.call(
            factories.load_object(spec, "data"), spec, "data", image_size=request.size, seed=request.seed
        )
        return from_objects(made, spec, request)
    raise UnknownNameError("data", spec, SPECS)


def _path(text: str, spec: str) -> Path:
    if remote_files.is_address(text):
        return remote_files.local_copy(text, f"data {spec}")
    return Path(text).expanduser()


def from_objects(made: Any, name: str, request: Request) -> Data:
    """Data from (train, test) or (train, search, test): map-style datasets, or (inputs, targets) pairs."""
    if not isinstance(made, tuple | list) or len(made) not in (2, 3):
        length = f" of {len(made)}" if isinstance(made, tuple | list) else ""
        raise DataError(
            f"data {name}: expected (train, test) or (train, search, test), each a dataset or a pair "
            f"(inputs, targets); got {type(made).__name__}{length}"
        )
    labels = ("train", "test") if len(made) == 2 else ("train", "search", "test")
    _refuse_shared(made, labels, name)
    parts = [arrays.as_split(part, f"{name}, {label}", request) for part, label in zip(made, labels, strict=True)]
    # read once here: halving and counting classes need every target
    judged = [p if isinstance(p, TensorSplit) else in_memory(p, Silent()) for p in parts[1:]]
    return assemble(name, (parts[0], *judged), request)


def assemble(
    name: str,
    parts: tuple[AnySplit, ...],
    request: Request,
    *,
    classes: int | None = None,
    exact: bool = False,
    facts: dict[str, Any] | None = None,
) -> Data:
    """Calibration drawn from train; without a search split, test is halved per class by order."""
    train, test = parts[0], parts[-1]
    notes: list[str] = []
    if len(parts) == 3:
        search = parts[1]
        order = "as given"
    else:
        first, second = halves(labels_of(test))
        search, test = test.take(first.tolist()), test.take(second.tolist())
        order = "test halved per class by order: first half search, second half test"
    _check_counts(name, {"train": train, "search": search, "test": test})
    drawn = np.random.default_rng(request.seed).permutation(len(train))[: request.calibration]
    calibration = train.take(drawn.tolist())
    search, test = _shuffled(search), _shuffled(test)
    if request.labels and classes is None:
        classes = _count_classes(name, {"calibration": calibration, "search": search, "test": test})
    smallest = min(len(search), len(test))
    if smallest < 100:
        notes.append(f"data {name}: {smallest} samples in the smallest split; intervals will be wide")
    return Data(
        name=name,
        calibration=calibration,
        search=search,
        test=test,
        classes=classes,
        exact=exact,
        facts={
            "data": name,
            "train_samples": len(train),
            "calibration_samples": len(calibration),
            "calibration_seed": request.seed,
            "search_samples": len(search),
            "test_samples": len(test),
            "splits": order,
            "classes": classes,
            **(facts or {}),
        },
        notes=tuple(notes),
    )


def for_model(data: Data, channels: int | None, progress: Progress) -> Data:
    """Images decoded (where they fit in memory) with the channels that the model takes; splits checked.

    Args:
        data: as loaded.
        channels: input channels of the model's first convolution, None where it has none.
        progress: told while images are decoded.

    Raises:
        DataError: a corrupt image, NaN, labels out of range, samples that occur in two splits.
    """
    notes = list(data.notes)
    splits: dict[str, AnySplit] = {}
    lazy = [s for s in data.splits().values() if not isinstance(s, TensorSplit)]
    if lazy:
        progress.stage(f"reading {data.name}", total=sum(len(s) for s in lazy))
    for name, split in data.splits().items():
        ready = split
        if isinstance(ready, ImageFolderSplit) and channels == 1:
            ready = dataclasses.replace(ready, channels=1, normalization=ready.normalization.for_channels(1))
        if not isinstance(ready, TensorSplit):
            ready = in_memory(ready, progress)
        if isinstance(ready, TensorSplit):
            ready, note = arrays.with_channels(ready, channels, f"data {data.name}")
            arrays.check(ready, f"data {data.name}, {name}", data.classes)
            notes += [note] if note and note not in notes else []
        splits[name] = ready
    notes += _shared_samples(data.name, splits)
    return dataclasses.replace(
        data,
        calibration=splits["calibration"],
        search=splits["search"],
        test=splits["test"],
        notes=tuple(notes),
    )


def halves(labels: Sequence[int] | np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Indices of the first and of the second half of each class, by order; an odd one goes to the second.

    Targets that are no class numbers are halved as a whole.
    """
    array = np.asarray(labels)
    if array.ndim != 1 or not np.issubdtype(array.dtype, np.integer):
        array = np.zeros(len(array), dtype=np.int64)
    first, second = [], []
    for label in np.unique(array):
        members = np.flatnonzero(array == label)
        first.append(members[: len(members) // 2])
        second.append(members[len(members) // 2 :])
    return np.concatenate(first), np.concatenate(second)


def labels_of(split: AnySplit) -> np.ndarray:
    """Targets of every sample, without decoding where they are known without it."""
    if isinstance(split, ImageFolderSplit):
        return np.asarray(split.labels)
    if isinstance(split, DatasetSplit):
        targets = getattr(split.dataset, "targets", None)
        if targets is not None and len(targets) == len(split.dataset):
            return np.asarray(targets)[list(split.indices)]
        return torch.cat([y for _, y in split.batches(64)]).numpy()
    return split.targets.numpy()


def _image_folder(root: Path, request: Request) -> Data:
    train, val, test, classes = imagefolder.scan(root, size=request.size, normalization=request.normalization)
    parts: tuple[AnySplit, ...] = (train, test) if val is None else (train, val, test)
    facts = {"image_size": train.size, "class_names": classes}
    return assemble(root.name or str(root), parts, request, classes=len(classes), exact=True, facts=facts)


def _shuffled(split: AnySplit) -> AnySplit:
    return split.take(np.random.default_rng(_ORDER_SEED).permutation(len(split)).tolist())


def _check_counts(name: str, splits: dict[str, AnySplit]) -> None:
    for part, split in splits.items():
        if len(split) < MIN_IMAGES:
            raise DataError(
                f"data {name}: {len(split)} samples in the {part} split; at least {MIN_IMAGES} are needed in each"
            )


def _count_classes(name: str, splits: dict[str, AnySplit]) -> int:
    labels = {part: labels_of(split) for part, split in splits.items()}
    for part, values in labels.items():
        if values.ndim < 1 or not np.issubdtype(values.dtype, np.number) or (values != np.floor(values)).any():
            raise DataError(f"data {name}, {part}: targets are no class numbers; give integers from 0, or --metric mse")
    everything = np.concatenate([v.reshape(-1) for v in labels.values()])
    if everything.min() < 0:
        raise DataError(f"data {name}: label {int(everything.min())}; labels count from 0")
    if len(np.unique(everything)) < 2:
        raise DataError(f"data {name}: a single class; at least two are needed to measure anything")
    return int(everything.max()) + 1


def _refuse_shared(made: Sequence[Any], labels: Sequence[str], name: str) -> None:
    """Two splits that are one object, or subsets of one dataset that overlap."""
    for i, first in enumerate(made):
        for j in range(i + 1, len(made)):
            second = made[j]
            same = first is second
            base = getattr(first, "dataset", None)
            if base is not None and base is getattr(second, "dataset", None):
                same = bool(set(getattr(first, "indices", ())) & set(getattr(second, "indices", ())))
            if same:
                raise DataError(f"data {name}: {labels[i]} and {labels[j]} share samples; the splits must be disjoint")


def _shared_samples(name: str, splits: dict[str, AnySplit]) -> list[str]:
    """Notes on samples that occur in two splits; more than half of a split is an error."""
    seen = {part: arrays.sample_hashes(split) for part, split in splits.items() if isinstance(split, TensorSplit)}
    notes = []
    for first, second in (("calibration", "search"), ("calibration", "test"), ("search", "test")):
        if first not in seen or second not in seen:
            continue
        shared = len(seen[first] & seen[second])
        if 2 * shared > min(len(seen[first]), len(seen[second])):
            raise DataError(f"data {name}: {first} and {second} share {shared} samples; the splits must be disjoint")
        if shared:
            notes.append(f"data {name}: {shared} equal samples occur in both {first} and {second}")
    return notes
