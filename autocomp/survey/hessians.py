"""Second moments of layers' inputs, made when asked for and kept while they fit."""

from __future__ import annotations

from collections import OrderedDict

import torch
from torch import Tensor

from autocomp.core.network import Network
from autocomp.graph.partial import PrefixRunner
from autocomp.transforms.compensate import Hessian
from autocomp.transforms.patches import has_patches

SAMPLES = 1 << 17
"""Input vectors averaged into a Hessian at most: some twenty for each column of the widest layers."""

LIMIT_BYTES = 1 << 30


class Hessians:
    """Callable: layer name → Hessian of its inputs, or None where the layer is no linear map of them.

    Asking in order of execution costs one forward pass in all; going back starts again from the inputs.

    Args:
        network: whose layers.
        images: calibration inputs [n, ...].
        seed: of sampled positions.
        limit_bytes: kept at most; the least recently used is given up first.
    """

    def __init__(self, network: Network, images: Tensor, *, seed: int = 0, limit_bytes: int = LIMIT_BYTES) -> None:
        self._network, self._seed, self._limit = network, seed, limit_bytes
        self._runner = PrefixRunner(network, images)
        self._kept: OrderedDict[str, Hessian] = OrderedDict()

    def __call__(self, layer: str) -> Hessian | None:
        """The Hessian; DataError where the layer's inputs are not finite."""
        if layer in self._kept:
            self._kept.move_to_end(layer)
            return self._kept[layer]
        module = self._network.module.get_submodule(layer)
        if layer not in self._network.layers or not has_patches(module):
            return None
        with torch.inference_mode():
            self._runner.at(layer)
            made = Hessian.of(module, self._runner.layer_inputs(), samples=SAMPLES, seed=self._seed)
        self._kept[layer] = made
        while sum(map(_bytes, self._kept.values())) > self._limit and len(self._kept) > 1:
            self._kept.popitem(last=False)
        return made


def _bytes(hessian: Hessian) -> int:
    return sum(block.numel() * block.element_size() for block in hessian.second)
