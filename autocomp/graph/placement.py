"""Where activations are quantized, given which layers execute in int8.

A quantized value is quantized for all its readers: one Q/DQ pair behind the operation that makes it, in
the simulation as in the exported network.
"""

from __future__ import annotations

from collections.abc import Mapping

from autocomp.core.hardware import Placement
from autocomp.core.network import Layer, Network, Value
from autocomp.graph import ops


def quantized_values(network: Network, int8_layers: Mapping[str, str], placement: Placement) -> dict[str, str]:
    """Value key → calibrator name, in order of execution.

    Quantized are the input of each int8 layer and, as ``placement`` says, its output (behind the
    activation that fuses with it), the other operand of an addition behind it, and what additions,
    concatenations and pooling make of values that are all quantized. The network's output stays in
    float32. A value that only moves elements of a quantized one (flatten, max pooling, ...) lies on its
    grid and gets no quantizer of its own.

    Args:
        network: with a graph; without one nothing can be quantized and the result is empty.
        int8_layers: layer name → calibrator.
        placement: of the target.
    """
    asked: dict[str, str] = {}
    int8_layers = {name: c for name, c in int8_layers.items() if may_run_int8(network.layers[name], placement)}
    for name, calibrator in int8_layers.items():
        layer = network.layers[name]
        for key in _call_values(network, name):
            asked.setdefault(key, calibrator)
        if placement.outputs and layer.output_value is not None:
            asked.setdefault(layer.output_value, calibrator)
    if placement.residual:
        for key, calibrator in _residual_operands(network, int8_layers).items():
            asked.setdefault(key, calibrator)
    forbidden = output_values(network)
    fused = _fused_activations(network)
    chosen: dict[str, str] = {}
    grid: dict[str, str] = {}  # value → calibrator of the grid that it lies on
    for key, value in network.values.items():
        if key in forbidden:
            continue
        inherited = [grid.get(p) for p in value.producers]
        covered = bool(inherited) and all(inherited)
        if value.op in ops.MOVES and covered:
            grid[key] = str(inherited[0])
        elif key in asked:
            grid[key] = chosen[key] = asked[key]
        elif placement.elementwise and key not in fused and value.op in ops.COMBINATIONS and covered:
            grid[key] = chosen[key] = str(inherited[0])
        elif placement.elementwise and key in fused.values():
            maker = next(network.values[source] for source, clip in fused.items() if clip == key)
            sources = [grid.get(p) for p in maker.producers]
            if sources and all(sources):
                grid[key] = chosen[key] = str(sources[0])
    return chosen


def may_run_int8(layer: Layer, placement: Placement) -> bool:
    """Whether the target wants this layer in int8 at all."""
    depthwise = layer.groups > 1 and layer.weight_shape[1] == 1
    return placement.depthwise or not depthwise


def _residual_operands(network: Network, int8_layers: Mapping[str, str]) -> dict[str, str]:
    """Value → calibrator: what additions add to the result of an int8 convolution.

    Of two convolutions one does the addition: the shortcut's result is what gets added, and the shortcut is
    the one that reads a value from further back.
    """
    made = {
        layer.output_value: (name, layer)
        for name, layer in network.layers.items()
        if name in int8_layers and layer.kind.startswith("conv") and layer.output_value is not None
    }
    order = {key: i for i, key in enumerate(network.values)}
    found: dict[str, str] = {}
    for value in network.values.values():
        main = [p for p in value.producers if p in made]
        if value.op != "add" or len(value.producers) != 2 or not main:
            continue
        main.sort(key=lambda p: order.get(made[p][1].input_value or "", -1))
        operand = next(p for p in value.producers if p != main[-1])
        found[operand] = int8_layers[made[main[-1]][0]]
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
