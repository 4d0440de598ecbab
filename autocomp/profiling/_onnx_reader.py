"""Reading operations out of an ONNX graph: shapes, what is fused away, what runs in which precision."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import onnx

from autocomp.errors import UnsupportedError
from autocomp.profiling.operations import BITS, MATRIX_KINDS, Edge, Operation, Value

SMALL = 64
"""Initializers of more elements lose their data before shapes are inferred: no shape depends on them."""

PRECISIONS: dict[int, str] = {
    onnx.TensorProto.FLOAT: "float32",
    onnx.TensorProto.FLOAT16: "float16",
    onnx.TensorProto.BFLOAT16: "bfloat16",
    onnx.TensorProto.FLOAT8E4M3FN: "float8",
    onnx.TensorProto.INT8: "int8",
    onnx.TensorProto.UINT8: "int8",
    onnx.TensorProto.INT4: "int4",
    onnx.TensorProto.UINT4: "int4",
    onnx.TensorProto.INT32: "int32",
    onnx.TensorProto.INT64: "int64",
}
_EIGHT_BITS = ({"int8"}, {"float8"})
FREE = {"Reshape", "Flatten", "Squeeze", "Unsqueeze", "Identity", "Dropout"}
FUSED = {
    *("Relu", "LeakyRelu", "Clip", "Sigmoid", "Tanh", "HardSigmoid", "HardSwish", "Elu", "Gelu", "PRelu", "Softplus"),
    *("Mish", "Selu", "Celu", "BatchNormalization"),
}
KINDS = {
    "Gemm": "linear",
    **dict.fromkeys(("Add", "Sub", "Mul", "Div", "Pow", "Max", "Min", "Sum", "Where"), "elementwise"),
    **dict.fromkeys(("Sqrt", "Erf", "Exp"), "elementwise"),
    **dict.fromkeys(FUSED, "elementwise"),
    **dict.fromkeys(("MaxPool", "AveragePool", "GlobalAveragePool", "GlobalMaxPool"), "pool"),
    **dict.fromkeys(("ReduceMean", "ReduceMax"), "pool"),
    **dict.fromkeys(("Softmax", "LogSoftmax", "LayerNormalization", "InstanceNormalization"), "normalize"),
    **dict.fromkeys(("GroupNormalization", "BatchNormalization", "LRN", "LpNormalization"), "normalize"),
    **dict.fromkeys(("Concat", "Split", "Slice", "Pad", "Transpose", "Gather", "Expand", "Resize", "Tile"), "move"),
    **dict.fromkeys(("DepthToSpace", "SpaceToDepth"), "move"),
}


@dataclass(frozen=True)
class _Weight:
    """An initializer behind an operand: its precision is the one it is stored in."""

    name: str
    shape: tuple[int, ...]
    precision: str


@dataclass
class _Draft:
    """An operation whose precision is not settled yet; reads are (value, precision it arrives in)."""

    node: onnx.NodeProto
    kind: str
    reads: list[tuple[str, str]]
    output: str
    weight: _Weight | None = None
    bias: int = 0
    attributes: dict[str, Any] = field(default_factory=dict)


class Reader:
    """One pass over the nodes, one over the operations found. ``model`` is changed."""

    def __init__(self, model: onnx.ModelProto, batch_size: int | None) -> None:
        self.nodes = list(model.graph.node)
        self.outputs = {o.name for o in model.graph.output}
        self.tensors = {t.name: (tuple(t.dims), t.data_type) for t in model.graph.initializer}
        self.readers: dict[str, int] = {}
        for node in self.nodes:
            for name in node.input:
                self.readers[name] = self.readers.get(name, 0) + 1
        self.shapes, self.types = _inferred(model, batch_size)
        self.weights: dict[str, _Weight] = {
            n: _Weight(n, shape, PRECISIONS.get(t, "float32")) for n, (shape, t) in self.tensors.items()
        }
        self.constants: set[str] = set(self.tensors)
        self.values: dict[str, tuple[str, str]] = {}  # tensor → (the value it is, the precision it arrives in)
        self.quantized: dict[str, str] = {}  # value that some reader quantizes → "int8" or "float8"
        self.drafts: dict[str, _Draft] = {}  # by the value they make
        for info in model.graph.input:
            if info.name not in self.tensors:
                self.values[info.name] = (info.name, self._type(info.name))

    def operations(self) -> tuple[Operation, ...]:
        for node in self.nodes:
            self._visit(node)
        precisions = {name: self._precision(draft) for name, draft in self.drafts.items()}
        written = {
            name: precisions[name] if self.quantized.get(name) == precisions[name] else self._type(name)
            for name in self.drafts
        }
        made: list[Operation] = []
        converted: set[tuple[str, str]] = set()
        for name, draft in self.drafts.items():
            made.append(self._finished(draft, precisions[name], written, converted))
        return tuple(made)

    def _visit(self, node: onnx.NodeProto) -> None:
        inputs = [name for name in node.input if name]
        if all(name in self.constants for name in inputs):
            self.constants.update(node.output)
            behind = next((self.weights[n] for n in inputs if n in self.weights), None)
            if behind is not None:
                self.weights[node.output[0]] = behind
            return
        data = next(name for name in inputs if name not in self.constants)
        value, arrives = self.values[data]
        if node.op_type == "QuantizeLinear":
            self.quantized[value] = self._type(node.output[0])
            self.values[node.output[0]] = (value, self.quantized[value])
        elif node.op_type == "DequantizeLinear" or node.op_type in FREE:
            self.values[node.output[0]] = (value, arrives)
        elif node.op_type == "Cast":
            self.values[node.output[0]] = (value, self._type(node.output[0]))
        elif self._fuses(node, data):
            self.values[node.output[0]] = (value, arrives)
        else:
            self._draft(node)

    def _fuses(self, node: onnx.NodeProto, data: str) -> bool:
        """Whether an activation function, norm or bias goes into the operation that makes its input."""
        value, arrives = self.values[data]
        maker = self.drafts.get(value)
        if maker is None or self.readers.get(data, 0) != 1 or arrives != self._type(value):
            return False
        if node.op_type == "Add":
            return maker.node.op_type == "MatMul" and maker.weight is not None and not maker.bias and any(
                n in self.constants and len(self.shapes.get(n, ())) == 1 for n in node.input
            )  # fmt: skip
        return node.op_type in FUSED and maker.kind not in ("move", "other")

    def _draft(self, node: onnx.NodeProto) -> None:
        attributes = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
        reads = [self.values[n] for n in node.input if n and n not in self.constants]
        draft = _Draft(node, KINDS.get(node.op_type, "other"), reads, node.output[0], attributes=attributes)
        behind = [self.weights[n] for n in node.input if n in self.weights]
        if node.op_type in ("Conv", "ConvTranspose", "Gemm", "MatMul", "Gather") and behind:
            draft.weight = behind[0]
            draft.bias = math.prod(behind[1].shape) if len(behind) > 1 and node.op_type != "Gather" else 0
        if node.op_type == "Conv":
            groups, rank = attributes.get("group", 1), len(self._shape(node.output[0])) - 2
            depthwise = groups > 1 and draft.weight is not None and draft.weight.shape[1] == 1
            draft.kind = "depthwise" if depthwise else f"conv{rank}d"
        elif node.op_type == "ConvTranspose":
            draft.kind = "conv_transpose"
        elif node.op_type in ("MatMul", "Gemm"):
            draft.kind = "linear" if draft.weight is not None else "matmul"
        for name in node.output:
            if name:
                self.values[name] = (node.output[0], self._type(name))
        self.drafts[node.output[0]] = draft

    def _precision(self, draft: _Draft) -> str:
        """What the operation executes in."""
        arrives = {precision for _, precision in draft.reads}
        plain = self._type(draft.output)
        if draft.kind in MATRIX_KINDS:
            if draft.weight is not None and draft.weight.precision == "int4":
                return "int4"
            if draft.weight is not None:
                arrives.add(draft.weight.precision)
            return next(iter(arrives)) if arrives in _EIGHT_BITS else plain
        found = self.quantized.get(draft.output)
        return found if found is not None and arrives == {found} else plain

    def _finished(
        self, draft: _Draft, precision: str, written: dict[str, str], converted: set[tuple[str, str]]
    ) -> Operation:
        runs = self._type(draft.output) if precision == "int4" else precision
        reads, edges = [], []
        for name, arrives in dict.fromkeys(draft.reads):
            shape, stands = self._shape(name), written.get(name, self._type(name))
            reads.append(Value(name=name, shape=shape, precision=runs if runs in BITS else stands))
            for old, new in ((stands, arrives), (arrives, runs)):
                if old != new and (name, f"{old}>{new}") not in converted and not old.startswith("int3"):
                    converted.add((name, f"{old}>{new}"))
                    edges.append(Edge(kind=f"{old}>{new}", elements=math.prod(shape)))
        shape = self._shape(draft.output)
        return Operation(
            name=draft.node.name or draft.output,
            kind=draft.kind,
            op_type=draft.node.op_type,
            reads=tuple(reads),
            writes=Value(name=draft.output, shape=shape, precision=written[draft.output]),
            precision=precision,
            weight=draft.weight.name if draft.weight is not None else None,
            weight_shape=draft.weight.shape if draft.weight is not None else (),
            weight_bytes=self._weight_bytes(draft, precision, shape),
            macs=self._macs(draft, shape),
            kernel=self._kernel(draft),
            strides=tuple(draft.attributes.get("strides", ())),
            groups=int(draft.attributes.get("group", 1)),
            edges=tuple(edges),
        )

    def _weight_bytes(self, draft: _Draft, precision: str, shape: tuple[int, ...]) -> int:
        if draft.weight is None:
            return 0
        elements = math.prod(shape) if draft.node.op_type == "Gather" else math.prod(draft.weight.shape)
        return -(-elements * BITS[precision] // 8) + 4 * draft.bias

    def _macs(self, draft: _Draft, shape: tuple[int, ...]) -> int:
        if draft.kind == "matmul":
            return math.prod(shape) * self._shape(draft.reads[0][0])[-1]
        if draft.weight is None or draft.kind not in MATRIX_KINDS:
            return 0
        weight = draft.weight.shape
        if draft.kind == "conv_transpose":
            return math.prod(self._shape(draft.reads[0][0])) * math.prod(weight[1:])
        if draft.kind == "linear":
            transposed = draft.node.op_type == "MatMul" and draft.node.input[0] in self.weights
            inside = weight[-1] if transposed else math.prod(weight) // shape[-1]
            return math.prod(shape) * inside
        return math.prod(shape) * math.prod(weight[1:])

    def _kernel(self, draft: _Draft) -> tuple[int, ...]:
        if draft.kind in MATRIX_KINDS and draft.weight is not None:
            return draft.weight.shape[2:]
        return tuple(draft.attributes.get("kernel_shape", ()))

    def _type(self, name: str) -> str:
        return PRECISIONS.get(self.types.get(name, onnx.TensorProto.FLOAT), "float32")

    def _shape(self, name: str) -> tuple[int, ...]:
        shape = self.shapes.get(name)
        if shape is None or any(size <= 0 for size in shape):
            raise UnsupportedError(f"the shape of {name!r} is not known before the model runs; its cost is unknown")
        return shape


def _inferred(model: onnx.ModelProto, batch_size: int | None) -> tuple[dict[str, tuple[int, ...]], dict[str, int]]:
    """Shape and element type of every tensor. Large initializers become inputs first: their data costs time only."""
    graph = model.graph
    for info in graph.input:
        for axis, dim in enumerate(info.type.tensor_type.shape.dim):
            if not dim.dim_value:
                dim.dim_value = batch_size or 1 if axis == 0 else 0
    for info in graph.output:
        info.type.tensor_type.ClearField("shape")
    del graph.value_info[:]
    small = [t for t in graph.initializer if math.prod(t.dims) <= SMALL]
    large = [t for t in graph.initializer if math.prod(t.dims) > SMALL]
    graph.input.extend(onnx.helper.make_tensor_value_info(t.name, t.data_type, list(t.dims)) for t in large)
    sizes = {t.name: (tuple(t.dims), t.data_type) for t in graph.initializer}
    del graph.initializer[:]
    graph.initializer.extend(small)
    done = onnx.shape_inference.infer_shapes(model, data_prop=True).graph
    shapes = {name: shape for name, (shape, _) in sizes.items()}
    types = {name: kind for name, (_, kind) in sizes.items()}
    for info in _infos(done):
        tensor = info.type.tensor_type
        types[info.name] = tensor.elem_type
        if tensor.HasField("shape"):
            shapes[info.name] = tuple(d.dim_value if d.HasField("dim_value") else -1 for d in tensor.shape.dim)
    return shapes, types


def _infos(graph: onnx.GraphProto) -> Iterable[onnx.ValueInfoProto]:
    return (*graph.input, *graph.value_info, *graph.output)
