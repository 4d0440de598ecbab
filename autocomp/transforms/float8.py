"""Weights as E4M3 numbers times a scale: what float8 kernels read, and finer near zero than int8."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from autocomp.core.encodings import E4M3_MAX, Float8Tensor
from autocomp.transforms.grids import storable
from autocomp.transforms.problem import LayerProblem
from autocomp.transforms.weight_step import WeightStep, checked


@dataclass(frozen=True, kw_only=True)
class Float8Weights(WeightStep):
    """E4M3, rounded to nearest; the largest magnitude becomes 448 (Micikevicius et al. 2022, section 3).

    Attributes:
        granularity: the largest of each output "channel", or of the whole "tensor".
    """

    kind: ClassVar[str] = "float8_weights"
    kernels: ClassVar[tuple[str, ...]] = ("float8",)
    keeps_zeros: ClassVar[bool] = True

    granularity: str = "channel"

    def __post_init__(self) -> None:
        self._one_of("granularity", "channel", "tensor")

    def label(self) -> str:
        return "fp8" + ("" if self.granularity == "channel" else "t")

    def encode(self, problem: LayerProblem) -> Float8Tensor:
        problem = checked(problem, self)
        channels = problem.channels()
        pool = channels if self.granularity == "channel" else channels.reshape(1, -1)
        scale = storable(pool.abs().amax(dim=1) / E4M3_MAX)
        if problem.channel_scales:
            scale = scale.expand(len(channels)).contiguous()
        return Float8Tensor.nearest(problem.weight, scale, problem.axis)
