"""The exported network of one structure, adapted to another: no second export, which takes seconds."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING

from torch import nn

from autocomp.core.network import Network
from autocomp.runtimes._skeleton import Skeleton

if TYPE_CHECKING:
    import onnx


def adapted(skeleton: Skeleton, old: Network, new: Network) -> Skeleton | None:
    """``skeleton`` of ``old`` with the layers that became chains in ``new`` replaced; None where it cannot serve.

    Sizes are not in a skeleton, so a network that only lost channels takes it as it is. Whoever uses the result
    compares what it computes with the network.

    Args:
        skeleton: of ``old``.
        old: the network that was exported.
        new: made from it by edits; its graph keeps the names of the operations.
    """
    if old.graph is None or new.graph is None:
        return None
    keys = {value.node: key for key, value in new.values.items()}
    kept: dict[str, str] = {}
    for marker, key in skeleton.values.items():
        found_key = keys.get(old.values[key].node, "")
        if found_key != key and not (found_key and key.split(":")[0] not in new.layers):
            return None
        kept[marker] = found_key
    result = skeleton if kept == skeleton.values else dataclasses.replace(skeleton, values=kept)
    for name in old.layers:
        if name not in new.layers:
            chain = _chain(new, name)
            replaced = _replaced(result, old, name, chain, new) if chain else None
            if replaced is None:
                return None
            result = replaced
    return result if set(result.tensors.values()) <= _tensors(new) else None


def _tensors(network: Network) -> set[str]:
    """Names a skeleton's tensors may have: the state dict's and the graph's own constants."""
    assert network.graph is not None
    return {*network.module.state_dict(), *(str(n.target) for n in network.graph.graph.nodes if n.op == "get_attr")}


def _chain(network: Network, name: str) -> list[str]:
    """Names of the layers that layer ``name`` became."""
    found: list[str] = []
    while f"{name}.{len(found)}" in network.layers:
        found.append(f"{name}.{len(found)}")
    return found


def _replaced(skeleton: Skeleton, old: Network, name: str, chain: Sequence[str], new: Network) -> Skeleton | None:
    """The skeleton with the one call of a layer replaced by calls of ``chain``."""
    layer, tensors = old.layers[name], dict(skeleton.tensors)
    markers = [m for m, key in tensors.items() if key == layer.weight]
    turned = [n for n in skeleton.nodes if n.op_type == "Transpose" and n.input[0] in markers]
    weights = {*markers, *(n.output[0] for n in turned)}
    calls = [n for n in skeleton.nodes if n not in turned and weights & set(n.input)]
    if len(markers) != 1 or len(calls) != 1 or len(turned) > 1 or calls[0].input[1] not in weights:
        return None
    call = calls[0]
    if any(new.layers[part].bias is not None for part in chain[:-1]) or call.op_type not in ("Conv", "Gemm", "MatMul"):
        return None
    for marker in [m for m, key in tensors.items() if key == layer.bias]:
        tensors[marker] = f"{chain[-1]}.bias"
    del tensors[markers[0]]
    values, sources = dict(skeleton.values), dict(skeleton.sources)
    made: list[onnx.NodeProto] = []
    data = call.input[0]
    for i, part in enumerate(chain):
        weight = f"{markers[0]}:{i}"
        tensors[weight] = new.layers[part].weight
        if turned:
            made.append(_copy(turned[0], [weight], f"{weight}:turned"))
            weight = f"{weight}:turned"
        last = part == chain[-1]
        output = call.output[0] if last else f"{call.output[0]}:{i}"
        inputs = [data, weight, *(call.input[2:] if last else ())]
        made.append(_copy(call, inputs, output, new.module.get_submodule(part)))
        inner = new.layers[part].output_value
        if not last and inner is not None:
            data = f"{output}:value"
            values[data], sources[data] = inner, output
    nodes: list[onnx.NodeProto] = []
    for node in skeleton.nodes:
        nodes += made if node is call else [] if node in turned else [node]
    return dataclasses.replace(skeleton, nodes=tuple(nodes), tensors=tensors, values=values, sources=sources)


def _copy(node: onnx.NodeProto, inputs: Sequence[str], output: str, module: nn.Module | None = None) -> onnx.NodeProto:
    """``node`` between other names; a convolution with the sizes of ``module``."""
    import onnx

    made = onnx.NodeProto()
    made.CopyFrom(node)
    made.name = f"{node.name}:{output}"
    del made.input[:], made.output[:]
    made.input.extend(inputs)
    made.output.append(output)
    if isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d) and not isinstance(module.padding, str):
        sizes = {
            "kernel_shape": module.kernel_size,
            "strides": module.stride,
            "dilations": module.dilation,
            "pads": (*module.padding, *module.padding),
            "group": module.groups,
        }
        del made.attribute[:]
        made.attribute.extend(onnx.helper.make_attribute(k, v) for k, v in sizes.items())
    return made
