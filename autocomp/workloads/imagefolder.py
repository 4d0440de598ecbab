"""``imagefolder:PATH``: train/, test/ and perhaps val/, each with one folder of images a class."""

from __future__ import annotations

import os
from pathlib import Path

from autocomp.errors import DataError
from autocomp.workloads.normalize import Normalization
from autocomp.workloads.splits import ImageFolderSplit

SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".ppm", ".pgm", ".tif", ".tiff", ".webp"})
_DEFAULT_SIZE = 224


def scan(
    root: Path, *, size: int | None, normalization: Normalization
) -> tuple[ImageFolderSplit, ImageFolderSplit | None, ImageFolderSplit, list[str]]:
    """(train, val or None, test, class names), nothing decoded yet, files in order of their names.

    Args:
        root: holds ``train``, ``test`` and perhaps ``val``.
        size: side in pixels, or None: that of the images when they are squares of one size, else 224.
        normalization: of pixels.

    Raises:
        DataError: a folder that is missing or empty, a single class, classes that train/ does not have.
    """
    if not root.is_dir():
        raise DataError(f"data imagefolder:{root}: there is no such folder")
    for part in ("train", "test"):
        if not (root / part).is_dir():
            raise DataError(
                f"data imagefolder:{root}: there is no folder {part}/; expected train/CLASS/IMAGE and "
                "test/CLASS/IMAGE (val/ is optional)"
            )
    parts = [part for part in ("train", "val", "test") if (root / part).is_dir()]
    if len({(root / part).resolve() for part in parts}) < len(parts):
        raise DataError(f"data imagefolder:{root}: {', '.join(parts)} are one folder; the splits must be disjoint")
    classes = _classes(root / "train")
    files = {part: _files(root / part, classes) for part in parts}
    side = size or _common_size([path for path, _ in files["train"]], len(classes))

    def split(part: str) -> ImageFolderSplit:
        return ImageFolderSplit(
            paths=tuple(path for path, _ in files[part]),
            labels=tuple(label for _, label in files[part]),
            size=side,
            channels=3,
            normalization=normalization,
        )

    return split("train"), split("val") if "val" in files else None, split("test"), classes


def _classes(train: Path) -> list[str]:
    classes = sorted(p.name for p in train.iterdir() if p.is_dir() and not p.name.startswith("."))
    if not classes:
        raise DataError(f"data {train}: no class folders inside; expected train/CLASS/IMAGE")
    if len(classes) == 1:
        raise DataError(f"data {train}: a single class ({classes[0]}); at least two are needed to measure anything")
    return classes


def _files(part: Path, classes: list[str]) -> list[tuple[Path, int]]:
    """(file, label) of every image, by class and then by name."""
    unknown = sorted(p.name for p in part.iterdir() if p.is_dir() and not p.name.startswith("."))
    unknown = [name for name in unknown if name not in classes]
    if unknown:
        raise DataError(f"data {part}: class folder {unknown[0]} is not in train/; the classes must agree")
    files: list[tuple[Path, int]] = []
    for label, name in enumerate(classes):
        found = [
            Path(folder, file)
            for folder, _, names in os.walk(part / name)
            for file in names
            if os.path.splitext(file)[1].lower() in SUFFIXES and not file.startswith(".")
        ]
        if not found and part.name == "train":
            raise DataError(f"data {part / name}: no images inside ({', '.join(sorted(SUFFIXES))})")
        files += [(path, label) for path in sorted(found)]
    if not files:
        raise DataError(f"data {part}: no images inside ({', '.join(sorted(SUFFIXES))})")
    return files


def _common_size(paths: list[Path], classes: int) -> int:
    """The side of the images, judged by a few of them, where they are equal squares; else 224."""
    from PIL import Image, UnidentifiedImageError

    sizes = set()
    for path in paths[:: max(1, len(paths) // min(32, 2 * classes))]:
        try:
            with Image.open(path) as image:
                sizes.add(image.size)
        except (OSError, UnidentifiedImageError) as error:
            raise DataError(f"{path}: not a readable image; replace or remove the file") from error
    width, height = next(iter(sizes))
    return int(width) if len(sizes) == 1 and width == height else _DEFAULT_SIZE
