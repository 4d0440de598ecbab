"""A candidate put together from layers compressed one by one (OBC's "database", Frantar and Alistarh 2022)."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import nn

from autocomp.core.candidate import Candidate
from autocomp.core.compressed import CompressedModel
from autocomp.core.encodings import Encoding, FloatTensor
from autocomp.core.network import Network
from autocomp.core.steps import FLOAT, Choice

_NORM_STATISTICS = ("running_mean", "running_var")


def stitch(
    network: Network, candidate: Candidate, lookup: Callable[[str, Choice], Mapping[str, Encoding]]
) -> CompressedModel:
    """Encodings of every parameter and floating-point buffer of the folded network.

    Args:
        network: folded network.
        candidate: what each unit is to be.
        lookup: (unit, choice without its activation part) → encodings by state-dict key; asked only for
            units that are compressed. It may leave out the bias.

    Raises:
        ValueError: the candidate names a unit that the network does not have, or ``lookup`` returned a
            key that does not exist or left out the weight.
    """
    tensors = float_encodings(network)
    kinds: set[str] = set()
    weights_of_layers = {layer.weight for layer in network.layers.values()}
    for unit, whole in candidate.items():
        choice = whole.storage()
        if choice == FLOAT:
            continue
        made = lookup(unit, choice)
        # a unit is a layer, or a group of layers under a name of its own
        weights = {network.layers[unit].weight} if unit in network.layers else weights_of_layers & set(made)
        if not weights:
            raise ValueError(f"candidate {candidate.id} names unit {unit!r}, which the network does not have")
        if set(made) - set(tensors) or not weights <= set(made):
            raise ValueError(f"unit {unit} as {choice.label()}: got encodings of {sorted(made)}")
        tensors.update(made)
        kinds.update(step.kind for step in choice.steps)
    return CompressedModel(candidate=candidate, tensors=tensors, steps=tuple(sorted(kinds)))


def float_encodings(network: Network) -> dict[str, Encoding]:
    """Encodings of the uncompressed network, by state-dict key, tensors under several keys once (the first).

    32 bit: weights, and whatever else has two or more dimensions. 16 bit, by the tensor's role and never
    by its values, so that sizes can be predicted: one-dimensional parameters (biases, norm weights) and
    BatchNorm statistics. With the shared exponent a value keeps 11 significant bits, a relative error of at
    most 2^-12 (down to 2^-29 of the tensor's largest), which is a hundredth of what an 8-bit weight grid
    does. Other floating-point buffers (tables of positions, masks) are constants of the code rather than
    trained: 16 bit only where that is exact. Integer buffers such as ``num_batches_tracked`` play no part
    in inference and are not stored; nor are buffers outside the state dict.
    """
    encodings: dict[str, Encoding] = {}
    for name, parameter in network.module.named_parameters():
        values = parameter.detach().float()
        encodings[name] = FloatTensor.half(values) if values.dim() <= 1 else FloatTensor(values=values)
    stored = set(network.module.state_dict())
    for name, buffer in network.module.named_buffers():
        if name not in stored or not buffer.is_floating_point():
            continue
        values = buffer.detach().float()
        half = FloatTensor.half(values)
        role = name.rpartition(".")[2] in _NORM_STATISTICS and _is_norm(network.module, name)
        encodings[name] = half if role or bool(torch.equal(half.values, values)) else FloatTensor(values=values)
    return encodings


def _is_norm(module: nn.Module, key: str) -> bool:
    return isinstance(module.get_submodule(key.rpartition(".")[0]), nn.modules.batchnorm._NormBase)
