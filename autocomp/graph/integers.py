"""Which layers can run on integers, and what integer kernels make of their biases."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from autocomp.core.compressed import ActivationQuantizer, CompressedModel
from autocomp.core.encodings import Encoding, QuantizedTensor
from autocomp.core.network import Network
from autocomp.errors import UnsupportedError
from autocomp.graph import ops
from autocomp.graph.placement import output_values

MATRIX_KINDS = ("conv1d", "conv2d", "conv3d", "linear")
"""Kinds whose weights an int8 engine takes as integers."""


def fits_int8(encoding: Encoding | None) -> bool:
    """Whether a weight is a symmetric grid whose symbols lie in [-127, 127]."""
    return _fits(encoding, -127, 127)


def fits_int4(encoding: Encoding | None) -> bool:
    """Whether a weight is a symmetric grid whose symbols lie in [-8, 7]."""
    return _fits(encoding, -8, 7)


def _fits(encoding: Encoding | None, smallest: int, largest: int) -> bool:
    if not isinstance(encoding, QuantizedTensor) or not encoding.symbols.numel():
        return False
    if encoding.zero_point is not None and bool((encoding.zero_point != 0).any()):
        return False
    low, high = torch.aminmax(encoding.symbols)
    return int(low) >= smallest and int(high) <= largest


def grids(network: Network, activations: Mapping[str, ActivationQuantizer]) -> dict[str, ActivationQuantizer]:
    """The quantizers of a candidate, and of values that only move elements of a quantized one.

    The latter lie on its grid, so quantizing them again with the same quantizer changes nothing, but
    engines run an operation on integers only between two Q/DQ pairs.

    Raises:
        UnsupportedError: a key that is no value of the network.
    """
    unknown = [key for key in activations if key not in network.values]
    if unknown:
        raise UnsupportedError(f"the network has no value {unknown[0]!r} to quantize; calibrate this network again")
    outputs = output_values(network)
    found: dict[str, ActivationQuantizer] = {}
    for key, value in network.values.items():
        if key in activations:
            found[key] = activations[key]
        elif value.op in ops.MOVES and len(value.producers) == 1 and key not in outputs:
            inherited = found.get(value.producers[0])
            if inherited is not None:
                found[key] = inherited
    return found


def layer_reads(network: Network) -> dict[str, list[str]]:
    """Layer → keys of the values that its calls read ("" for what is no value)."""
    found: dict[str, list[str]] = {name: [] for name in network.layers}
    if network.graph is None:
        return found
    keys = {value.node: key for key, value in network.values.items()}
    names = {(layer.weight, layer.kind): name for name, layer in network.layers.items()}
    for node in network.graph.graph.nodes:
        weight = ops.weight_of(node)
        name = names.get((str(weight.target), ops.op_name(node))) if weight is not None else None
        if name is not None:
            found[name].append(keys.get(ops.data_of(node).name, ""))
    return found


def integer_layers(
    network: Network, compressed: CompressedModel, quantizers: Mapping[str, ActivationQuantizer]
) -> list[str]:
    """Layers whose weights are int8 symbols and whose inputs are all quantized, in order of execution.

    Args:
        quantizers: from :func:`grids`.
    """
    return [
        name
        for name, reads in layer_reads(network).items()
        if reads
        and network.layers[name].kind in MATRIX_KINDS
        and all(key in quantizers for key in reads)
        and fits_int8(compressed.tensors.get(network.layers[name].weight))
    ]


def has_integer_bias(quantizer: ActivationQuantizer) -> bool:
    """Whether kernels behind this quantizer add the bias to their sums as int32, or in floating point.

    ONNX Runtime's kernels, on uint8, do the former; TensorRT takes int8 with zero point 0 and refuses int32 biases.
    """
    return quantizer.low >= 0


def integer_bias(bias: Tensor, weight: QuantizedTensor, input_scale: float) -> tuple[Tensor, Tensor] | None:
    """The bias as integer kernels add it to their sums: scale = input scale · weight scale.

    Returns:
        (symbols [channels], whole numbers as float64; scale [channels] or [1], float32), or None where
        they do not fit into int32.
    """
    scale = torch.tensor(input_scale, dtype=torch.float32) * weight.scale
    symbols = torch.round(bias.double() / scale.double())
    return (symbols, scale) if bool((symbols.abs() < 2**31).all()) else None
