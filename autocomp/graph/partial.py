"""Forward passes that share a prefix: what a change at one layer or value does to the outputs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, fx, nn

from autocomp.core.compressed import ActivationQuantizer, CompressedModel
from autocomp.core.network import Layer, Network
from autocomp.errors import UnsupportedError
from autocomp.graph import ops
from autocomp.graph.capture import first_tensor
from autocomp.graph.program import Environment, Program
from autocomp.graph.simulate import decoded, quantizer_nodes


class PrefixRunner:
    """Walks the layers in order of execution and keeps what the rest of the network still reads.

    Pricing n choices of every layer costs about n / 2 forward passes a layer instead of n, and memory
    for the live results at one place. Going back starts over from the inputs. Everything runs in
    ``torch.inference_mode`` and in one batch: the caller chunks. Without a graph each question is a full
    forward pass.

    Args:
        network: as traced.
        inputs: [n, ...].
        base: the network that changes are made to; None: the float32 network.
    """

    def __init__(self, network: Network, inputs: Tensor, base: CompressedModel | None = None) -> None:
        self.network = network
        self.inputs = inputs
        self._base = decoded(base) if base is not None else {}
        self._layer = ""
        self._program: Program | None = None
        self._quantizers: dict[fx.Node, ActivationQuantizer] = {}
        self._environment: Environment = {}
        self._position = 0
        if network.graph is not None:
            self._program = Program(network.graph)
            if base is not None:
                self._quantizers = quantizer_nodes(self._program, network, base.activations)
        elif base is not None and base.activations:
            raise UnsupportedError(f"int8 activations need the network's graph, and there is none: {network.no_graph}")
        self._state = dict(network.module.state_dict())

    def layers(self) -> list[str]:
        """Layer names in the order that needs no going back."""
        return list(self.network.layers)

    def at(self, layer: str) -> None:
        """Advance to just before the first use of the weight of ``layer``, the subject of what follows."""
        self._layer = layer
        if self._program is not None:
            self._seek(self._first_reader())

    def replace(self, weight: Tensor, bias: Tensor | None = None) -> None:
        """Make a change to the current layer stay, for everything downstream of it."""
        self._base = {**self._base, **self._changed(weight, bias)}

    @torch.inference_mode()
    def run(self, weight: Tensor | None = None, bias: Tensor | None = None) -> Tensor:
        """The network's outputs [n, ...] with the current layer's weight (and bias) replaced.

        Args:
            weight, bias: None: as they are.
        """
        tensors = {**self._base, **self._changed(weight, bias)}
        if self._program is None:
            return first_tensor(torch.func.functional_call(self.network.module, tensors, (self.inputs,)))
        self._seek(self._first_reader())
        return self._suffix(tensors, self._quantizers)

    def run_value(self, key: str, quantizer: ActivationQuantizer) -> Tensor:
        """The network's outputs with one value fake-quantized."""
        return self.run_values({key: quantizer})

    @torch.inference_mode()
    def run_values(self, quantizers: Mapping[str, ActivationQuantizer]) -> Tensor:
        """The network's outputs with some values fake-quantized, for all their readers."""
        if self._program is None:
            raise UnsupportedError(f"int8 activations need the network's graph: {self.network.no_graph}")
        nodes = quantizer_nodes(self._program, self.network, quantizers)
        self._seek(min((self._program.position[node] for node in nodes), default=self._position))
        return self._suffix(self._base, {**self._quantizers, **nodes})

    @torch.inference_mode()
    def layer_inputs(self) -> list[Tensor]:
        """What the current layer reads, one tensor a call (embeddings: indices)."""
        return [inputs for inputs, _ in self._observed({})]

    @torch.inference_mode()
    def layer_output(self, weight: Tensor | None = None, bias: Tensor | None = None) -> list[Tensor]:
        """The current layer's own results with its weight (and bias) replaced, one tensor a call."""
        return [out for _, out in self._observed(self._changed(weight, bias))]

    def _current(self) -> Layer:
        if not self._layer:
            raise ValueError("call at(layer) first")
        return self.network.layers[self._layer]

    def _changed(self, weight: Tensor | None, bias: Tensor | None) -> dict[str, Tensor]:
        layer = self._current()
        changed = {} if weight is None else {layer.weight: weight}
        if bias is not None:
            if layer.bias is None:
                raise ValueError(f"{layer.name} has no bias to replace")
            changed[layer.bias] = bias
        return changed

    def _calls(self, name: str) -> list[int]:
        """Positions of a layer's calls."""
        assert self._program is not None
        layer = self.network.layers[name]
        found = []
        for i, node in enumerate(self._program.nodes):
            weight = ops.weight_of(node)
            if weight is not None and weight.target == layer.weight and ops.op_name(node) == layer.kind:
                found.append(i)
        return found

    def _first_reader(self) -> int:
        """Position of the first node that reads the current layer's weight, an embedding tied to it included."""
        assert self._program is not None
        weight = self._current().weight
        reads = (ops.weight_of(node) for node in self._program.nodes)
        return next(i for i, read in enumerate(reads) if read is not None and read.target == weight)

    @torch.inference_mode()
    def _seek(self, position: int) -> None:
        """Bring the environment to just before the node at ``position``."""
        assert self._program is not None
        if position < self._position:
            self._environment, self._position = {}, 0
        self._program.advance(
            self._environment,
            self._position,
            position,
            inputs=self.inputs,
            tensors=self._base,
            quantizers=self._quantizers,
        )
        self._position = position

    def _suffix(self, tensors: Mapping[str, Tensor], quantizers: Mapping[fx.Node, ActivationQuantizer]) -> Tensor:
        assert self._program is not None
        environment = dict(self._environment)
        self._program.advance(
            environment,
            self._position,
            len(self._program.nodes),
            inputs=self.inputs,
            tensors=tensors,
            quantizers=quantizers,
        )
        return self._program.result(environment, tensors)

    def _observed(self, changed: Mapping[str, Tensor]) -> list[tuple[Tensor, Tensor]]:
        """(input, output) of each call of the current layer; later calls see what earlier ones changed."""
        layer = self._current()
        tensors = {**self._base, **changed}
        if self._program is None:
            return self._hooked(layer, tensors)
        calls = self._calls(layer.name)
        self._seek(self._first_reader())
        environment = dict(self._environment)
        found: list[tuple[Tensor, Tensor]] = []
        start = self._position
        for call in calls:
            node = self._program.nodes[call]
            options: dict[str, Any] = {"inputs": self.inputs, "tensors": tensors, "quantizers": self._quantizers}
            self._program.advance(environment, start, call, **options)
            source = ops.data_of(node)
            inputs = self._program.value(source, environment, tensors)
            results: list[Tensor] = []
            observe = {node: lambda _node, result, results=results: results.append(result)}
            self._program.advance(environment, call, call + 1, observe=observe, **options)
            found.append((inputs, results[0]))
            start = call + 1
        return found

    def _hooked(self, layer: Layer, tensors: Mapping[str, Tensor]) -> list[tuple[Tensor, Tensor]]:
        found: list[tuple[Tensor, Tensor]] = []

        def record(_module: nn.Module, args: tuple[Tensor, ...], kwargs: dict[str, Tensor], out: Tensor) -> None:
            found.append((args[0] if args else next(iter(kwargs.values())), out))

        module = self.network.module
        holders = {id(m): m for m in map(module.get_submodule, (layer.name, *layer.aliases))}
        handles = [
            m.register_forward_hook(record, with_kwargs=True)
            for m in holders.values()
            if ops.layer_kind(m) == layer.kind
        ]
        try:
            torch.func.functional_call(module, dict(tensors), (self.inputs,))
        finally:
            for handle in handles:
                handle.remove()
        return found
