"""Building an ONNX model from a skeleton: initializers, weights as symbols, Q/DQ pairs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from autocomp.core.compressed import ActivationQuantizer
from autocomp.core.encodings import Float8Tensor, QuantizedTensor
from autocomp.graph.integers import float8_numbers, has_integer_bias, integer_bias

if TYPE_CHECKING:
    import onnx

    from autocomp.runtimes._skeleton import Skeleton

BLOCK_OPSET = 21
"""The first operator set with 4-bit weights and a scale a block."""
FLOAT8_OPSET = 19
"""The first one with float8."""


@dataclass(frozen=True)
class Bias:
    """Where an integer bias goes: a layer's call reads ``tensor``, its input has ``quantizer``."""

    tensor: str
    weight: str
    quantizer: ActivationQuantizer


class Graft:
    """One model under construction.

    Args:
        skeleton: the exported network.
        tensors: state-dict key → float32 array, for every tensor that is not in ``symbols``.
        symbols: state-dict key → symmetric grid or E4M3 numbers, of the weights that stay symbols.
        quantizers: value key → quantizer, for every value that gets a Q/DQ pair.
        types: state-dict key → "int8", "float8" or "int4", of each of ``symbols``.
        blocks: state-dict key → block size, for those that are 4-bit.
    """

    def __init__(
        self,
        skeleton: Skeleton,
        tensors: Mapping[str, np.ndarray],
        symbols: Mapping[str, QuantizedTensor | Float8Tensor],
        quantizers: Mapping[str, ActivationQuantizer],
        types: Mapping[str, str] | None = None,
        blocks: Mapping[str, int] | None = None,
    ) -> None:
        self.skeleton = skeleton
        self._tensors, self._symbols, self._quantizers = tensors, symbols, quantizers
        self._types, self._blocks = types or {}, blocks or {}
        self._nodes: list[onnx.NodeProto] = []
        self._initializers: dict[str, onnx.TensorProto] = {t.name: t for t in skeleton.constants}
        self._names: dict[str, str] = {}
        self._grid: dict[str, ActivationQuantizer] = {}
        self._weights: dict[str, str] = {}
        self._markers: dict[str, list[str]] = {}
        for marker, source in skeleton.sources.items():
            self._markers.setdefault(source, []).append(marker)
        self._transposed = _transposed_weights(skeleton)

    def model(self, batch_size: int | None) -> onnx.ModelProto:
        """The finished model, in float32 and symbols; ``batch_size`` None leaves the batch axis free."""
        import onnx

        for marker in self.skeleton.tensors:
            self._weight(marker)
        for info in self.skeleton.inputs:
            self._follow(info.name)
        for node in self.skeleton.nodes:
            self._node(node)
        outputs = [self._finish_output(info) for info in self.skeleton.outputs]
        used = {name for node in self._nodes for name in node.input} | {info.name for info in outputs}
        graph = onnx.GraphProto(
            name="network",
            node=self._nodes,
            initializer=[t for name, t in self._initializers.items() if name in used],
            input=[_sized(info, batch_size) for info in self.skeleton.inputs],
            output=[_sized(info, batch_size) for info in outputs],
        )
        float8 = "float8" in self._types.values() or any(q.precision == "float8" for q in self._quantizers.values())
        opset = max(self.skeleton.opset, BLOCK_OPSET if self._blocks else 0, FLOAT8_OPSET if float8 else 0)
        return onnx.ModelProto(
            ir_version=self.skeleton.ir_version,
            producer_name="autocomp",
            opset_import=[onnx.OperatorSetIdProto(domain="", version=opset)],
            graph=graph,
        )

    def _weight(self, marker: str) -> None:
        """Initializers of one tensor; the marker's name then stands for what readers get."""
        key = self.skeleton.tensors[marker]
        self._weights[marker] = key
        turned = marker in self._transposed
        if key not in self._symbols:
            array = self._tensors[key]
            self._names[marker] = self._initializer(key, array.T if turned else array)
            return
        encoding = self._symbols[key]
        symbols, scale = self._typed(key), self._weight_scale(key)
        if key in self._blocks:
            self._names[marker] = self._dequantize_blocks(key, symbols, scale, turned)
            return
        axis = encoding.axis
        if turned:
            symbols, axis = symbols.T, 1 - axis
        zero = np.zeros(scale.shape, symbols.dtype)
        self._names[marker] = self._dequantize(key, symbols, scale, zero, axis)

    def _dequantize_blocks(self, key: str, symbols: np.ndarray, scale: np.ndarray, turned: bool) -> str:
        """4-bit weights [out, in] with a scale a block of inputs: the channel's own, repeated, so nothing is lost."""
        from onnx import helper

        outputs, inputs = symbols.shape
        size = self._blocks[key]
        scales, axis = np.broadcast_to(scale.reshape(-1, 1), (outputs, inputs // size)), 1
        if turned:
            symbols, scales, axis = symbols.T, scales.T, 0
        names = [self._initializer(key, symbols), self._initializer(f"{key}:scale", scales)]
        out = f"{key}:dequantized"
        self._nodes.append(helper.make_node("DequantizeLinear", names, [out], f"{key}:dq", axis=axis, block_size=size))
        return out

    def _typed(self, key: str) -> np.ndarray:
        """A weight's symbols in the type that they are read in."""
        encoding, kind = self._symbols[key], self._types[key]
        numbers = float8_numbers(encoding) if kind == "float8" else encoding.symbols
        assert numbers is not None
        return numbers.numpy().astype(element_type(kind))

    def _weight_scale(self, key: str) -> np.ndarray:
        """Scale of a weight's symbols: [channels], or scalar, float32."""
        scale: np.ndarray = self._symbols[key].scale.numpy().astype(np.float32)
        return scale.reshape(()) if scale.size == 1 else scale

    def _dequantize(self, key: str, symbols: np.ndarray, scale: np.ndarray, zero: np.ndarray, axis: int) -> str:
        from onnx import helper

        names = [
            self._initializer(key, symbols),
            self._initializer(f"{key}:scale", scale),
            self._initializer(f"{key}:zero_point", zero),
        ]
        out = f"{key}:dequantized"
        node = helper.make_node("DequantizeLinear", names, [out], f"{key}:dq")
        if scale.ndim:
            node.attribute.append(helper.make_attribute("axis", axis))
        self._nodes.append(node)
        return out

    def _initializer(self, name: str, array: np.ndarray) -> str:
        from onnx import numpy_helper

        if name not in self._initializers:
            self._initializers[name] = numpy_helper.from_array(np.asarray(array, order="C"), name)
        return name

    def _node(self, node: onnx.NodeProto) -> None:
        import onnx

        if node.op_type == "Transpose" and node.input[0] in self._transposed:
            self._names[node.output[0]] = self._names[node.input[0]]
            return
        if node.op_type == "Clip" and self._is_needless_clip(node):
            self._names[node.output[0]] = self._names.get(node.input[0], node.input[0])
            self._follow(node.output[0])
            return
        copy = onnx.NodeProto()
        copy.CopyFrom(node)
        for i, name in enumerate(node.input):
            copy.input[i] = self._names.get(name, name)
        if node.op_type in ("Conv", "Gemm", "ConvTranspose"):
            self._integer_bias(node, copy)
        self._nodes.append(copy)
        for name in node.output:
            self._follow(name)

    def _is_needless_clip(self, node: onnx.NodeProto) -> bool:
        """Whether the quantizer behind a Clip saturates at its bounds anyway.

        ONNX Runtime sees that too, but not where 255 · scale exceeds the bound by a rounding error.
        """
        markers = self._markers.get(node.output[0], [])
        quantizer = self._quantizers.get(self.skeleton.values[markers[0]]) if len(markers) == 1 else None
        bounds = [self._constant(name) for name in (*node.input[1:], "", "")[:2]]
        if quantizer is None:
            return False
        scale = np.float32(quantizer.scale)
        low, high = quantizer.low - quantizer.zero_point, quantizer.high - quantizer.zero_point
        saturates_low = bounds[0] is None or float(np.round(bounds[0] / scale)) <= low
        return saturates_low and (bounds[1] is None or float(np.round(bounds[1] / scale)) >= high)

    def _constant(self, name: str) -> np.ndarray | None:
        """Value of a constant input, None where it is left out."""
        from onnx import numpy_helper

        return numpy_helper.to_array(self._initializers[name]) if name in self._initializers else None

    def _integer_bias(self, node: onnx.NodeProto, copy: onnx.NodeProto) -> None:
        """bias ≈ integer · (input scale · weight scale): what integer kernels add to their sums."""
        weight = self._weights.get(node.input[1])
        bias = self._weights.get(node.input[2]) if len(node.input) > 2 else None
        quantizer = self._grid.get(copy.input[0])
        encoding = self._symbols.get(weight) if weight is not None else None
        if not isinstance(encoding, QuantizedTensor) or bias is None or quantizer is None:
            return
        if not has_integer_bias(quantizer):
            return
        rounded = integer_bias(torch.from_numpy(self._tensors[bias]), encoding, quantizer.scale)
        if rounded is None:
            return
        symbols, scale = rounded[0].numpy().astype(np.int32), rounded[1].numpy()
        scale = scale.reshape(()) if scale.size == 1 else scale
        key = f"{bias}:int32"
        key = key if key not in self._initializers else f"{key}:{copy.output[0]}"
        copy.input[2] = self._dequantize(key, symbols, scale, np.zeros(scale.shape, np.int32), 0)

    def _follow(self, name: str) -> None:
        """Attach what stands behind a fresh result: Q/DQ pairs where its markers' values are quantized."""
        for marker in self._markers.get(name, ()):
            current = self._names.get(name, name)
            quantizer = self._quantizers.get(self.skeleton.values[marker])
            if quantizer is not None and self._grid.get(current) != quantizer:
                current = self._pair(self.skeleton.values[marker], current, quantizer)
            self._names[marker] = current
            self._follow(marker)

    def _pair(self, key: str, name: str, quantizer: ActivationQuantizer) -> str:
        from onnx import helper

        kind = "uint8" if quantizer.low >= 0 else quantizer.precision
        constants = [
            self._initializer(f"{key}:scale", np.asarray(quantizer.scale, np.float32)),
            self._initializer(f"{key}:zero_point", np.asarray(quantizer.zero_point, element_type(kind))),
        ]
        symbols, out = f"{key}:quantized", f"{key}:dequantized"
        self._nodes.append(helper.make_node("QuantizeLinear", [name, *constants], [symbols], f"{key}:q"))
        self._nodes.append(helper.make_node("DequantizeLinear", [symbols, *constants], [out], f"{key}:dq"))
        self._grid[out] = quantizer
        return out

    def _finish_output(self, info: onnx.ValueInfoProto) -> onnx.ValueInfoProto:
        """The graph's output keeps its name: its maker is renamed, or a constant or input is handed on."""
        from onnx import helper

        made = self._names.get(info.name, info.name)
        if made != info.name:
            self._nodes.append(helper.make_node("Identity", [made], [info.name], "output"))
            makers = [i for i, node in enumerate(self._nodes[:-1]) if made in node.output]
            readers = [node for node in self._nodes[:-1] if made in node.input]
            if makers and not readers:
                self._nodes.pop()
                maker = self._nodes[makers[0]]
                maker.output[list(maker.output).index(made)] = info.name
        return info


def element_type(kind: str) -> np.dtype:
    """numpy's type for "int8", "uint8", "float8" (E4M3) and "int4"."""
    import ml_dtypes

    kinds: dict[str, np.dtype] = {"float8": np.dtype(ml_dtypes.float8_e4m3fn), "int4": np.dtype(ml_dtypes.int4)}
    return kinds.get(kind) or np.dtype(kind)


def _transposed_weights(skeleton: Skeleton) -> set[str]:
    """Markers of matrices that are only read transposed: they are stored that way."""
    readers: dict[str, list[onnx.NodeProto]] = {}
    for node in skeleton.nodes:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    return {
        marker
        for marker in skeleton.tensors
        if marker in readers and all(n.op_type == "Transpose" and _is_swap(n) for n in readers[marker])
    }


def _is_swap(node: onnx.NodeProto) -> bool:
    return any(a.name == "perm" and list(a.ints) == [1, 0] for a in node.attribute)


def _sized(info: onnx.ValueInfoProto, batch_size: int | None) -> onnx.ValueInfoProto:
    import onnx

    sized = onnx.ValueInfoProto()
    sized.CopyFrom(info)
    for dim in sized.type.tensor_type.shape.dim:
        if batch_size is not None and dim.dim_param == "batch":
            dim.dim_value = batch_size
    return sized
