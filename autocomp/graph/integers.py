"""Which layers 8-bit kernels can run, on integers or on float8, and what integer kernels make of their biases."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from autocomp.core.compressed import ActivationQuantizer, CompressedModel
from autocomp.core.encodings import Encoding, Float8Tensor, QuantizedTensor, round_e4m3
from autocomp.core.network import Network
from autocomp.errors import UnsupportedError
from autocomp.graph import ops
from autocomp.graph.placement import output_values

MATRIX_KINDS = ("conv1d", "conv2d", "conv3d", "linear")
"""Kinds whose weights an engine takes as 8-bit symbols."""


def fits_int8(encoding: Encoding | None) -> bool:
    """Whether a weight is a symmetric grid whose symbols lie in [-127, 127]."""
    return _fits(encoding, -127, 127)


def fits_int4(encoding: Encoding | None) -> bool:
    """Whether a weight is a symmetric grid whose symbols lie in [-8, 7]."""
    return _fits(encoding, -8, 7)


def _fits(encoding: Encoding | None, smallest: int, largest: int) -> bool:
    if not isinstance(encoding, QuantizedTensor) or not _is_symmetric(encoding):
        return False
    low, high = torch.aminmax(encoding.symbols)
    return int(low) >= smallest and int(high) <= largest


def _is_symmetric(encoding: QuantizedTensor) -> bool:
    shifted = encoding.zero_point is not None and bool((encoding.zero_point != 0).any())
    return encoding.symbols.numel() > 0 and not shifted


def float8_numbers(encoding: Encoding | None) -> Tensor | None:
    """The E4M3 numbers that a weight is made of, times its scale; None where it is not.

    A symmetric grid is where E4M3 holds its integers, as it does up to ±16: coarse weights run in float8 as they are.
    """
    if isinstance(encoding, Float8Tensor):
        return encoding.numbers()
    if not isinstance(encoding, QuantizedTensor) or not _is_symmetric(encoding):
        return None
    numbers = encoding.symbols.float()
    return numbers if torch.equal(round_e4m3(numbers), numbers) else None


def fits(encoding: Encoding | None, precision: str) -> bool:
    """Whether kernels of ``precision`` ("int8" or "float8") take a weight as it is."""
    return fits_int8(encoding) if precision == "int8" else float8_numbers(encoding) is not None


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


def kernel_layers(
    network: Network, compressed: CompressedModel, quantizers: Mapping[str, ActivationQuantizer]
) -> dict[str, str]:
    """Layer → "int8" or "float8", in order of execution: all its inputs are quantized so, and its weights fit.

    Args:
        quantizers: from :func:`grids`.
    """
    found = {}
    for name, reads in layer_reads(network).items():
        layer = network.layers[name]
        precisions = {quantizers[key].precision if key in quantizers else "" for key in reads}
        if layer.kind in MATRIX_KINDS and len(precisions) == 1:
            (precision,) = precisions
            if precision and fits(compressed.tensors.get(layer.weight), precision):
                found[name] = precision
    return found


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
