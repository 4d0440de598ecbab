"""Execution of a captured graph with weights replaced, values quantized and values observed."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any

import torch
from torch import Tensor, fx

from autocomp.core.compressed import ActivationQuantizer
from autocomp.core.encodings import round_e4m3
from autocomp.graph import float16, ops

Environment = dict[fx.Node, Any]
"""Results of executed nodes that something still reads."""

Observer = Callable[[fx.Node, Any], None]


def fake_quantize(x: Tensor, quantizer: ActivationQuantizer) -> Tensor:
    """What ONNX QuantizeLinear and DequantizeLinear make of ``x`` (float32, any shape).

    ``(clamp(round(x / scale) + zero_point, low, high) - zero_point) * scale``: one float32 division,
    ties to even, one float32 multiplication. In float8 ``E4M3(x / scale) * scale``.
    """
    scale = torch.tensor(quantizer.scale, dtype=torch.float32, device=x.device)
    if quantizer.precision == "float8":
        return round_e4m3(x / scale).mul_(scale)
    low, high = quantizer.low - quantizer.zero_point, quantizer.high - quantizer.zero_point
    return (x / scale).round_().clamp_(low, high).mul_(scale)


class Program:
    """The nodes of a graph in order, with what can be freed behind each.

    Attributes:
        nodes: placeholders and operations; ``get_attr`` and output nodes are resolved on use.
        tensors: state-dict key → tensor, and the graph's own constants.
        position: node → index in ``nodes``.
    """

    def __init__(self, graph: fx.GraphModule) -> None:
        self.nodes = [n for n in graph.graph.nodes if n.op not in ("get_attr", "output")]
        self.position = {node: i for i, node in enumerate(self.nodes)}
        self.tensors: dict[str, Any] = {}
        for node in graph.graph.nodes:
            if node.op == "get_attr":
                found: Any = graph
                for part in str(node.target).split("."):
                    found = getattr(found, part)
                self.tensors[str(node.target)] = found
        output = next(n for n in graph.graph.nodes if n.op == "output").args[0]
        assert isinstance(output, fx.Node)
        self.output = output
        last: dict[fx.Node, int] = {node: i for i, node in enumerate(self.nodes)}
        for i, node in enumerate(self.nodes):
            last.update(dict.fromkeys(ops.inputs_of(node), i))
        last[output] = len(self.nodes)
        self._dead: list[list[fx.Node]] = [[] for _ in range(len(self.nodes) + 1)]
        for node, i in last.items():
            if node.op != "get_attr":
                self._dead[i].append(node)

    def advance(
        self,
        environment: Environment,
        start: int,
        stop: int,
        *,
        inputs: Tensor | None = None,
        tensors: Mapping[str, Tensor] | None = None,
        quantizers: Mapping[fx.Node, ActivationQuantizer] | None = None,
        observe: Mapping[fx.Node, Observer] | None = None,
        wide: Collection[fx.Node] | None = None,
    ) -> None:
        """Execute nodes ``start`` to ``stop`` - 1 in place of ``environment``, freeing what nobody reads any more.

        Args:
            environment: results that nodes from ``start`` on read.
            inputs: for the placeholder, where it is among the nodes.
            tensors: replacements for :attr:`tensors`, by name.
            quantizers: applied to a node's result, for all its readers.
            observe: called with (node, result before quantization).
            wide: every result is rounded to float16 but those of these nodes, which their readers among them alone
                get as they are; None: nothing is rounded.
        """
        tensors, quantizers, observe = tensors or {}, quantizers or {}, observe or {}
        kept = wide or ()
        device = inputs.device if inputs is not None else None

        def value(argument: Any) -> Any:
            if isinstance(argument, fx.Node):
                found = self.value(argument, environment, tensors)
                return float16.rounded(found) if argument in kept and node not in kept else found
            if isinstance(argument, list | tuple):
                return type(argument)(value(a) for a in argument)
            if isinstance(argument, dict):
                return {k: value(v) for k, v in argument.items()}
            if isinstance(argument, slice):
                return slice(value(argument.start), value(argument.stop), value(argument.step))
            if isinstance(argument, torch.device) and device is not None:
                return device  # what the graph itself makes (positions, masks) is made where the inputs are
            return argument

        for i in range(start, stop):
            node = self.nodes[i]
            if node.op == "placeholder":
                assert inputs is not None
                result: Any = inputs
            else:
                function = node.target if wide is None else float16.IN_STEPS.get(ops.op_name(node), node.target)
                assert callable(function)
                result = function(*[value(a) for a in node.args], **{k: value(v) for k, v in node.kwargs.items()})
            if wide is not None and node not in wide:
                result = float16.rounded(result)
            if node in observe:
                observe[node](node, result)
            if node in quantizers and wide is None:
                result = fake_quantize(result, quantizers[node])
            elif node in quantizers:
                result = float16.rounded(fake_quantize(float16.rounded(result), quantizers[node]))
            environment[node] = result
            for dead in self._dead[i]:
                environment.pop(dead, None)

    def value(self, node: fx.Node, environment: Environment, tensors: Mapping[str, Tensor]) -> Any:
        """The result of one node: a constant, or what the environment holds."""
        if node.op != "get_attr":
            return environment[node]
        name = str(node.target)
        return tensors[name] if name in tensors else self.tensors[name]

    def result(self, environment: Environment, tensors: Mapping[str, Tensor] | None = None) -> Tensor:
        """The network's output, once everything ran."""
        found: Tensor = self.value(self.output, environment, tensors or {})
        return found

    def run(
        self,
        inputs: Tensor,
        *,
        tensors: Mapping[str, Tensor] | None = None,
        quantizers: Mapping[fx.Node, ActivationQuantizer] | None = None,
        observe: Mapping[fx.Node, Observer] | None = None,
        wide: Collection[fx.Node] | None = None,
    ) -> Tensor:
        """One forward pass; arguments as for :meth:`advance`."""
        environment: Environment = {}
        self.advance(
            environment,
            0,
            len(self.nodes),
            inputs=inputs,
            tensors=tensors,
            quantizers=quantizers,
            observe=observe,
            wide=wide,
        )
        found = self.result(environment, tensors)
        return found if wide is None else float16.rounded(found)

    def watch(
        self, inputs: Tensor, observe: Mapping[fx.Node, Observer], *, tensors: Mapping[str, Tensor] | None = None
    ) -> None:
        """A forward pass that ends behind the last observed node; arguments as for :meth:`advance`."""
        stop = 1 + max((self.position[node] for node in observe), default=-1)
        self.advance({}, 0, stop, inputs=inputs, tensors=tensors, observe=observe)

    def named(self, names: Collection[str]) -> dict[str, fx.Node]:
        """Nodes by their fx name."""
        return {n.name: n for n in self.nodes if n.name in names}
