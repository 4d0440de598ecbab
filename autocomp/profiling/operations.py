"""An exported ONNX model as the operations that an engine runs.

Q/DQ pairs, casts, activation functions and BatchNorm are no operations of their own: engines fuse them into the
operation before. Where two neighbours run in different precisions something has to convert, and that is kept as an
:class:`Edge` of the operation that reads.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

BITS = {"float32": 32, "float16": 16, "bfloat16": 16, "float8": 8, "int8": 8, "int4": 4, "int64": 64, "int32": 32}
MATRIX_KINDS = ("conv1d", "conv2d", "conv3d", "conv_transpose", "depthwise", "linear", "matmul")


@dataclass(frozen=True, kw_only=True)
class Value:
    """An activation between two operations.

    Attributes:
        name: in the ONNX model.
        shape: batch axis included.
        precision: it is kept in.
    """

    name: str
    shape: tuple[int, ...]
    precision: str

    @property
    def elements(self) -> int:
        return math.prod(self.shape)

    @property
    def bytes(self) -> int:
        return -(-self.elements * BITS[self.precision] // 8)


@dataclass(frozen=True, kw_only=True)
class Edge:
    """A change of precision in front of an operation, or behind the last one.

    Attributes:
        kind: "float32>int8", from and to.
        elements: that are converted.
    """

    kind: str
    elements: int


@dataclass(frozen=True, kw_only=True)
class Operation:
    """What an engine runs as one kernel, as far as the model tells.

    Attributes:
        name: of the ONNX node.
        kind: "conv1d", "conv2d", "conv3d", "conv_transpose", "depthwise", "linear", "matmul" (two activations),
            "elementwise", "pool", "normalize", "move" (data only changes place) or "other".
        op_type: of the ONNX node.
        reads, writes: activations.
        weight: initializer, None where there is none.
        weight_shape: of it.
        weight_bytes: of weight and bias as the operation reads them.
        precision: it executes in: "int8" or "float8" (data and weight from DequantizeLinear), "int4" (weight only),
            "float16", "float32", ...
        macs: multiply-accumulates of one inference, all samples of the batch.
        kernel, strides: of convolutions and pooling.
        groups: of convolutions.
        edges: conversions in front of it; each value is converted once to each precision, for its first reader.
    """

    name: str
    kind: str
    op_type: str
    reads: tuple[Value, ...]
    writes: Value
    precision: str
    weight: str | None = None
    weight_shape: tuple[int, ...] = ()
    weight_bytes: int = 0
    macs: int = 0
    kernel: tuple[int, ...] = ()
    strides: tuple[int, ...] = ()
    groups: int = 1
    edges: tuple[Edge, ...] = ()

    @property
    def read_bytes(self) -> int:
        """Activations read, without weights."""
        return sum(value.bytes for value in self.reads)

    @property
    def written_bytes(self) -> int:
        return self.writes.bytes

    @property
    def channels(self) -> tuple[int, int]:
        """In and out: of the weight where there is one, else of the activations."""
        if self.kind == "linear":
            return math.prod(self.weight_shape) // max(1, self.writes.shape[-1]), self.writes.shape[-1]
        axis = 1 if len(self.writes.shape) > 1 else 0
        inside = self.reads[0].shape if self.reads else self.writes.shape
        return (inside[axis] if len(inside) > axis else 1), (self.writes.shape[axis] if self.writes.shape else 1)

    @property
    def spatial(self) -> tuple[int, ...]:
        """Sizes behind the channel axis of what it writes."""
        return self.writes.shape[2:]


def operations(model: bytes, batch_size: int | None = None) -> tuple[Operation, ...]:
    """The operations of a serialized ONNX model, in order of execution.

    Args:
        model: as :class:`~autocomp.runtimes.export.OnnxExporter` writes it; int8 as Q/DQ pairs.
        batch_size: takes the place of a free batch axis.

    Raises:
        UnsupportedError: no ONNX model, or shapes that depend on data.
    """
    from autocomp.profiling._onnx_reader import Reader
    from autocomp.runtimes import _onnx_graph as graphs

    return Reader(graphs.load(model), batch_size).operations()


def peak_activation_bytes(found: Iterable[Operation]) -> int:
    """Most bytes of activations alive at once, with each operation's inputs and output kept apart.

    What a device without virtual memory needs besides weights and the kernels' own scratch buffers, in the order of
    execution that the model has.
    """
    ordered = list(found)
    last = {value.name: i for i, operation in enumerate(ordered) for value in operation.reads}
    alive: dict[str, int] = {}
    peak = 0
    for i, operation in enumerate(ordered):
        alive |= {value.name: value.bytes for value in (*operation.reads, operation.writes)}
        peak = max(peak, sum(alive.values()))
        alive = {name: size for name, size in alive.items() if last.get(name, len(ordered)) > i}
    return peak
