"""A compressed network as an ``nn.Module``: decoded weights, 8-bit activations and float16 with ONNX semantics."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, fx, nn

from autocomp.core.candidate import Candidate
from autocomp.core.compressed import ActivationQuantizer, CompressedModel
from autocomp.core.encodings import QuantizedTensor
from autocomp.core.network import Network
from autocomp.errors import UnsupportedError
from autocomp.graph import float16
from autocomp.graph.integers import grids, has_integer_bias, integer_bias, kernel_layers, layer_reads
from autocomp.graph.program import Program


def decoded(compressed: CompressedModel) -> dict[str, Tensor]:
    """State-dict key → float32 tensor for what ``compressed`` holds, as it is after decoding."""
    return {name: encoding.decode() for name, encoding in compressed.tensors.items()}


def quantizer_nodes(
    program: Program, network: Network, quantizers: Mapping[str, ActivationQuantizer]
) -> dict[fx.Node, ActivationQuantizer]:
    """Value key → quantizer, by node. Unknown keys raise UnsupportedError."""
    unknown = [key for key in quantizers if key not in network.values]
    if unknown:
        raise UnsupportedError(f"the network has no value {unknown[0]!r} to quantize; calibrate this network again")
    nodes = program.named({network.values[key].node for key in quantizers})
    return {nodes[network.values[key].node]: q for key, q in quantizers.items()}


class Simulation(nn.Module):
    """The graph with some tensors and values replaced. Its tensors are no parameters: it is for scoring."""

    def __init__(
        self,
        program: Program,
        tensors: Mapping[str, Tensor],
        quantizers: Mapping[fx.Node, ActivationQuantizer],
        float_type: str = "float32",
    ) -> None:
        super().__init__()
        self._program = program
        self._tensors: dict[str, Any] = {**program.tensors, **tensors}
        self._quantizers = dict(quantizers)
        self._wide = None
        if float_type == "float16":
            self._tensors = float16.rounded_constants(self._tensors)
            self._quantizers = {node: float16.rounded_scale(q) for node, q in quantizers.items()}
            self._wide = float16.wide_nodes(program.nodes, quantizers)

    def forward(self, x: Tensor) -> Tensor:
        """x: [n, ...] → the network's first output tensor."""
        return self._program.run(x, tensors=self._tensors, quantizers=self._quantizers, wide=self._wide)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Simulation:
        self._tensors = {k: fn(v) if isinstance(v, Tensor) else v for k, v in self._tensors.items()}
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        return self


def _round_biases(network: Network, compressed: CompressedModel, tensors: dict[str, Tensor]) -> None:
    """Put the biases of layers that run on integers on the grid of their sums, in place of ``tensors``."""
    quantizers = grids(network, compressed.activations)
    reads = layer_reads(network)
    state = network.module.state_dict()
    for name in kernel_layers(network, compressed, quantizers):
        layer = network.layers[name]
        weight = compressed.tensors[layer.weight]
        grid = [quantizers[key] for key in reads[name]]
        scales = {q.scale for q in grid if has_integer_bias(q)}
        matrix_product = layer.kind == "linear" and len(layer.input_shape) > 1  # its bias is added in float32
        if layer.bias is None or matrix_product or len(scales) != 1 or not isinstance(weight, QuantizedTensor):
            continue
        bias = tensors.get(layer.bias, state[layer.bias])
        rounded = integer_bias(bias, weight, scales.pop())
        if rounded is not None:
            symbols, scale = rounded
            tensors[layer.bias] = (symbols * scale.double()).float()


def uncompressed(network: Network) -> nn.Module:
    """The network as it is, as a module of its own: to be moved to a device, which ``network.module`` never is."""
    return simulated(network, CompressedModel(candidate=Candidate({}), tensors={}))


def simulated(network: Network, compressed: CompressedModel, float_type: str = "float32") -> nn.Module:
    """A module that computes what the compressed network computes, in eval mode.

    Weights are ``compressed.tensors`` after decoding (others as in ``network.module``); values named in
    ``compressed.activations`` go through :func:`~autocomp.graph.program.fake_quantize`; biases are rounded where
    integer kernels round them (:func:`~autocomp.graph.integers.has_integer_bias`). Integer kernels
    compute the same up to the rounding of float32 sums, so a value may differ by one step where a sum
    lies at a tie.

    Args:
        network: as traced.
        compressed: the candidate.
        float_type: of the target's placement: "float16" rounds weights and every result as the export does
            (:mod:`autocomp.graph.float16`); without a graph there is no export, and no rounding.

    Raises:
        UnsupportedError: quantized activations without a graph, or at values the network does not have.
    """
    tensors = decoded(compressed)
    if network.graph is not None:
        program = Program(network.graph)
        quantizers = quantizer_nodes(program, network, compressed.activations)
        if quantizers:
            _round_biases(network, compressed, tensors)
        return Simulation(program, tensors, quantizers, float_type).eval()
    if compressed.activations:
        raise UnsupportedError(f"int8 activations need the network's graph, and there is none: {network.no_graph}")
    module = copy.deepcopy(network.module)
    with torch.no_grad():
        for name, target in module.state_dict(keep_vars=True).items():
            if name in tensors:
                target.copy_(tensors[name])
    return module.eval()
