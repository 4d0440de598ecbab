"""Candidates made without search or calibration data, for tests of whatever reads them."""

from __future__ import annotations

from collections.abc import Collection

import torch
from torch import Tensor, fx

from autocomp.core.candidate import Candidate
from autocomp.core.compressed import ActivationQuantizer, CompressedModel
from autocomp.core.encodings import E4M3_MAX, Encoding, Float8Tensor, QuantizedTensor, round_half
from autocomp.core.hardware import Placement
from autocomp.core.network import Network
from autocomp.graph.placement import quantized_values
from autocomp.graph.program import Program


def rounded_weight(weight: Tensor, *, axis: int = 0, bits: int = 8) -> QuantizedTensor:
    """``weight`` rounded to the nearest point of a symmetric per-channel grid that spans its range."""
    top = 2 ** (bits - 1) - 1
    shape = [1] * weight.dim()
    shape[axis] = -1
    scale = round_half(weight.abs().amax([d for d in range(weight.dim()) if d != axis]).clamp_min(1e-6) / top)
    symbols = (weight / scale.reshape(shape)).round().clamp(-top, top).to(torch.int16)
    return QuantizedTensor(symbols=symbols, scale=scale, axis=axis, bits=bits)


def ranges(network: Network, inputs: Tensor, keys: Collection[str]) -> dict[str, tuple[float, float]]:
    """Smallest and largest element of values on ``inputs``."""
    assert network.graph is not None
    program = Program(network.graph)
    names = {network.values[key].node: key for key in keys}
    found: dict[str, tuple[float, float]] = {}

    def record(node: fx.Node, result: Tensor) -> None:
        found[names[node.name]] = (float(result.min()), float(result.max()))

    with torch.inference_mode():
        program.watch(inputs, dict.fromkeys(program.named(names).values(), record))
    return found


def rounded_candidate(network: Network, kinds: Collection[str], *, bits: int) -> CompressedModel:
    """Weights of layers of these kinds on grids of ``bits`` bits, everything else as it is."""
    state = network.module.state_dict()
    tensors: dict[str, Encoding] = {
        layer.weight: rounded_weight(state[layer.weight], bits=bits)
        for layer in network.layers.values()
        if layer.kind in kinds
    }
    return CompressedModel(candidate=Candidate({}), tensors=tensors)


def int8_candidate(
    network: Network, inputs: Tensor, placement: Placement | None = None, *, only: Collection[str] | None = None
) -> CompressedModel:
    """All weights on 8 bit grids; activations of matrix layers uint8 over their range on ``inputs``.

    Args:
        network: with a graph.
        inputs: [n, ...], what the ranges are taken from.
        placement: of the target; None: the default one.
        only: layers whose activations are quantized; None: all.
    """
    state = network.module.state_dict()
    tensors: dict[str, Encoding] = {}
    for layer in network.layers.values():
        axis = 1 if layer.kind == "conv_transpose2d" else 0
        tensors[layer.weight] = rounded_weight(state[layer.weight], axis=axis)
    layers = {name: "minmax" for name, layer in network.layers.items() if layer.kind not in ("embedding",)}
    if only is not None:
        layers = {name: calibrator for name, calibrator in layers.items() if name in only}
    placement = placement or Placement()
    activations = {}
    for key, (low, high) in ranges(network, inputs, quantized_values(network, layers, placement)).items():
        if placement.symmetric:
            scale = torch.tensor(max(-low, high, 1e-3) / 127).item()
            activations[key] = ActivationQuantizer(scale=scale, zero_point=0, low=-128, high=127)
        else:
            low, high = min(low, 0.0), max(high, 1e-3)
            scale = torch.tensor((high - low) / 255).item()
            zero_point = min(255, max(0, round(-low / scale)))
            activations[key] = ActivationQuantizer(scale=scale, zero_point=zero_point, low=0, high=255)
    return CompressedModel(candidate=Candidate({}), tensors=tensors, activations=activations)


def float8_candidate(
    network: Network, inputs: Tensor, placement: Placement, *, granularity: str = "channel"
) -> CompressedModel:
    """As :func:`int8_candidate`, weights and activations in float8.

    Args:
        network: with a graph.
        inputs: [n, ...], what the ranges are taken from.
        placement: of the target.
        granularity: of the weights' scales, "channel" or "tensor".
    """
    state = network.module.state_dict()
    tensors: dict[str, Encoding] = {}
    for layer in network.layers.values():
        weight, axis = state[layer.weight], layer.channel_axis
        rows = weight.transpose(0, axis).reshape(weight.shape[axis] if granularity == "channel" else 1, -1)
        scale = round_half(rows.abs().amax(1).clamp_min(1e-6) / E4M3_MAX)
        tensors[layer.weight] = Float8Tensor.nearest(weight, scale, axis)
    layers = {name: "minmax" for name, layer in network.layers.items() if layer.kind != "embedding"}
    found = ranges(network, inputs, quantized_values(network, layers, placement))
    scales = {key: torch.tensor(max(-low, high, 1e-3) / E4M3_MAX).item() for key, (low, high) in found.items()}
    activations = {key: ActivationQuantizer.float8(scale) for key, scale in scales.items()}
    return CompressedModel(candidate=Candidate({}), tensors=tensors, activations=activations)
