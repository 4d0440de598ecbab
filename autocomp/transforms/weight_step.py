"""What every setting on the "weights" axis offers, and checks they share."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from autocomp.core.encodings import Encoding
from autocomp.core.network import Layer
from autocomp.core.steps import StepConfig
from autocomp.errors import ConfigError, DataError, UnsupportedError
from autocomp.transforms.grids import storable
from autocomp.transforms.problem import LayerProblem
from autocomp.transforms.quantize import column_importance


@dataclass(frozen=True, kw_only=True)
class WeightStep(StepConfig):
    """A way to store a layer's weight.

    Class attributes:
        kernels: 8-bit precisions ("int8", "float8") whose kernels take the encoding as it is.
        keeps_zeros: weights that a mask removed stay exactly zero; else the step takes no mask.
    """

    axis: ClassVar[str] = "weights"
    order: ClassVar[int] = 40
    kernels: ClassVar[tuple[str, ...]] = ()
    keeps_zeros: ClassVar[bool] = False

    @abstractmethod
    def encode(self, problem: LayerProblem) -> Encoding:
        """The stored form of the problem's weight.

        Raises:
            DataError: the weight is not finite.
            UnsupportedError: a mask where the step keeps no zeros.
        """

    @property
    def uses_inputs(self) -> bool:
        """Whether the result depends on the layer's inputs where they are known."""
        return getattr(self, "rounding", "nearest") == "compensated" or bool(getattr(self, "weighted", False))

    def legal(self, layer: Layer) -> str | None:
        """Why the step cannot be applied to ``layer``; None where it can."""
        return None

    def _one_of(self, name: str, *allowed: str) -> None:
        """Refuse other values of a field of text."""
        if getattr(self, name) not in allowed:
            raise ConfigError(f"{self.kind}.{name} = {getattr(self, name)!r}; allowed {', '.join(allowed)}")

    def _within(self, name: str, low: float, high: float) -> None:
        """Refuse numbers outside [low, high]."""
        if not low <= getattr(self, name) <= high:
            raise ConfigError(f"{self.kind}.{name} = {getattr(self, name)}; allowed {low:g} to {high:g}")


def checked(problem: LayerProblem, step: WeightStep) -> LayerProblem:
    """The problem with masked weights set to zero.

    Raises:
        DataError: the weight is not finite.
        UnsupportedError: it has a mask and ``step`` keeps no zeros.
    """
    if not bool(torch.isfinite(problem.weight).all()):
        raise DataError(f"layer {problem.name}: weights are not finite (NaN or infinity); mend the checkpoint")
    if problem.mask is None:
        return problem
    if not step.keeps_zeros:
        raise UnsupportedError(f"layer {problem.name}: {step.kind} keeps no zeros; leave sparsify out")
    return problem.replace(weight=torch.where(problem.mask, problem.weight, 0.0))


def kept_channels(problem: LayerProblem) -> Tensor:
    """Which weights stay, bool [channels, n]."""
    if problem.mask is None:
        return torch.ones_like(problem.channels(), dtype=torch.bool)
    return problem.replace(weight=problem.mask).channels()


def channel_scale(problem: LayerProblem, granularity: str) -> Tensor:
    """Root mean square of each channel's weights that stay, [channels], or ones: [1], or [channels] where the
    layer needs one a channel. Positive, and as the file stores it."""
    channels = problem.channels()
    if granularity == "tensor":
        return torch.ones(len(channels) if problem.channel_scales else 1)
    kept = kept_channels(problem)
    squares = (channels.square() * kept).sum(dim=1) / kept.sum(dim=1).clamp_min(1)
    return storable(squares.sqrt())


def importance(problem: LayerProblem) -> Tensor:
    """E[x²] of the input that each weight meets, [channels, n]; ones without inputs."""
    channels = problem.channels()
    if problem.hessian is None:
        return torch.ones_like(channels)
    found = column_importance(problem.hessian, channels, problem.axis)
    # columns that only meet padding must still be assigned to something
    floor = 1e-6 * float(found.max())
    return found.clamp_min(floor) if floor > 0 else torch.ones_like(channels)
