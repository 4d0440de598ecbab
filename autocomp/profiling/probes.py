"""The small engines that a device is measured with: single operators and short chains, as ONNX models."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from autocomp.core.hardware import Placement
from autocomp.runtimes._float16 import to_float16
from autocomp.runtimes._graft import FLOAT8_OPSET, element_type

if TYPE_CHECKING:
    import numpy as np
    import onnx

SCALE = 0.05
"""Of every quantizer: how fast an engine is does not depend on it."""
EIGHT_BITS = ("int8", "float8")


@dataclass(frozen=True, kw_only=True)
class Probe:
    """Convolutions (or additions) of one shape in a row.

    Attributes:
        purpose: what it is measured for: "operators", "channels", "copy", "overhead" or "edges".
        kind: "conv2d", "linear", "add" or "relu".
        precisions: of each operator of the chain: "float32" or "float16" (the same for all), "int8" or "float8".
        channels: in and out of the chain's ends and all between.
        size: height and width; 1 for linear.
        kernel: of convolutions.
        stride: of the first convolution.
    """

    purpose: str
    kind: str
    precisions: tuple[str, ...]
    channels: tuple[int, int]
    size: int = 1
    kernel: int = 1
    stride: int = 1

    @property
    def key(self) -> str:
        """Names it in files: "operators conv2d float32 16-32 16x16 k3 s1"."""
        return (
            f"{self.purpose} {self.kind} {'+'.join(self.precisions)} {self.channels[0]}-{self.channels[1]} "
            f"{self.size}x{self.size} k{self.kernel} s{self.stride}"
        )

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Batch of 1 included."""
        plain = (1, self.channels[0])
        return plain if self.kind == "linear" else (*plain, self.size, self.size)

    def example(self) -> np.ndarray:
        """Seeded standard normal input."""
        import numpy as np

        return np.random.default_rng(0).standard_normal(self.input_shape).astype(np.float32)

    def model(self, placement: Placement) -> bytes:
        """Serialized ONNX, 8-bit operators between Q/DQ pairs as the target's placement has them.

        What stands beside 8-bit operators has the placement's float type.
        """
        return _Writer(self, placement).model()


def probes(precisions: Sequence[str]) -> Iterator[Probe]:
    """All of them, the most telling first. ``precisions``: those the device runs, "float32" first."""
    for precision in precisions:
        for size, channels in ((32, (16, 64)), (16, (16, 32, 128)), (8, (32, 64, 256))):
            for width in channels:
                yield Probe(
                    purpose="operators",
                    kind="conv2d",
                    precisions=(precision,),
                    channels=(width, width),
                    size=size,
                    kernel=3,
                )
                yield Probe(
                    purpose="operators", kind="conv2d", precisions=(precision,), channels=(width, 2 * width), size=size
                )
        for width in (16, 64):
            yield Probe(
                purpose="operators",
                kind="conv2d",
                precisions=(precision,),
                channels=(width, 2 * width),
                size=16,
                kernel=3,
                stride=2,
            )
        for width in (64, 512, 2048):
            yield Probe(purpose="operators", kind="linear", precisions=(precision,), channels=(width, width))
        for size, width in ((32, 16), (16, 64)):
            yield Probe(purpose="operators", kind="add", precisions=(precision,), channels=(width, width), size=size)
        for width in range(16, 81, 4):
            yield Probe(
                purpose="channels", kind="conv2d", precisions=(precision,), channels=(width, width), size=16, kernel=3
            )
    for size in (512, 1024):
        yield Probe(purpose="copy", kind="relu", precisions=("float32",), channels=(16, 16), size=size)
    for length in (1, 33):
        yield Probe(purpose="overhead", kind="add", precisions=("float32",) * length, channels=(1, 1))
    if "int8" in precisions and precisions[0] != "int8":
        one, two = precisions[0], "int8"
        for chain in ((one,) * 4, (two,) * 4, (one, two, one, two), (two, one, two, one), (one, one, two, two)):
            for size, width in ((32, 16), (8, 64)):
                yield Probe(
                    purpose="edges", kind="conv2d", precisions=chain, channels=(width, width), size=size, kernel=3
                )


