"""The float network as ONNX, exported once, with a marker on everything a candidate may change.

Every float32 tensor of the state dict and every value passes through a node ``autocomp.Value`` on its way
to its readers. The markers survive whatever the exporter does to the graph (decompositions, folding of
constants, renaming), so a candidate's weights and Q/DQ pairs go exactly where the simulation has them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, fx

from autocomp.core.network import Network
from autocomp.errors import UnsupportedError
from autocomp.graph.capture import EXPORT_ERRORS, first_tensor, one_line, quiet_tracing
from autocomp.graph.trace import stand_in

if TYPE_CHECKING:
    import onnx

OPSET = 18
_DOMAIN, _MARKER = "autocomp", "Value"


@torch.library.custom_op("autocomp::value", mutates_args=())
def _value(x: Tensor, index: int) -> Tensor:
    return x.clone()


@_value.register_fake
def _value_shape(x: Tensor, index: int) -> Tensor:
    return torch.empty_like(x)


@dataclass(frozen=True)
class Skeleton:
    """An exported network without its weights.

    Attributes:
        nodes: without markers, in topological order; free of names of files and machines.
        constants: initializers that belong to no state-dict key (shapes, axes, ...).
        inputs, outputs: of the graph; their batch axis is called "batch".
        tensors: marker output → state-dict key.
        values: marker output → value key.
        sources: marker output → marker input.
        ir_version, opset: of the model.
    """

    nodes: tuple[onnx.NodeProto, ...]
    constants: tuple[onnx.TensorProto, ...]
    inputs: tuple[onnx.ValueInfoProto, ...]
    outputs: tuple[onnx.ValueInfoProto, ...]
    tensors: dict[str, str]
    values: dict[str, str]
    sources: dict[str, str] = field(default_factory=dict)
    ir_version: int = 10
    opset: int = OPSET


def export_skeleton(network: Network) -> Skeleton:
    """Export ``network.graph`` with markers.

    Raises:
        UnsupportedError: the network has no graph, or holds an operation that ONNX has not.
    """
    if network.graph is None:
        raise UnsupportedError(f"this model cannot be exported to ONNX: {network.no_graph}")
    marked, keys = _marked(network, network.graph)
    try:
        with quiet_tracing():
            program = torch.onnx.export(
                marked,
                (stand_in(network),),
                dynamo=True,
                dynamic_shapes=({0: torch.export.Dim("batch")},),
                input_names=["input"],
                output_names=["output"],
                opset_version=OPSET,
                verbose=False,
                custom_translation_table={torch.ops.autocomp.value.default: _translation()},
            )
    except EXPORT_ERRORS as error:
        raise UnsupportedError(f"this model cannot be exported to ONNX: {_root_cause(error)}") from error
    assert program is not None
    return _stripped(program.model_proto, keys, network)


def computes(model: bytes, network: Network) -> bool:
    """Whether an ONNX model gives the outputs of the network's own module, in ONNX Runtime, up to rounding.

    Args:
        model: serialized, with a free batch axis.
        network: in float32.
    """
    import onnxruntime

    from autocomp.runtimes.onnxruntime import raised

    batch = stand_in(network)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # a model that does not fit is an answer here, no error
    try:
        session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        found = torch.from_numpy(session.run(None, {"input": batch.numpy()})[0])
    except raised():
        return False
    with torch.inference_mode():
        expected = first_tensor(network.module(batch))
    scale = max(float(expected.abs().max()), 1e-6)
    return found.shape == expected.shape and float((found - expected).abs().max()) <= 1e-3 * scale


def _root_cause(error: BaseException) -> str:
    while error.__cause__ is not None:
        error = error.__cause__
    return one_line(error)


def _translation() -> Any:
    """How the exporter writes a marker."""
    import onnx
    import onnxscript

    schema = onnx.defs.OpSchema
    definition = schema(
        _MARKER,
        _DOMAIN,
        1,
        inputs=[schema.FormalParameter("x", "T")],
        outputs=[schema.FormalParameter("y", "T")],
        type_constraints=[("T", ["tensor(float)"], "")],
        attributes=[schema.Attribute("index", schema.AttrType.INT, "")],
    )
    operation = onnxscript.values.Op(onnxscript.values.Opset(_DOMAIN, 1), _MARKER, definition)

    def translate(x: Any, index: int) -> Any:
        return operation(x, index=index)

    return translate


def _marked(network: Network, module: fx.GraphModule) -> tuple[fx.GraphModule, list[tuple[str, str]]]:
    """The graph with markers, and ("tensor" or "value", key) by marker index."""
    graph = fx.Graph()
    graph.output(graph.graph_copy(module.graph, {}))
    by_node = {value.node: key for key, value in network.values.items()}
    attributes: dict[str, Any] = {}
    keys: list[tuple[str, str]] = []
    originals = [n for n in module.graph.nodes if n.op != "output"]
    copies = [n for n in graph.nodes if n.op != "output"]
    for original, node in zip(originals, copies, strict=True):
        key = ("value", by_node[original.name]) if original.name in by_node else None
        if node.op == "get_attr":
            found: Any = module
            for part in str(node.target).split("."):
                found = getattr(found, part)
            attributes[str(node.target)] = found
            if isinstance(found, Tensor) and found.dtype == torch.float32:
                key = ("tensor", str(node.target))
        if key is None:
            continue
        with graph.inserting_after(node):
            marker = graph.call_function(torch.ops.autocomp.value.default, (node, len(keys)))
        node.replace_all_uses_with(marker, delete_user_cb=lambda user, marker=marker: user is not marker)
        keys.append(key)
    return fx.GraphModule(attributes, graph), keys


def _stripped(model: onnx.ModelProto, keys: list[tuple[str, str]], network: Network) -> Skeleton:
    import onnx

    tensors: dict[str, str] = {}
    values: dict[str, str] = {}
    sources: dict[str, str] = {}
    nodes = []
    for node in model.graph.node:
        if node.domain == _DOMAIN and node.op_type == _MARKER:
            kind, key = keys[onnx.helper.get_attribute_value(node.attribute[0])]
            (tensors if kind == "tensor" else values)[node.output[0]] = key
            sources[node.output[0]] = node.input[0]
            continue
        plain = onnx.NodeProto()
        plain.CopyFrom(node)
        del plain.metadata_props[:]
        plain.doc_string = ""
        nodes.append(plain)
    for node in nodes:
        _write_global_pooling(node, model, values, network)
        _write_flatten(node, model, values, network)
    read = {name for node in nodes for name in node.input}
    constants = [t for t in model.graph.initializer if t.name in read]
    opset = next(entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx"))
    return Skeleton(
        nodes=tuple(nodes),
        constants=tuple(constants),
        inputs=tuple(_plain_info(info) for info in model.graph.input),
        outputs=tuple(_plain_info(info) for info in model.graph.output),
        tensors=tensors,
        values=values,
        sources=sources,
        ir_version=model.ir_version,
        opset=opset,
    )


def _write_global_pooling(
    node: onnx.NodeProto, model: onnx.ModelProto, values: dict[str, str], network: Network
) -> None:
    """The exporter writes global average pooling as ReduceMean, which runtimes do not run on integers."""
    import onnx

    options = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
    if node.op_type != "ReduceMean" or not options.get("keepdims", 1) or len(node.input) != 2:
        return
    axes = next((onnx.numpy_helper.to_array(t) for t in model.graph.initializer if t.name == node.input[1]), None)
    value = network.values.get(values.get(node.input[0], ""))
    if axes is not None and value is not None and len(value.shape) == 3 and {int(a) % 4 for a in axes} == {2, 3}:
        node.op_type = "GlobalAveragePool"
        del node.input[1:], node.attribute[:]


def _write_flatten(node: onnx.NodeProto, model: onnx.ModelProto, values: dict[str, str], network: Network) -> None:
    """The exporter writes flattening as a Reshape to a fixed width, which a network with fewer channels has not."""
    import onnx

    if node.op_type != "Reshape" or len(node.input) != 2:
        return
    shape = next((onnx.numpy_helper.to_array(t) for t in model.graph.initializer if t.name == node.input[1]), None)
    value = network.values.get(values.get(node.input[0], ""))
    if shape is not None and value is not None and shape.tolist() == [-1, math.prod(value.shape)]:
        node.op_type = "Flatten"
        del node.input[1], node.attribute[:]


def _plain_info(info: onnx.ValueInfoProto) -> onnx.ValueInfoProto:
    import onnx

    plain = onnx.ValueInfoProto()
    plain.name = info.name
    plain.type.CopyFrom(info.type)
    return plain
