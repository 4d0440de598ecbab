"""Reading and adapting ONNX graphs for runtimes: biases of integer layers, precisions after optimisation."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

import numpy as np
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper

from autocomp.errors import UnsupportedError

LAYER_OPS = ("Conv", "ConvTranspose", "Gemm", "MatMul")
INTEGER_OPS = (
    "ConvInteger",
    "DynamicQuantizeMatMul",
    "MatMulInteger",
    "MatMulIntegerToFloat",
    "QGemm",
    "QLinearConv",
    "QLinearMatMul",
)
_COPY = re.compile(r"_token_\d+$")  # ONNX Runtime's suffix for a node that replaces another
_BIAS_OPS = ("Conv", "Gemm")


def load(data: bytes) -> ModelProto:
    """A parsed model; :class:`UnsupportedError` where the bytes are none."""
    from google.protobuf.message import DecodeError  # type: ignore[import-untyped]  # stubs are a separate package

    model = ModelProto()
    try:
        model.ParseFromString(data)
    except DecodeError as error:
        raise UnsupportedError(f"not an ONNX model: {len(data)} bytes that do not parse ({error})") from error
    if not model.graph.node:
        raise UnsupportedError(f"not an ONNX model: no nodes in {len(data)} bytes")
    return model


def quantize_biases(model: ModelProto) -> bool:
    """Replace float32 biases of integer Conv and Gemm layers by int32 with a DequantizeLinear, in place.

    An integer kernel adds the bias to its int32 sums, so the bias sits on the grid of the products:
    scale = input scale × weight scale, zero point 0. Only layers whose input and weight both come
    from a DequantizeLinear are touched.

    Returns:
        Whether anything changed.
    """
    graph = model.graph
    values = {i.name: i for i in graph.initializer}
    producers = {name: node for node in graph.node for name in node.output}
    changed = False
    for node in [n for n in graph.node if n.op_type in _BIAS_OPS and len(n.input) > 2]:
        scales = [_dequantize_scale(producers.get(name), values) for name in node.input[:2]]
        bias = values.get(node.input[2])
        if bias is None or scales[0] is None or scales[1] is None or scales[0].size != 1:
            continue
        if not _beta_is_one(node):
            continue
        scale = (scales[0].reshape(()) * scales[1].reshape(-1)).astype(np.float32)
        floats = numpy_helper.to_array(bias).reshape(-1).astype(np.float64)
        if scale.size not in (1, floats.size) or not (scale > 0).all():
            continue
        _insert_bias(graph, node, floats, np.broadcast_to(scale, floats.shape))
        changed = True
    if changed:
        _drop_unused(graph)
    return changed


def _dequantize_scale(node: NodeProto | None, values: dict[str, TensorProto]) -> np.ndarray | None:
    if node is None or node.op_type != "DequantizeLinear" or node.input[1] not in values:
        return None
    return np.asarray(numpy_helper.to_array(values[node.input[1]]))


def _beta_is_one(node: NodeProto) -> bool:
    return all(a.f == 1.0 for a in node.attribute if a.name == "beta")


def _insert_bias(graph: GraphProto, node: NodeProto, floats: np.ndarray, scale: np.ndarray) -> None:
    limit = np.iinfo(np.int32)
    integers = np.clip(np.rint(floats / scale), limit.min, limit.max).astype(np.int32)
    name = f"{node.output[0]}_bias"
    for suffix, array in (("int32", integers), ("scale", scale), ("zero", np.zeros_like(integers))):
        graph.initializer.append(numpy_helper.from_array(np.ascontiguousarray(array), f"{name}_{suffix}"))
    dequantize = helper.make_node(
        "DequantizeLinear",
        [f"{name}_int32", f"{name}_scale", f"{name}_zero"],
        [f"{name}_dequantized"],
        name=f"{name}_DequantizeLinear",
        axis=0,
    )
    graph.node.insert(list(graph.node).index(node), dequantize)
    node.input[2] = f"{name}_dequantized"


def _drop_unused(graph: GraphProto) -> None:
    used = {name for node in graph.node for name in node.input} | {o.name for o in graph.output}
    kept = [i for i in graph.initializer if i.name in used]
    del graph.initializer[:]
    graph.initializer.extend(kept)


def quantize_before_concat(model: ModelProto) -> bool:
    """Move a Q/DQ pair from behind a concatenation to its inputs, in place: elementwise, so the result is the same.

    OpenVINO does so itself, and 2026.4 crashes in it (``MoveFakeQuantize``) where some inputs are quantized already.

    Returns:
        Whether anything changed.
    """
    graph = model.graph
    readers: dict[str, list[NodeProto]] = {}
    for node in graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    changed = False
    for concat in [n for n in graph.node if n.op_type == "Concat"]:
        pair = _pair_behind(concat.output[0], readers)
        if pair is None:
            continue
        quantize, dequantize = pair
        at = list(graph.node).index(concat)
        for i, name in enumerate(list(concat.input)):
            made = [f"{concat.output[0]}_{i}_{kind}" for kind in ("quantized", "dequantized")]
            for new, old, source in zip(made, pair, (name, made[0]), strict=True):
                graph.node.insert(at, helper.make_node(old.op_type, [source, *old.input[1:]], [new], name=new))
                at += 1
            concat.input[i] = made[1]
        concat.output[0] = dequantize.output[0]
        graph.node.remove(quantize)
        graph.node.remove(dequantize)
        changed = True
    return changed


def _pair_behind(value: str, readers: dict[str, list[NodeProto]]) -> tuple[NodeProto, NodeProto] | None:
    """The Q and the DQ that alone read ``value``, one behind the other."""
    found = []
    for op in ("QuantizeLinear", "DequantizeLinear"):
        after = readers.get(value, [])
        if len(after) != 1 or after[0].op_type != op:
            return None
        found.append(after[0])
        value = after[0].output[0]
    return found[0], found[1]


def fix_batch(model: ModelProto, shape: Sequence[int]) -> None:
    """Give a model with one input, whose batch axis may be free, the batch size of ``shape`` [n, ...], in place.

    Raises:
        UnsupportedError: more than one input, or one of another shape.
    """
    initializers = {i.name for i in model.graph.initializer}
    inputs = [i for i in model.graph.input if i.name not in initializers]
    if len(inputs) != 1:
        raise UnsupportedError(
            f"the model has {len(inputs)} inputs ({', '.join(i.name for i in inputs)}); engines take one"
        )
    dims = inputs[0].type.tensor_type.shape.dim
    free = dims[0].dim_param if dims else ""
    found = [d.dim_value if d.HasField("dim_value") else None for d in dims]
    if len(found) != len(shape) or any(f not in (None, n) for f, n in zip(found, shape, strict=True)):
        shown = ["n" if f is None else f for f in found]
        raise UnsupportedError(f"the model takes inputs {shown}, the example is {list(shape)}; export it for these")
    for dim, n in zip(dims, shape, strict=True):
        dim.dim_value = int(n)
    for info in (*model.graph.input, *model.graph.output, *model.graph.value_info):
        for dim in info.type.tensor_type.shape.dim:
            if free and dim.dim_param == free:
                dim.dim_value = int(shape[0])


def name_nodes(model: ModelProto) -> None:
    """Give every node a name of its own, in place: errors and tables of kernels speak of names."""
    taken: set[str] = set()
    for i, node in enumerate(model.graph.node):
        if not node.name or node.name in taken:
            node.name = f"{node.op_type}:{i}"
        taken.add(node.name)


def layer_weights(model: ModelProto) -> dict[str, str]:
    """Layer node → name of its weight, in order of execution; products of two activations are left out."""
    producers = {name: node for node in model.graph.node for name in node.output}
    initializers = {i.name for i in model.graph.initializer}
    pairs = ((n.name, _weight_name(n, producers, initializers)) for n in model.graph.node if n.op_type in LAYER_OPS)
    return {node: weight for node, weight in pairs if weight is not None}


def layer_precisions(source: ModelProto, optimised: ModelProto) -> dict[str, str]:
    """What became of each layer: weight name → "int8" where an integer kernel runs it, else "float32".

    Args:
        source: the model that was built, with names as exported.
        optimised: the same after the runtime's graph optimisation.

    Returns:
        By weight initializer name in order of execution. Products of two activations have no
        weight and are left out; a weight used by several layers counts as "int8" only if all are.
    """
    integer = [n for n in optimised.graph.node if n.op_type in INTEGER_OPS]
    by_name = {_COPY.sub("", n.name) for n in integer if n.name}
    by_input = {name for n in integer for name in n.input}
    calls = [
        (weight, "int8" if (node.name in by_name if node.name else weight in by_input) else "float32")
        for node, weight in layer_calls(source)
    ]
    return joined(calls)


def layer_calls(model: ModelProto) -> list[tuple[NodeProto, str]]:
    """Nodes that multiply by a weight, with the weight's initializer name, in order of execution."""
    producers = {name: node for node in model.graph.node for name in node.output}
    initializers = {i.name for i in model.graph.initializer}
    layers = [n for n in model.graph.node if n.op_type in LAYER_OPS]
    found = [(node, _weight_name(node, producers, initializers)) for node in layers]
    return [(node, weight) for node, weight in found if weight is not None]


def joined(calls: Iterable[tuple[str, str]]) -> dict[str, str]:
    """Weight → precision from (weight, precision) of each call; where calls differ, "float32"."""
    out: dict[str, str] = {}
    for weight, precision in calls:
        known = out.get(weight, precision)
        out[weight] = known if known == precision else "float32"
    return out


def _weight_name(node: NodeProto, producers: dict[str, NodeProto], initializers: set[str]) -> str | None:
    """The initializer behind input 1 (or 0: a product may have its weight first)."""
    for name in (node.input[1], node.input[0]):
        current: str = name
        while current not in initializers:
            maker = producers.get(current)
            if maker is None or maker.op_type not in ("DequantizeLinear", "QuantizeLinear", "Transpose", "Reshape"):
                break
            current = maker.input[0]
        if current in initializers:
            return current
    return None