class _Writer:
    """Writes the model of one probe."""

    def __init__(self, probe: Probe, placement: Placement) -> None:
        self.probe, self.placement = probe, placement
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []

    def model(self) -> bytes:
        from onnx import TensorProto, helper

        value = "input"
        for i, precision in enumerate(self.probe.precisions):
            if precision in EIGHT_BITS:
                value = self._pair(value, f"in{i}", precision)
            value = self._operator(value, i, precision)
            if precision in EIGHT_BITS and self.placement.outputs:
                value = self._pair(value, f"out{i}", precision)
        graph = helper.make_graph(
            self.nodes,
            "probe",
            [helper.make_tensor_value_info("input", TensorProto.FLOAT, self.probe.input_shape)],
            [helper.make_tensor_value_info(value, TensorProto.FLOAT, None)],
            self.constants,
        )
        opset = FLOAT8_OPSET if "float8" in self.probe.precisions else 18
        made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)
        beside = self.placement.float_type if set(EIGHT_BITS) & set(self.probe.precisions) else ""
        made = to_float16(made) if "float16" in (beside, *self.probe.precisions) else made
        return bytes(made.SerializeToString())

    def _node(self, op: str, inputs: list[str], output: str, **attributes: Any) -> str:
        from onnx import helper

        self.nodes.append(helper.make_node(op, inputs, [output], name=f"{output}_{op}", **attributes))
        return output

    def _constant(self, name: str, array: np.ndarray | np.generic) -> str:
        import numpy as np
        from onnx import numpy_helper

        self.constants.append(numpy_helper.from_array(np.asarray(array), name))
        return name

    def _pair(self, value: str, name: str, precision: str) -> str:
        import numpy as np

        if value.endswith("_dq"):
            return value
        shifted = precision == "int8" and not self.placement.symmetric
        zero = np.uint8(128) if shifted else np.zeros((), element_type(precision))
        grid = [self._constant(f"{name}_scale", np.float32(SCALE)), self._constant(f"{name}_zero", zero)]
        return self._node(
            "DequantizeLinear", [self._node("QuantizeLinear", [value, *grid], f"{name}_q"), *grid], f"{name}_dq"
        )

    def _operator(self, value: str, i: int, precision: str) -> str:
        probe = self.probe
        if probe.kind == "relu":
            return self._node("Relu", [value], f"y{i}")
        if probe.kind == "add":
            return self._node("Add", [value, value], f"y{i}")
        inside = probe.channels[0] if i == 0 else probe.channels[1]
        shape = (probe.channels[1], inside, *((probe.kernel,) * 2 if probe.kind == "conv2d" else ()))
        weight = self._weight(i, shape, precision)
        if probe.kind == "linear":
            return self._node("Gemm", [value, weight], f"y{i}", transB=1)
        stride, pad = probe.stride if i == 0 else 1, probe.kernel // 2
        return self._node(
            "Conv", [value, weight], f"y{i}", kernel_shape=[probe.kernel] * 2, strides=[stride] * 2, pads=[pad] * 4
        )

    def _weight(self, i: int, shape: tuple[int, ...], precision: str) -> str:
        import numpy as np

        values = np.random.default_rng(i).integers(-127, 128, shape)
        if precision not in EIGHT_BITS:
            return self._constant(f"w{i}", (values / 127 / np.prod(shape[1:]) ** 0.5).astype(np.float32))
        kind = element_type(precision)
        names = [
            self._constant(f"w{i}", values.astype(kind)),
            self._constant(f"w{i}_scale", np.full(shape[0], 1e-3, np.float32)),
            self._constant(f"w{i}_zero", np.zeros(shape[0], kind)),
        ]
        return self._node("DequantizeLinear", names, f"w{i}_dq", axis=0)
