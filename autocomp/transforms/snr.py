"""Quantization to a wanted signal-to-noise ratio: the step size follows from the weight."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from autocomp.core.encodings import FloatTensor, QuantizedTensor
from autocomp.transforms.grids import step_grid
from autocomp.transforms.problem import LayerProblem
from autocomp.transforms.quantize import QuantizeWeights, quantize_many
from autocomp.transforms.weight_step import WeightStep, checked

_FINEST, _COARSEST = 0.01, 8.0  # what QuantizeWeights.step allows
_HALVINGS = 24


@dataclass(frozen=True, kw_only=True)
class QuantizeSnr(WeightStep):
    """A uniform grid whose step size gives a weight this signal-to-noise ratio.

    Attributes:
        snr_db: 10 log₁₀(Σ w² / Σ (w − q)²) of rounding to nearest, 1 to 40 dB.
        granularity, rounding: of the :class:`QuantizeWeights` that comes of it.
    """

    kind: ClassVar[str] = "quantize_snr"
    kernels: ClassVar[tuple[str, ...]] = ("int8",)
    keeps_zeros: ClassVar[bool] = True

    snr_db: float = 20.0
    granularity: str = "channel"
    rounding: str = "compensated"

    def __post_init__(self) -> None:
        self._within("snr_db", 1, 40)
        self._one_of("granularity", "channel", "tensor")
        self._one_of("rounding", "nearest", "compensated")

    def label(self) -> str:
        text = f"{self.snr_db:g}dB" + ("" if self.granularity == "channel" else "t")
        return text + ("" if self.rounding == "compensated" else "n")

    def resolve(self, problem: LayerProblem) -> QuantizeWeights:
        """The grid with that ratio on the problem's weight."""
        problem = checked(problem, self)
        found = target_snr(problem, self.snr_db, granularity=self.granularity)
        return QuantizeWeights(step=found.step, granularity=self.granularity, rounding=self.rounding)

    def encode(self, problem: LayerProblem) -> QuantizedTensor | FloatTensor:
        return quantize_many(
            problem.weight,
            [self.resolve(problem)],
            hessian=problem.hessian,
            axis=problem.axis,
            channel_scales=problem.channel_scales,
            mask=problem.mask,
        )[0]


def target_snr(problem: LayerProblem, snr_db: float, *, granularity: str = "channel") -> QuantizeWeights:
    """The coarsest step (four digits) at which rounding to nearest reaches ``snr_db`` on the problem's weight.

    The nearest step allowed, 0.01 to 8 standard deviations, where the ratio cannot be had; a ratio that a grid
    with a long tail cannot reach gets the finest.
    """
    channels = problem.channels()

    def reaches(step: float) -> bool:
        grid = step_grid(channels, step, per_tensor=granularity == "tensor", symmetric=True)
        noise = float((grid.nearest(channels) * grid.scale[:, None] - channels).double().square().sum())
        signal = float(channels.double().square().sum())
        return noise <= signal * 10 ** (-snr_db / 10)

    if reaches(_COARSEST):
        return QuantizeWeights(step=_COARSEST, granularity=granularity)
    low, high = math.log(_FINEST), math.log(_COARSEST)
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        low, high = (middle, high) if reaches(math.exp(middle)) else (low, middle)
    # rounded down, so that the ratio still holds
    digits = 10.0 ** (3 - math.floor(math.log10(math.exp(low))))
    step = math.floor(math.exp(low) * digits + 1e-9) / digits
    return QuantizeWeights(step=max(_FINEST, step), granularity=granularity)
