"""A network whose structure was changed: channels removed, layers factorised."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from autocomp.core.edits import Edit
from autocomp.core.network import Network

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, kw_only=True)
class Origin:
    """What a variant's layer was in the base network.

    Attributes:
        layer: the base layer's name.
        outputs: int64 [kept], the base layer's output channels that this layer still makes; None where
            it makes all of them.
        inner: the layer's output is no output of the base layer (all factors but the last one).
    """

    layer: str
    outputs: torch.Tensor | None = None
    inner: bool = False


@dataclass(frozen=True, kw_only=True)
class Variant:
    """The base network after structural steps. A value; every structural transform returns a new one.

    Attributes:
        network: folded float32 network of the new structure, weights included.
        edits: how its module is made from the base network's, in order.
        origins: layer of ``network`` → what it was; complete.
        notes: what could not be done, one line each.
    """

    network: Network
    edits: tuple[Edit, ...] = ()
    origins: Mapping[str, Origin] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @staticmethod
    def base(network: Network) -> Variant:
        """The network as it is."""
        return Variant(network=network, origins={name: Origin(layer=name) for name in network.layers})

    def parts(self) -> dict[str, tuple[str, ...]]:
        """Base layer → the layers it became, in order of execution."""
        found: dict[str, tuple[str, ...]] = {}
        for name in self.network.layers:
            base = self.origins[name].layer
            found[base] = (*found.get(base, ()), name)
        return found
