"""The built-in workload: scikit-learn's handwritten digits as 3 x 32 x 32 images, and networks trained on them.

Source: E. Alpaydin, C. Kaynak, "Optical Recognition of Handwritten Digits", UCI repository, 1998; the 1,797
images of 8 x 8 pixels that scikit-learn ships.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from autocomp.core.progress import Progress
from autocomp.workloads import models, weight_cache
from autocomp.workloads.normalize import Normalization
from autocomp.workloads.splits import TensorSplit

CLASSES = 10
IMAGE_SIZE = 32
_TEST_PER_CLASS = 40
_SEARCH_PER_CLASS = 39
_SPLIT_SEED = 0


def splits(*, size: int, normalization: Normalization) -> tuple[TensorSplit, TensorSplit, TensorSplit]:
    """(train 1,007, search 390, test 400 images): stratified, disjoint, the same for every seed of a run.

    Args:
        size: side in pixels that the 8 x 8 images are brought to (bilinear).
        normalization: of pixels in [0, 1]; the one grey channel is repeated three times.
    """
    from sklearn.datasets import load_digits

    data = load_digits()
    grey = torch.tensor(data.images, dtype=torch.float32).unsqueeze(1) / 16
    images = F.interpolate(grey, size=(size, size), mode="bilinear", align_corners=False)
    inputs = normalization.for_channels(3).apply(images.repeat(1, 3, 1, 1))
    whole = TensorSplit(inputs=inputs, targets=torch.tensor(data.target, dtype=torch.long))

    rng = np.random.default_rng(_SPLIT_SEED)
    train, search, test = [], [], []
    for label in range(CLASSES):
        members = rng.permutation(np.flatnonzero(data.target == label))
        test.append(members[:_TEST_PER_CLASS])
        search.append(members[_TEST_PER_CLASS : _TEST_PER_CLASS + _SEARCH_PER_CLASS])
        train.append(members[_TEST_PER_CLASS + _SEARCH_PER_CLASS :])
    parts = [whole.take(rng.permutation(np.concatenate(part)).tolist()) for part in (train, search, test)]
    return parts[0], parts[1], parts[2]


@dataclass(frozen=True, kw_only=True)
class Training:
    """How a network is trained: AdamW, one-cycle learning rate (Smith & Topin 2018), small affine augmentation.

    Attributes:
        epochs, batch_size: of it.
        peak_rate: highest learning rate.
        weight_decay: decoupled.
        rotate_rad, scale, shift: half-widths of the uniform ranges of the augmentation; ``shift`` in half-images.
    """

    epochs: int = 10
    batch_size: int = 64
    peak_rate: float = 2e-3
    weight_decay: float = 0.05
    rotate_rad: float = 0.17
    scale: float = 0.1
    shift: float = 0.12


_TRAINING = {"resnet20": Training(epochs=12, peak_rate=5e-3)}
"""Networks that want other settings than the default."""

_VERSION = 1
"""Part of the cache key: raised whenever the same settings train another network."""


def trained(name: str, *, seed: int, size: int, normalization: Normalization, progress: Progress) -> nn.Module:
    """The built-in network ``name`` trained on the train split, from the user's cache where it was trained before.

    The same seed gives the same weights on the same machine.
    """
    recipe = _TRAINING.get(name, Training())
    key = {
        "version": _VERSION,
        "model": name,
        "data": "digits",
        "size": size,
        "normalization": asdict(normalization),
        "seed": seed,
        "recipe": asdict(recipe),
    }

    def fresh() -> dict[str, torch.Tensor]:
        train, _, _ = splits(size=size, normalization=normalization)
        progress.stage(f"training {name} on digits", total=recipe.epochs * (len(train) // recipe.batch_size))
        return _train(lambda: models.build(name, CLASSES), train, recipe, seed, progress).state_dict()

    state = weight_cache.cached(f"{name}-digits", key, fresh, progress)
    network = models.build(name, CLASSES)
    network.load_state_dict(state)
    return network.eval()


def _train(
    build: Callable[[], nn.Module], train: TensorSplit, recipe: Training, seed: int, progress: Progress
) -> nn.Module:
    batches = len(train) // recipe.batch_size
    steps = batches * recipe.epochs
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]), torch.enable_grad():
        torch.manual_seed(seed)
        network = build().train()
        optimizer = torch.optim.AdamW(
            network.parameters(), lr=recipe.peak_rate, weight_decay=recipe.weight_decay, fused=True
        )
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, recipe.peak_rate, total_steps=steps, pct_start=0.25)
        for epoch in range(recipe.epochs):
            order = torch.randperm(len(train), generator=generator)[: batches * recipe.batch_size]
            for index in order.view(batches, recipe.batch_size):
                images = _augment(train.inputs[index], recipe, generator)
                loss = F.cross_entropy(network(images), train.targets[index])
                optimizer.zero_grad()
                torch.autograd.backward(loss)
                optimizer.step()
                schedule.step()
                progress.advance(epoch=epoch + 1, loss=round(loss.item(), 3))
    return network.eval()


def _augment(images: torch.Tensor, recipe: Training, generator: torch.Generator) -> torch.Tensor:
    """Each image [n, c, h, w] turned, scaled and shifted a little."""

    def uniform(*shape: int) -> torch.Tensor:
        return torch.rand(*shape, generator=generator) * 2 - 1

    count = len(images)
    angle, scale = uniform(count) * recipe.rotate_rad, 1 + uniform(count) * recipe.scale
    shift = uniform(count, 2) * recipe.shift
    cosine, sine = angle.cos() * scale, angle.sin() * scale
    theta = torch.stack([torch.stack([cosine, -sine, shift[:, 0]], 1), torch.stack([sine, cosine, shift[:, 1]], 1)], 1)
    grid = F.affine_grid(theta, list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, padding_mode="border", align_corners=False)
