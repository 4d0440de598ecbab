"""Normalisation of pixels: (x / 255 - mean) / std, a channel at a time."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from autocomp.errors import ConfigError

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, kw_only=True)
class Normalization:
    """Means and standard deviations of pixels scaled to [0, 1].

    Attributes:
        mean, std: one number a channel, or a single one for every channel.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]

    def for_channels(self, channels: int) -> Normalization:
        """The same for images of ``channels`` channels; colour numbers are averaged for grey images."""
        if len(self.mean) in (1, channels):
            return self
        if channels == 1:
            return Normalization(mean=(sum(self.mean) / len(self.mean),), std=(sum(self.std) / len(self.std),))
        raise ConfigError(
            f"normalize has {len(self.mean)} means for images of {channels} channels; give one number a channel"
        )

    def apply(self, pixels: torch.Tensor) -> torch.Tensor:
        """uint8 [n, channels, h, w] (or float in [0, 1]) → float32 of the same shape."""
        import torch

        x = pixels.float() / 255 if pixels.dtype == torch.uint8 else pixels.float()
        mean = torch.tensor(self.mean).view(1, -1, 1, 1)
        std = torch.tensor(self.std).view(1, -1, 1, 1)
        return (x - mean) / std


PRESETS = {
    "imagenet": Normalization(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)),
    "cifar10": Normalization(mean=(0.4914, 0.4822, 0.4465), std=(0.2470, 0.2435, 0.2616)),
    "none": Normalization(mean=(0.0,), std=(1.0,)),
}


def parse(text: str) -> Normalization:
    """A preset's name, or numbers "m1,m2,m3/s1,s2,s3" for pixels scaled to [0, 1].

    Raises:
        ConfigError: neither, or a standard deviation that is not positive.
    """
    if text in PRESETS:
        return PRESETS[text]
    mean_text, slash, std_text = text.partition("/")
    try:
        mean = tuple(float(m) for m in mean_text.split(","))
        std = tuple(float(s) for s in std_text.split(","))
    except ValueError:
        mean, std = (), ()
    if not slash or not mean or len(mean) != len(std) or not all(map(math.isfinite, (*mean, *std))):
        raise ConfigError(
            f"normalize = {text!r}; allowed {', '.join(PRESETS)} or numbers for pixels in [0, 1] such as "
            '"0.485,0.456,0.406/0.229,0.224,0.225" (means/standard deviations, as many of each)'
        )
    if min(std) <= 0:
        raise ConfigError(f"normalize = {text!r}; standard deviations must be above 0")
    return Normalization(mean=mean, std=std)
