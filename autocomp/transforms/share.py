"""Weight sharing: numbers, or short vectors, that many weights of a layer have in common."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from autocomp.core.encodings import CodebookTensor, round_half
from autocomp.core.network import Layer
from autocomp.errors import ConfigError
from autocomp.transforms._codebooks import on_codebooks, padded
from autocomp.transforms._kmeans import first_centres, kmeans_vectors, lloyd_numbers, nearest_vectors
from autocomp.transforms.problem import LayerProblem
from autocomp.transforms.weight_step import WeightStep, channel_scale, checked, importance, kept_channels


@dataclass(frozen=True, kw_only=True)
class ClusterWeights(WeightStep):
    """k-means clusters of a layer's weights (deep compression, Han et al. 2016).

    Attributes:
        entries: 2 to 256 numbers in a codebook; one of them is zero where weights were removed before.
        initial: where k-means begins: "linear", "random" or "density" (their section 3.2).
        granularity: "tensor": the weights themselves; "channel": each output channel divided by its root mean
            square, which is stored, before one codebook for all.
        group: output channels that share a codebook; None: all.
        weighted: squared errors count by E[x²] of the input they meet (Choi et al. 2017).
    """

    kind: ClassVar[str] = "cluster_weights"
    keeps_zeros: ClassVar[bool] = True

    entries: int = 16
    initial: str = "linear"
    granularity: str = "channel"
    group: int | None = None
    weighted: bool = True

    def __post_init__(self) -> None:
        self._within("entries", 2, 256)
        self._one_of("initial", "linear", "random", "density")
        self._one_of("granularity", "channel", "tensor")
        if self.group is not None and self.group < 1:
            raise ConfigError(f"cluster_weights.group = {self.group}; allowed 1 and more output channels")

    def label(self) -> str:
        text = f"c{self.entries}" + {"linear": "", "random": "r", "density": "d"}[self.initial]
        text += "" if self.granularity == "channel" else "t"
        text += "" if self.group is None else f"g{self.group}"
        return text + ("" if self.weighted else "u")

    def legal(self, layer: Layer) -> str | None:
        channels = layer.weight_shape[layer.channel_axis]
        if self.group is not None and channels % self.group:
            return f"{channels} output channels are no multiple of cluster_weights.group = {self.group}"
        return None

    def encode(self, problem: LayerProblem) -> CodebookTensor:
        problem = checked(problem, self)
        channels = problem.channels()
        group = self.group or len(channels)
        if len(channels) % group:
            raise ConfigError(
                f"layer {problem.name}: cluster_weights.group = {group}; {len(channels)} output channels are no "
                "multiple of it"
            )
        scale = channel_scale(problem, self.granularity)
        normal, kept = channels / scale.reshape(-1, 1), kept_channels(problem)
        weights = scale.square().reshape(-1, 1) * (importance(problem) if self.weighted else torch.ones_like(normal))
        generator = torch.Generator().manual_seed(problem.seed)
        centres = [
            self._centres(normal[at : at + group], kept[at : at + group], weights[at : at + group], problem, generator)
            for at in range(0, len(normal), group)
        ]
        return on_codebooks(problem, scale, torch.stack(centres))

    def _centres(
        self, normal: Tensor, kept: Tensor, weights: Tensor, problem: LayerProblem, generator: torch.Generator
    ) -> Tensor:
        """[entries] of one codebook."""
        values, count = normal[kept], self.entries - (problem.mask is not None)
        if not len(values):
            return torch.zeros(self.entries)
        first = first_centres(values, count, self.initial, generator)
        return padded(lloyd_numbers(values, weights[kept], first), problem)


@dataclass(frozen=True, kw_only=True)
class VectorQuantize(WeightStep):
    """Product quantization: consecutive weights of a channel as entries of a codebook of vectors.

    Source: "And the bit goes down" (Stock et al. 2020); ours weights errors by the diagonal of the layer's
    second moment and does not fine-tune the codebook.

    Attributes:
        dim: weights of a vector (9: one 3x3 kernel); must divide the weights of an output channel.
        entries: 2 to 4096 vectors.
        granularity: as in :class:`ClusterWeights`.
    """

    kind: ClassVar[str] = "vector_quantize"

    dim: int = 4
    entries: int = 256
    granularity: str = "channel"

    def __post_init__(self) -> None:
        self._within("entries", 2, 4096)
        self._within("dim", 2, 64)
        self._one_of("granularity", "channel", "tensor")

    @property
    def uses_inputs(self) -> bool:
        return True

    def label(self) -> str:
        return f"v{self.dim}x{self.entries}" + ("" if self.granularity == "channel" else "t")

    def legal(self, layer: Layer) -> str | None:
        count = math.prod(layer.weight_shape) // layer.weight_shape[layer.channel_axis]
        if count % self.dim:
            return f"{count} weights a channel are no multiple of vector_quantize.dim = {self.dim}"
        vectors = math.prod(layer.weight_shape) // self.dim
        if vectors <= self.entries:
            return f"{vectors} vectors need no codebook of {self.entries}"
        return None

    def encode(self, problem: LayerProblem) -> CodebookTensor:
        problem = checked(problem, self)
        channels = problem.channels()
        if channels.shape[1] % self.dim or channels.numel() < self.dim * self.entries:
            raise ConfigError(
                f"layer {problem.name}: vector_quantize of {self.entries} entries of {self.dim}; {len(channels)} "
                f"channels of {channels.shape[1]} weights do not divide into so many"
            )
        scale = channel_scale(problem, self.granularity)
        points = (channels / scale.reshape(-1, 1)).reshape(-1, self.dim)
        weights = importance(problem) * scale.square().reshape(-1, 1)
        weights = (weights / weights.mean().clamp_min(1e-30)).reshape(-1, self.dim)
        centres = kmeans_vectors(points, weights, self.entries, torch.Generator().manual_seed(problem.seed))
        # ordered by length: the coder expects symbols near each other to be alike
        codebook = round_half(centres[centres.square().sum(dim=1).argsort(stable=True)])
        index, _ = nearest_vectors(points, weights, codebook)
        return CodebookTensor(
            symbols=index.to(torch.int16).reshape(len(channels), -1),
            codebook=codebook.unsqueeze(0),
            scale=scale,
            shape=tuple(problem.weight.shape),
            axis=problem.axis,
        )
