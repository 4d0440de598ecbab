"""LeNet-300-100 and LeNet-5, what Deep Compression did to them, and images to train them on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

SIDE = 28


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """A network and its settings in the paper.

    Attributes:
        build: the untrained network.
        keep: share of the weights that stay, a layer (Han et al. 2015, tables 3 and 4).
        bits: of a codebook index, a layer; one entry is zero.
        paper: (bytes before, bytes after, error before, error after in %), tables 1, 4 and 5.
        epochs: of training; retraining takes a third after each round, twice that after the last.
        seeds: that are run unless others are asked for.
    """

    build: Callable[[], nn.Module]
    keep: dict[str, float]
    bits: dict[str, int]
    paper: tuple[int, int, float, float]
    epochs: int
    seeds: tuple[int, ...]


def lenet300() -> nn.Module:
    return nn.Sequential(
        nn.Flatten(), nn.Linear(784, 300), nn.ReLU(), nn.Linear(300, 100), nn.ReLU(), nn.Linear(100, 10)
    )


def lenet5() -> nn.Module:
    """Caffe's LeNet: 431,080 parameters."""
    convolutions = [nn.Conv2d(1, 20, 5), nn.MaxPool2d(2), nn.Conv2d(20, 50, 5), nn.MaxPool2d(2)]
    return nn.Sequential(*convolutions, nn.Flatten(), nn.Linear(800, 500), nn.ReLU(), nn.Linear(500, 10))


RECIPES = {
    "lenet300": Recipe(
        build=lenet300,
        keep={"1": 0.08, "3": 0.09, "5": 0.26},
        bits={"1": 6, "3": 6, "5": 6},
        paper=(1070_000, 27_000, 1.64, 1.58),
        epochs=60,
        seeds=(0, 1, 2),
    ),
    "lenet5": Recipe(
        build=lenet5,
        keep={"0": 0.66, "2": 0.12, "5": 0.08, "7": 0.19},
        bits={"0": 8, "2": 8, "5": 5, "7": 5},
        paper=(1720_000, 44_000, 0.80, 0.74),
        epochs=24,
        seeds=(0, 1, 2),
    ),
}


@dataclass(frozen=True, kw_only=True)
class Data:
    """Images [n, 1, 28, 28] in [0, 1] with classes, for training, validation and test."""

    train: tuple[Tensor, Tensor]
    validation: tuple[Tensor, Tensor]
    test: tuple[Tensor, Tensor]


def load(source: str) -> Data:
    """The images of ``--data``."""
    if source == "digits":
        from autocomp.workloads.digits import splits
        from autocomp.workloads.normalize import PRESETS

        digits = splits(size=SIDE, normalization=PRESETS["none"])
        first, second, third = ((part.inputs[:, :1].clone(), part.targets) for part in digits)
        return Data(train=first, validation=second, test=third)
    both = arrays_of(Path(source))
    train, test = ((torch.from_numpy(x).float().unsqueeze(1) / 255, torch.from_numpy(y).long()) for x, y in both)
    order = torch.randperm(len(train[0]), generator=torch.Generator().manual_seed(0))
    cut = len(order) * 9 // 10
    parts = [(train[0][index], train[1][index]) for index in (order[:cut], order[cut:])]
    return Data(train=parts[0], validation=parts[1], test=test)


def arrays_of(path: Path) -> list[tuple[np.ndarray, np.ndarray]]:
    """(images uint8 [n, 28, 28], classes [n]) for training and test."""
    if path.is_file():
        with np.load(path) as file:
            return [(file[f"x_{part}"], file[f"y_{part}"]) for part in ("train", "test")]
    from PIL import Image

    found = []
    for part in ("train", "test"):
        images, classes = [], []
        for label, folder in enumerate(sorted(p for p in (path / part).iterdir() if p.is_dir())):
            for file in sorted(folder.iterdir()):
                images.append(np.asarray(Image.open(file).convert("L").resize((SIDE, SIDE), Image.Resampling.BILINEAR)))
                classes.append(label)
        found.append((np.stack(images), np.array(classes)))
    return found


def moved(images: Tensor, generator: torch.Generator) -> Tensor:
    """Each image turned by up to 10 degrees, scaled by up to a tenth and shifted by up to 1.7 pixels."""
    count = len(images)
    angle, scale, x, y = (torch.rand(4, count, generator=generator) * 2 - 1) * torch.tensor(
        [[0.17], [0.1], [0.12], [0.12]]
    )
    cosine, sine = angle.cos() * (1 + scale), angle.sin() * (1 + scale)
    theta = torch.stack([torch.stack([cosine, -sine, x], 1), torch.stack([sine, cosine, y], 1)], 1)
    grid = F.affine_grid(theta, list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, padding_mode="border", align_corners=False)
