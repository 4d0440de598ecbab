"""The hashing trick: weights share values by a hash of their place, and nothing but the values is stored."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch

from autocomp.core.encodings import HashedTensor, hashed_parts, round_half
from autocomp.core.network import Layer
from autocomp.errors import ConfigError
from autocomp.transforms.problem import LayerProblem
from autocomp.transforms.weight_step import WeightStep, channel_scale, checked, importance


@dataclass(frozen=True, kw_only=True)
class HashWeights(WeightStep):
    """Hashed weights with a sign hash (Chen et al. 2015). Theirs trains the values; ours is their least squares fit.

    Attributes:
        buckets: values, as a share of the weights, in (0, 1).
        granularity: "channel": each output channel divided by its root mean square, which is stored, before the
            values are fitted; or "tensor".
        weighted: squared errors count by E[x²] of the input they meet.
    """

    kind: ClassVar[str] = "hash_weights"

    buckets: float = 0.125
    granularity: str = "channel"
    weighted: bool = True

    def __post_init__(self) -> None:
        if not 0 < self.buckets < 1:
            raise ConfigError(f"hash_weights.buckets = {self.buckets}; allowed above 0 and below 1 (of the weights)")
        self._one_of("granularity", "channel", "tensor")

    def label(self) -> str:
        return f"h{self.buckets:g}" + ("" if self.granularity == "channel" else "t") + ("" if self.weighted else "u")

    def legal(self, layer: Layer) -> str | None:
        count = math.prod(layer.weight_shape)
        return None if round(self.buckets * count) else f"{self.buckets:g} of {count} weights is no bucket"

    def encode(self, problem: LayerProblem) -> HashedTensor:
        problem = checked(problem, self)
        weight, seed = problem.weight, problem.seed % (1 << 32)
        scale = channel_scale(problem, self.granularity)
        along = problem.shaped(scale.reshape(-1, 1).expand_as(problem.channels())).flatten()
        costs = problem.shaped(importance(problem)).flatten() if self.weighted else None
        count = max(1, round(self.buckets * weight.numel()))
        moment = torch.zeros(count, dtype=torch.float64)
        mass = torch.zeros(count, dtype=torch.float64)
        for places, bucket, sign in hashed_parts(weight.numel(), count, seed):
            step = along[places].double()
            cost = step.new_ones(()) if costs is None else costs[places].double()
            moment.index_add_(0, bucket, cost * step * sign * weight.flatten()[places])
            mass.index_add_(0, bucket, cost * step.square())
        values = torch.where(mass > 0, moment / mass.clamp_min(1e-300), 0.0)
        made = round_half(values.float())
        return HashedTensor(values=made, scale=scale, shape=tuple(weight.shape), seed=seed, axis=problem.axis)
