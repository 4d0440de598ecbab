"""A float32 ONNX model in float16: what strongly typed builders compute in is what the model says.

TensorRT picks no precision by itself (from 11 on it cannot, before it is deprecated), so float16 has to stand in
the model: weights, constants, scales of Q/DQ pairs. Input and output stay float32, behind a cast.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from autocomp.errors import UnsupportedError
from autocomp.graph.float16 import LARGEST, MASK, SMALLEST_SCALE

if TYPE_CHECKING:
    import onnx

# Sums of squares, powers and exponentials leave float16's range (65504) on ordinary activations: 256² does.
# LayerNormalization is not here: it sums in float32 as its attribute ``stash_type`` says; Softmax subtracts the
# maximum first. The simulation has the same lists in torch's words: graph/float16.py.
KEPT_FLOAT32 = frozenset(
    {"CumSum", "Exp", "InstanceNormalization", "Log", "Pow", "ReduceL2", "ReduceProd", "ReduceSum", "ReduceSumSquare"}
)
# What is computed from their results stays float32 up to what brings them back into range: x² → mean → + ε → root.
_FOLLOW = frozenset({"Add", "Div", "Mul", "Reciprocal", "ReduceMean", "Sqrt", "Sub"})
_BACK = frozenset({"Log", "Reciprocal", "Sqrt"})
_FLOAT32_INPUTS = {"Resize": (1, 2), "Upsample": (1,)}  # by position: float32 whatever the data is
_OPSET = 21


def to_float16(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model computing in float16 wherever it computes in float32; changed in place.

    Raises:
        UnsupportedError: a weight that float16 cannot hold (named).
    """
    return _Conversion(model).run()


class _Conversion:
    def __init__(self, model: onnx.ModelProto) -> None:
        import onnx

        self.model, self.graph = model, model.graph
        self.float, self.half = onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16
        self._types = dict(_types(onnx.shape_inference.infer_shapes(model).graph))
        self._nodes: list[onnx.NodeProto] = []
        self._names: dict[str, str] = {}
        self._wide_nodes = _wide_nodes(self.graph)
        outputs = {info.name for info in self.graph.output}
        narrow = (n for i, n in enumerate(self.graph.node) if i not in self._wide_nodes)
        self._read_in_half = outputs | {name for node in narrow for name in node.input}
        self._in_float: dict[str, str] = {}  # results of wide nodes, and inputs cast for them already

    def run(self) -> onnx.ModelProto:
        """Inputs, constants, nodes, outputs."""
        scales = {n.input[1] for n in self.graph.node if n.op_type in ("QuantizeLinear", "DequantizeLinear")}
        wide = {name for node in self.graph.node for name in _wide_inputs(node)}
        for tensor in self.graph.initializer:
            if tensor.data_type == self.float and tensor.name not in wide:
                tensor.CopyFrom(_half(tensor, scale=tensor.name in scales))
        for info in self.graph.input:
            if self._types[info.name] == self.float:
                self._names[info.name] = self._cast(info.name, f"{info.name}:float16", self.half)
        for i, node in enumerate(self.graph.node):
            self._node(node, wide=i in self._wide_nodes)
        for info in self.graph.output:
            if self._types[info.name] == self.float:
                self._output(info.name)
        del self.graph.node[:]
        self.graph.node.extend(self._nodes)
        for entry in self.model.opset_import:
            entry.version = max(entry.version, _OPSET)  # Q/DQ on float16 since 19
        return self.model

    def _node(self, node: onnx.NodeProto, *, wide: bool) -> None:
        import onnx

        copy = onnx.NodeProto()
        copy.CopyFrom(node)
        for i, name in enumerate(node.input):
            copy.input[i] = self._names.get(name, name)
        for attribute in copy.attribute:
            if node.op_type == "Cast" and attribute.name == "to" and attribute.i == self.float:
                attribute.i = self.half
            elif attribute.type == onnx.AttributeProto.TENSOR and attribute.t.data_type == self.float:
                attribute.t.CopyFrom(_half(attribute.t))
        if wide:
            self._wide(node, copy)
            return
        self._nodes.append(copy)

    def _wide(self, node: onnx.NodeProto, copy: onnx.NodeProto) -> None:
        """A node in float32: casts where it meets float16."""
        for i, name in enumerate(node.input):
            if self._types.get(name) == self.float:
                if name not in self._in_float:
                    self._in_float[name] = self._cast(copy.input[i], f"{name}:float32", self.float)
                copy.input[i] = self._in_float[name]
        outputs = [name for name in node.output if self._types.get(name) == self.float]
        for i, name in enumerate(copy.output):
            copy.output[i] = f"{name}:float32" if name in outputs else name
        self._nodes.append(copy)
        for name in outputs:
            self._in_float[name] = f"{name}:float32"
            if name in self._read_in_half:
                self._cast(f"{name}:float32", name, self.half)

    def _output(self, name: str) -> None:
        """The maker's result gets another name; the cast behind it has the output's."""
        inner = f"{name}:float16"
        for node in self._nodes:
            for names in (node.input, node.output):
                for i, found in enumerate(names):
                    if found == name:
                        names[i] = inner
        self._cast(inner, name, self.float)

    def _cast(self, source: str, target: str, to: int) -> str:
        from onnx import helper

        self._nodes.append(helper.make_node("Cast", [source], [target], f"{target}:cast", to=to))
        return target


def _types(graph: onnx.GraphProto) -> Iterator[tuple[str, int]]:
    """Tensor → element type."""
    for info in (*graph.value_info, *graph.input, *graph.output):
        yield info.name, info.type.tensor_type.elem_type
    for tensor in graph.initializer:
        yield tensor.name, tensor.data_type


def _wide_nodes(graph: onnx.GraphProto) -> set[int]:
    """Positions of the nodes that stay float32."""
    found: set[int] = set()
    large: set[str] = set()  # results that may be out of float16's range
    for i, node in enumerate(graph.node):
        if node.op_type in KEPT_FLOAT32 or (node.op_type in _FOLLOW and large.intersection(node.input)):
            found.add(i)
            if node.op_type not in _BACK:
                large.update(node.output)
    return found


def _wide_inputs(node: onnx.NodeProto) -> list[str]:
    positions = _FLOAT32_INPUTS.get(node.op_type, ())
    return [name for i, name in enumerate(node.input) if i in positions and name]


def _half(tensor: onnx.TensorProto, *, scale: bool = False) -> onnx.TensorProto:
    """The tensor in float16; a scale stays above zero, which no builder takes."""
    from onnx import numpy_helper

    values = numpy_helper.to_array(tensor).astype(np.float32)
    finite = np.where(np.abs(values) >= MASK, np.copysign(np.float32(LARGEST), values), values)
    top = float(np.abs(finite).max(initial=0.0))
    if top > LARGEST:
        raise UnsupportedError(
            f"tensor {tensor.name!r} holds {top:g}, float16 ends at {LARGEST:g}: take a profile whose "
            "placement.float_type is float32"
        )
    if scale:
        finite = np.maximum(finite, np.float32(SMALLEST_SCALE))
    return numpy_helper.from_array(finite.astype(np.float16), tensor.name)
