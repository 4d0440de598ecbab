"""What a change does to the network's outputs, as a vector whose inner products are losses."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from autocomp.errors import DataError
from autocomp.evaluators.quality import kl_divergence

MAX_NUMBERS = 16_384
"""Longest vector that is kept as it is; longer ones are sketched down to about this length."""
_SKETCH_VALUES = 1 << 23  # random numbers held at a time


@dataclass(frozen=True, kw_only=True, eq=False)
class Effects:
    """Maps outputs of a changed network to (loss, whitened change), against the float32 network.

    With class scores the loss is KL(p ‖ softmax(z + v)) in nats, and u = √p ⊙ (v − Σ_j p_j v_j), so that
    ½‖u‖² = ½ vᵀFv with F = diag(p) − ppᵀ, the KL's second-order term. With any other output the loss is
    the squared error over the outputs' variance, and u = √2 v / √variance, so that ½‖u‖² is the loss.
    Both are means over samples (and positions).

    Vectors longer than :data:`MAX_NUMBERS` are sketched: each sample's numbers get random signs and are
    summed into random buckets, drawn anew for every sample (count sketch, Charikar et al. 2002). Inner
    products are kept in expectation, with a standard deviation of at most √2 ‖u‖‖w‖ / √(buckets a sample),
    and of about √2 ‖u‖‖w‖ / √length where samples contribute alike: 1 % of the norms.

    Attributes:
        reference: the float32 network's outputs [n, classes, ...], float32.
        classes: number of classes, or None where the output is no class score.
        seed: of the random signs.
    """

    reference: Tensor
    classes: int | None
    seed: int = 0
    _root: Tensor = field(init=False, repr=False)

    def __post_init__(self) -> None:
        if not bool(torch.isfinite(self.reference).all()):
            raise DataError("the float32 network's outputs hold NaN or infinity on the calibration images")
        if self.classes is not None:
            root = torch.softmax(self.reference.double(), dim=1).sqrt()
        else:
            # per sample, so that a sample's vector is what its own outputs changed
            centred = self.reference.double() - self.reference.double().mean(dim=0)
            power = float(centred.square().sum()) / len(centred)
            root = torch.tensor([2.0 / power if power > 0 else 2.0]).double().sqrt()
        object.__setattr__(self, "_root", root)

    @property
    def length(self) -> int:
        """Numbers of a vector."""
        samples, numbers = len(self.reference), self.reference[0].numel()
        return samples * min(numbers, self._kept())

    def _kept(self) -> int:
        """Numbers a sample keeps after sketching."""
        return max(1, MAX_NUMBERS // len(self.reference))

    def loss(self, outputs: Tensor) -> float:
        """The true loss of ``outputs``; inf where they are not finite."""
        if not bool(torch.isfinite(outputs).all()):
            return float("inf")
        if self.classes is not None:
            return kl_divergence(self.reference, outputs)
        change = (outputs.double() - self.reference.double()) * self._root
        return float(change.square().sum()) / (2 * len(outputs))

    def vector(self, outputs: Tensor) -> np.ndarray:
        """float32 [length]: the whitened change; zeros where ``outputs`` are not finite."""
        change = outputs.double() - self.reference.double()
        if not bool(torch.isfinite(change).all()):
            return np.zeros(self.length, dtype=np.float32)
        if self.classes is not None:
            change = change - (self._root.square() * change).sum(dim=1, keepdim=True)
            positions = change[0, 0].numel()
        else:
            positions = 1
        change = change * self._root / (len(change) * positions) ** 0.5
        flat = change.reshape(len(change), -1).float()
        return np.asarray(self._sketched(flat).reshape(-1).numpy())

    def _sketched(self, flat: Tensor) -> Tensor:
        """[n, numbers] → [n, kept], each sample by its own buckets and signs."""
        samples, numbers = flat.shape
        kept = self._kept()
        if numbers <= kept:
            return flat
        out = torch.zeros(samples, kept)
        step = max(1, _SKETCH_VALUES // numbers)
        generator = torch.Generator().manual_seed(self.seed)
        for first in range(0, samples, step):
            part = flat[first : first + step]
            drawn = torch.randint(0, 2 * kept, part.shape, generator=generator)
            signed = torch.where(drawn % 2 == 0, part, -part)
            out[first : first + step].scatter_add_(1, drawn // 2, signed)
        return out
