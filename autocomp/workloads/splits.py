"""Parts of the data: in memory, or decoded when asked for."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from autocomp.core.progress import Progress
from autocomp.errors import DataError
from autocomp.workloads.normalize import Normalization

MEMORY_BYTES = 1_500_000_000
"""Splits below this size are kept decoded."""

CROP_FROM = 160
"""Images of this side and more are cropped to the middle 87.5 %, as ImageNet is evaluated."""


@dataclass(frozen=True, kw_only=True, eq=False)
class TensorSplit:
    """A split in memory.

    Attributes:
        inputs: [n, ...] float32, or uint8 pixels [n, channels, h, w] with ``normalization``.
        targets: [n, ...].
        normalization: turns pixels into inputs; None where inputs are ready.
    """

    inputs: torch.Tensor
    targets: torch.Tensor
    normalization: Normalization | None = None

    def __len__(self) -> int:
        return len(self.inputs)

    def batches(self, batch_size: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """(inputs [n, ...] float32, targets [n, ...]); the last batch may be short."""
        for start in range(0, len(self), batch_size):
            inputs = self.inputs[start : start + batch_size]
            if self.normalization is not None:
                inputs = self.normalization.apply(inputs)
            yield inputs, self.targets[start : start + batch_size]

    def head(self, count: int) -> TensorSplit:
        """The first ``count`` samples."""
        return TensorSplit(inputs=self.inputs[:count], targets=self.targets[:count], normalization=self.normalization)

    def take(self, indices: Sequence[int]) -> TensorSplit:
        """The samples at ``indices``, in that order."""
        index = torch.as_tensor(list(indices), dtype=torch.long)
        return TensorSplit(inputs=self.inputs[index], targets=self.targets[index], normalization=self.normalization)

    def identity(self) -> str:
        """SHA-256 of everything in it."""
        digest = hashlib.sha256(repr((self.inputs.dtype, tuple(self.inputs.shape), self.normalization)).encode())
        for tensor in (self.inputs, self.targets):
            digest.update(tensor.detach().contiguous().numpy().tobytes())
        return digest.hexdigest()


@dataclass(frozen=True, kw_only=True)
class ImageFolderSplit:
    """Image files, decoded when asked for.

    Attributes:
        paths: the files, in order.
        labels: class of each.
        size: side in pixels that images are brought to.
        channels: 3 (everything becomes RGB) or 1 (grey).
        normalization: of pixels.
    """

    paths: tuple[Path, ...]
    labels: tuple[int, ...]
    size: int
    channels: int
    normalization: Normalization

    def __len__(self) -> int:
        return len(self.paths)

    def batches(self, batch_size: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """(inputs [n, channels, size, size] float32, labels [n]); the last batch may be short."""
        with ThreadPoolExecutor(max_workers=4) as pool:
            for start in range(0, len(self), batch_size):
                pixels = torch.stack(list(pool.map(self._decode, self.paths[start : start + batch_size])))
                yield self.normalization.apply(pixels), torch.tensor(self.labels[start : start + batch_size])

    def head(self, count: int) -> ImageFolderSplit:
        """The first ``count`` images."""
        return self.take(range(min(count, len(self))))

    def take(self, indices: Sequence[int]) -> ImageFolderSplit:
        """The images at ``indices``, in that order."""
        return ImageFolderSplit(
            paths=tuple(self.paths[i] for i in indices),
            labels=tuple(self.labels[i] for i in indices),
            size=self.size,
            channels=self.channels,
            normalization=self.normalization,
        )

    def identity(self) -> str:
        """SHA-256 of names, sizes and times of the files, and of how they are brought to size."""
        digest = hashlib.sha256(repr((self.size, self.channels, self.normalization)).encode())
        for path, label in zip(self.paths, self.labels, strict=True):
            stat = path.stat()
            name = "/".join(path.parts[-3:])
            digest.update(repr((name, label, stat.st_size, stat.st_mtime_ns)).encode())
        return digest.hexdigest()

    def memory_bytes(self) -> int:
        """Size of the decoded pixels."""
        return len(self) * self.channels * self.size * self.size

    def decoded(self, progress: Progress) -> TensorSplit:
        """The same split in memory, as uint8 pixels."""
        pixels = torch.empty(len(self), self.channels, self.size, self.size, dtype=torch.uint8)
        with ThreadPoolExecutor(max_workers=4) as pool:
            for index, image in enumerate(pool.map(self._decode, self.paths)):
                pixels[index] = image
                progress.advance()
        return TensorSplit(inputs=pixels, targets=torch.tensor(self.labels), normalization=self.normalization)

    def _decode(self, path: Path) -> torch.Tensor:
        """uint8 [channels, size, size]."""
        import numpy as np
        from PIL import Image, UnidentifiedImageError

        try:
            with Image.open(path) as image:
                colour = image.convert("RGB" if self.channels == 3 else "L")
                array = np.asarray(fit(colour, self.size))
        except (OSError, UnidentifiedImageError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            reason = "not an image" if isinstance(error, UnidentifiedImageError) else str(error)
            raise DataError(f"{path}: image cannot be decoded ({reason}); replace or remove the file") from error
        return torch.from_numpy(array.copy()).view(self.size, self.size, self.channels).permute(2, 0, 1)


def fit(image: Any, size: int) -> Any:
    """A PIL image brought to ``size`` x ``size``: shorter side resized (bilinear, antialiased), centre cut out.

    Images that have the size already are left alone. From 160 pixels on, the shorter side becomes
    size / 0.875, as ImageNet networks are evaluated (256 → 224).
    """
    from PIL import Image

    width, height = image.size
    if (width, height) == (size, size):
        return image
    side = round(size / 0.875) if size >= CROP_FROM else size
    scale = side / min(width, height)
    width, height = max(side, round(width * scale)), max(side, round(height * scale))
    image = image.resize((width, height), Image.Resampling.BILINEAR)
    left, top = (width - size) // 2, (height - size) // 2
    return image.crop((left, top, left + size, top + size))


@dataclass(frozen=True, kw_only=True, eq=False)
class DatasetSplit:
    """Items of a map-style dataset, read when asked for.

    Attributes:
        dataset: ``dataset[i]`` is (input, target).
        indices: which items, in order.
        name: for messages ("search split").
    """

    dataset: Any
    indices: tuple[int, ...]
    name: str

    def __len__(self) -> int:
        return len(self.indices)

    def batches(self, batch_size: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """(inputs [n, ...] float32, targets [n, ...]); the last batch may be short."""
        for start in range(0, len(self), batch_size):
            items = [self._read(i) for i in self.indices[start : start + batch_size]]
            yield self._stack([x for x, _ in items], start), torch.stack([y for _, y in items])

    def head(self, count: int) -> DatasetSplit:
        """The first ``count`` items."""
        return self.take(range(min(count, len(self))))

    def take(self, indices: Sequence[int]) -> DatasetSplit:
        """The items at ``indices`` of this split, in that order."""
        return DatasetSplit(dataset=self.dataset, indices=tuple(self.indices[i] for i in indices), name=self.name)

    def identity(self) -> str:
        """SHA-256 of the indices and of up to 16 items: a guard against other data, not against a changed pixel."""
        digest = hashlib.sha256(repr(self.indices).encode())
        for position in range(0, len(self), max(1, len(self) // 16)):
            for tensor in self._read(self.indices[position]):
                digest.update(tensor.contiguous().numpy().tobytes())
        return digest.hexdigest()

    def memory_bytes(self) -> int:
        """Size of the split were it kept in memory."""
        inputs, target = self._read(self.indices[0])
        return len(self) * (4 * inputs.numel() + 8 * target.numel())

    def decoded(self, progress: Progress) -> TensorSplit:
        """The same split in memory."""
        inputs, targets = [], []
        for x, y in self.batches(64):
            inputs.append(x)
            targets.append(y)
            progress.advance(len(x))
        return TensorSplit(inputs=torch.cat(inputs), targets=torch.cat(targets))

    def _read(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        item = self.dataset[index]
        if not isinstance(item, tuple | list) or len(item) != 2:
            raise DataError(f"{self.name}: item {index} is no (input, target) pair; the dataset must return pairs")
        try:
            x, y = torch.as_tensor(item[0]), torch.as_tensor(item[1])
        except (TypeError, ValueError, RuntimeError) as error:
            raise DataError(
                f"{self.name}: item {index} is no tensor ({error}); give the dataset a transform that makes tensors"
            ) from error
        if x.dtype == torch.uint8:
            raise DataError(f"{self.name}: item {index} is uint8; return float inputs, scaled and normalised")
        x = x.float()
        if not bool(torch.isfinite(x).all()):
            raise DataError(f"{self.name}: item {index} holds NaN or infinity; mend or remove it")
        return x, y

    def _stack(self, inputs: list[torch.Tensor], start: int) -> torch.Tensor:
        shapes = {tuple(x.shape) for x in inputs}
        if len(shapes) > 1:
            raise DataError(
                f"{self.name}: items {start} to {start + len(inputs) - 1} differ in shape "
                f"({', '.join(map(str, sorted(shapes)))}); bring them to one size"
            )
        return torch.stack(inputs)


AnySplit = TensorSplit | ImageFolderSplit | DatasetSplit


def in_memory(split: ImageFolderSplit | DatasetSplit, progress: Progress) -> AnySplit:
    """The split decoded, where it is below ``MEMORY_BYTES``; else the split as it is."""
    return split.decoded(progress) if split.memory_bytes() < MEMORY_BYTES else split
