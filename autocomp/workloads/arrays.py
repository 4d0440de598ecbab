"""Data that comes as arrays: npz files, tensor pairs, datasets; their shapes and values checked."""

from __future__ import annotations

import hashlib
import zipfile
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch.nn import functional as F

from autocomp.errors import CorruptFileError, DataError
from autocomp.workloads.normalize import Normalization
from autocomp.workloads.splits import AnySplit, DatasetSplit, TensorSplit


class Wanted(Protocol):
    """What of a request matters here."""

    @property
    def size(self) -> int | None: ...

    @property
    def normalization(self) -> Normalization: ...


def read_npz(path: Path, normalization: Normalization, size: int | None) -> tuple[AnySplit, ...]:
    """(train, test) or (train, search, test) from arrays x_train, y_train, x_test, y_test[, x_search, y_search].

    uint8 inputs are pixels: scaled, normalised and brought to ``size``. Float inputs are taken as they are.

    Raises:
        DataError: no such file, an array that is missing or holds objects.
        CorruptFileError: the file is damaged.
    """
    if not path.is_file():
        raise DataError(f"data npz:{path}: there is no such file")
    try:
        with path.open("rb") as raw:
            file = np.load(raw, allow_pickle=False)
            found = {name: file[name] for name in file.files} if hasattr(file, "files") else {}
    except (zipfile.BadZipFile, EOFError, OSError) as error:
        raise CorruptFileError(f"data npz:{path}: damaged file ({error}); write it again with numpy.savez") from error
    except ValueError as error:
        raise DataError(
            f"data npz:{path}: holds Python objects or is no npz file; write plain arrays with numpy.savez"
        ) from error
    parts = ["train", "search", "test"] if "x_search" in found else ["train", "test"]
    missing = [f"{axis}_{part}" for part in parts for axis in "xy" if f"{axis}_{part}" not in found]
    if missing:
        raise DataError(
            f"data npz:{path}: no array {', '.join(missing)}; expected x_train, y_train, x_test, y_test "
            "(x_search, y_search optional)"
        )
    return tuple(
        tensor_split(found[f"x_{part}"], found[f"y_{part}"], f"data npz:{path}, x_{part}", normalization, size)
        for part in parts
    )


def as_split(part: Any, name: str, wanted: Wanted) -> AnySplit:
    """A split from (inputs, targets) tensors or arrays, or from a map-style dataset."""
    if isinstance(part, tuple | list) and len(part) == 2 and all(hasattr(p, "shape") for p in part):
        return tensor_split(part[0], part[1], f"data {name}", wanted.normalization, wanted.size)
    if isinstance(part, TensorSplit):
        return part
    if hasattr(part, "__getitem__") and hasattr(part, "__len__") and not hasattr(part, "shape"):
        if len(part) == 0:
            raise DataError(f"data {name}: the dataset is empty")
        return DatasetSplit(dataset=part, indices=tuple(range(len(part))), name=f"data {name}")
    raise DataError(
        f"data {name}: {type(part).__name__} is neither a dataset with __len__ and __getitem__ "
        "nor a pair (inputs, targets); of a DataLoader, give its dataset"
    )


def tensor_split(inputs: Any, targets: Any, name: str, normalization: Normalization, size: int | None) -> TensorSplit:
    """A split in memory: lengths agree, pixels are [n, channels, h, w], floats are float32."""
    x, y = _tensor(inputs, name), _tensor(targets, name)
    if x.dim() < 2 or len(x) != len(y):
        raise DataError(
            f"{name}: inputs of shape {list(x.shape)} with targets of shape {list(y.shape)}; "
            "the first axes must agree, and inputs need a second one"
        )
    pixels = x.dtype == torch.uint8
    if pixels:
        x = _channels_first(x, name)
        if size is not None and x.shape[-2:] != (size, size):
            x = F.interpolate(x, size=(size, size), mode="bilinear", antialias=True)
        normalization = normalization.for_channels(x.shape[1])
    elif x.is_floating_point():
        x = x.float()
    if y.dim() == 2 and y.shape[1] == 1 and not y.is_floating_point():
        y = y.squeeze(1)
    return TensorSplit(inputs=x, targets=y, normalization=normalization if pixels else None)


def with_channels(split: TensorSplit, channels: int | None, name: str) -> tuple[TensorSplit, str]:
    """The split with grey images repeated as RGB where the model takes ``channels`` = 3, and a note that says so.

    Other differences are left alone: whether the model runs on them is tried out, not guessed.
    """
    if channels != 3 or split.inputs.dim() != 4 or split.inputs.shape[1] != 1:
        return split, ""
    wide = split.inputs.expand(-1, 3, -1, -1).contiguous()
    note = f"{name}: grey images, given to the 3-channel model as three equal channels"
    return TensorSplit(inputs=wide, targets=split.targets, normalization=split.normalization), note


def check(split: TensorSplit, name: str, classes: int | None) -> None:
    """:class:`DataError` for NaN or infinity in inputs or targets, and for labels outside [0, classes)."""
    for what, tensor in (("input", split.inputs), ("target", split.targets)):
        if tensor.is_floating_point():
            good = torch.isfinite(tensor).flatten(1).all(1) if tensor.dim() > 1 else torch.isfinite(tensor)
            if not bool(good.all()):
                bad = torch.nonzero(~good).flatten()
                where = f"first: sample {int(bad[0])}"
                raise DataError(f"{name}: {len(bad)} {what}s hold NaN or infinity ({where}); mend or remove them")
    if classes is None:
        return
    low, high = int(split.targets.min()), int(split.targets.max())
    if low < 0 or high >= classes:
        raise DataError(f"{name}: label {low if low < 0 else high}; allowed 0 to {classes - 1}")


def sample_hashes(split: TensorSplit) -> set[bytes]:
    """A hash of each sample's input."""
    flat = np.ascontiguousarray(split.inputs.reshape(len(split), -1).numpy())
    return {hashlib.blake2b(row.tobytes(), digest_size=12).digest() for row in flat}


def _tensor(values: Any, name: str) -> torch.Tensor:
    try:
        tensor = torch.as_tensor(np.asarray(values)) if not isinstance(values, torch.Tensor) else values
    except (TypeError, ValueError) as error:
        raise DataError(f"{name}: values of this type cannot be used ({error})") from error
    return tensor.detach().cpu()


def _channels_first(pixels: torch.Tensor, name: str) -> torch.Tensor:
    """[n, h, w], [n, h, w, channels] or [n, channels, h, w] → [n, channels, h, w]."""
    if pixels.dim() == 3:
        return pixels.unsqueeze(1)
    if pixels.dim() != 4:
        raise DataError(f"{name}: uint8 inputs of shape {list(pixels.shape)}; pixels are [n, channels, h, w]")
    if pixels.shape[1] not in (1, 3) and pixels.shape[3] in (1, 3):
        return pixels.permute(0, 3, 1, 2).contiguous()
    return pixels
