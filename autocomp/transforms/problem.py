"""What a weight transform works on: one layer's weight with what is known of its inputs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from autocomp.core.network import Network
from autocomp.errors import DataError

if TYPE_CHECKING:
    from autocomp.transforms.compensate import Hessian


@dataclass(frozen=True, kw_only=True, eq=False)
class LayerProblem:
    """One layer to be compressed.

    Attributes:
        name: of the layer, for messages.
        weight: float32, any shape; read only.
        axis: the axis that counts output channels (0; 1 for transposed convolutions).
        hessian: of the layer's inputs, with its convolution groups; None: round to nearest, plain magnitudes.
        channel_scales: store one scale a channel even where the setting asks for one a tensor, because
            restoring statistics will give every channel its own gain.
        mask: bool, the shape of ``weight``, False where an earlier step removed the weight; None: all stay.
        seed: of whatever is random.
    """

    name: str
    weight: Tensor
    axis: int = 0
    hessian: Hessian | None = None
    channel_scales: bool = False
    mask: Tensor | None = None
    seed: int = 0

    @staticmethod
    def of(network: Network, name: str, *, hessian: Hessian | None = None, seed: int = 0) -> LayerProblem:
        """The problem of a network's layer.

        Raises:
            DataError: its weight is not finite.
        """
        layer = network.layers[name]
        weight = network.module.get_parameter(layer.weight).detach().float()
        if not bool(torch.isfinite(weight).all()):
            raise DataError(f"layer {name}: weights are not finite (NaN or infinity); mend the checkpoint")
        return LayerProblem(
            name=name,
            weight=weight,
            axis=layer.channel_axis,
            hessian=hessian,
            channel_scales=name in network.folds,
            seed=seed,
        )

    def replace(self, **changes: Any) -> LayerProblem:
        """A new value with some fields changed."""
        return replace(self, **changes)

    def channels(self) -> Tensor:
        """The weight as [channels, n]."""
        return self.weight.transpose(0, self.axis).reshape(self.weight.shape[self.axis], -1)

    def shaped(self, channels: Tensor) -> Tensor:
        """Inverse of :meth:`channels` for any [channels, n]."""
        turned: Sequence[int] = self.weight.transpose(0, self.axis).shape
        return channels.reshape(turned).transpose(0, self.axis).contiguous()
