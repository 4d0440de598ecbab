"""Where activations are quantized, given which layers execute in 8 bits.

A quantized value is quantized for all its readers: one Q/DQ pair behind the operation that makes it, in
the simulation as in the exported network.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

from autocomp.core.hardware import Placement
from autocomp.core.network import Layer, Network, Value
from autocomp.graph import ops

_How = TypeVar("_How")
"""How a layer asks for its input: whatever the caller tells apart (a calibrator, a precision)."""


def quantized_values(network: Network, layers: Mapping[str, _How], placement: Placement) -> dict[str, _How]:
    """Value key → how it is quantized, in order of execution.

    Quantized are the input of each of the layers and, as ``placement`` says, its output (behind the
    activation that fuses with it), the other operand of an addition behind it, and what additions,
    concatenations and pooling make of values that are all quantized. The network's output stays in
    float32. A value that only moves elements of a quantized one (flatten, max pooling, ...) lies on its
    grid and gets no quantizer of its own. Where layers ask for one value in different ways, the first has it.

    Args:
        network: with a graph; without one nothing can be quantized and the result is empty.
        layers: layer that executes in 8 bits → how.
        placement: of the target.
    """
    asked: dict[str, _How] = {}
    layers = {name: how for name, how in layers.items() if may_run_8bit(network.layers[name], placement)}
    reads = {name: _call_values(network, name) for name in layers}
    for name, how in layers.items():
        for key in reads[name]:
            asked.setdefault(key, how)
    for name, how in layers.items():
        output = network.layers[name].output_value
        if placement.outputs and output is not None:
            asked.setdefault(output, how)
    if placement.residual:
        for key, how in _residual_operands(network, layers).items():
            asked.setdefault(key, how)
    forbidden = output_values(network)
    fused = _fused_activations(network)
    chosen: dict[str, _How] = {}
    grid: dict[str, _How] = {}  # value → of the grid that it lies on
    for key, value in network.values.items():
        if key in forbidden:
            continue
        inherited = [grid[p] for p in value.producers if p in grid]
        covered = bool(inherited) and len(inherited) == len(value.producers)
        if value.op in ops.MOVES and covered:
            grid[key] = inherited[0]
        elif key in asked:
            grid[key] = chosen[key] = asked[key]
        elif placement.elementwise and key not in fused and value.op in ops.COMBINATIONS and covered:
            grid[key] = chosen[key] = inherited[0]
        elif placement.elementwise and key in fused.values():
            maker = next(network.values[source] for source, clip in fused.items() if clip == key)
            sources = [grid[p] for p in maker.producers if p in grid]
            if sources and len(sources) == len(maker.producers):
                grid[key] = chosen[key] = sources[0]
    return chosen


def may_run_8bit(layer: Layer, placement: Placement) -> bool:
    """Whether the target wants this layer in int8 or float8 at all."""
    depthwise = layer.groups > 1 and layer.weight_shape[1] == 1
    return placement.depthwise or not depthwise


def _residual_operands(network: Network, layers: Mapping[str, _How]) -> dict[str, _How]:
    """Value → how it is quantized: what additions add to the result of an 8-bit convolution.

    Of two convolutions one does the addition: the shortcut's result is what gets added, and the shortcut is
    the one that reads a value from further back.
    """
    made = {
        layer.output_value: (name, layer)
        for name, layer in network.layers.items()
        if name in layers and layer.kind.startswith("conv") and layer.output_value is not None
    }
    order = {key: i for i, key in enumerate(network.values)}
    found: dict[str, _How] = {}
    for value in network.values.values():
        main = [p for p in value.producers if p in made]
        if value.op != "add" or len(value.producers) != 2 or not main:
            continue
        main.sort(key=lambda p: order.get(made[p][1].input_value or "", -1))
        operand = next(p for p in value.producers if p != main[-1])
        found[operand] = layers[made[main[-1]][0]]
    return found


def _call_values(network: Network, name: str) -> list[str]:
    """Values that the calls of a layer read; in front of padding with zeros, which kernels do by themselves."""
    keys = {value.node: key for key, value in network.values.items()}
    found = []
    if network.graph is not None:
        layer = network.layers[name]
        for node in network.graph.graph.nodes:
            weight = ops.weight_of(node)
            if weight is not None and weight.target == layer.weight and ops.op_name(node) == layer.kind:
                key = keys.get(ops.data_of(node).name)
                while key is not None and network.values[key].op == "zero_pad":
                    key = next(iter(network.values[key].producers), None)
                if key is not None:
                    found.append(key)
    return found


def output_values(network: Network) -> set[str]:
    """The network's output and the values that it merely moves: they stay in float32."""
    if network.graph is None:
        return set()
    keys = {value.node: key for key, value in network.values.items()}
    output = next(n for n in network.graph.graph.nodes if n.op == "output").args[0]
    key = keys.get(getattr(output, "name", ""))
    found: set[str] = set()
    while key is not None:
        found.add(key)
        value: Value = network.values[key]
        key = value.producers[0] if value.op in ops.MOVES and len(value.producers) == 1 else None
    return found


def _fused_activations(network: Network) -> dict[str, str]:
    """Addition or other combination → the clipping activation that alone reads it."""
    if network.graph is None:
        return {}
    keys = {value.node: key for key, value in network.values.items()}
    found = {}
    for node in network.graph.graph.nodes:
        key = keys.get(node.name)
        if key is None or network.values[key].op not in ops.COMBINATIONS or len(node.users) != 1:
            continue
        user = next(iter(node.users))
        if user.op == "call_function" and ops.op_name(user) in ops.CLIPS and user.name in keys:
            found[key] = keys[user.name]
    return found
