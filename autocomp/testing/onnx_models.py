"""Tiny ONNX models with weights that are known, and the same in torch: what runtimes are tested on."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from torch.nn import functional as F

INPUT_SCALE, HIDDEN_SCALE, POOL_SCALE, OUTPUT_SCALE = 6 / 255, 4 / 255, 2 / 255, 8 / 255


@dataclass(frozen=True, kw_only=True)
class TinyNetwork:
    """Two 3x3 convolutions with ReLU, global average pooling and a linear layer.

    Attributes:
        channels: of both convolutions.
        classes: outputs.
        size: input is [n, 3, size, size].
        int8: names of the layers ("conv1", "conv2", "fc") that carry int8 weights between Q/DQ pairs.
        symmetric: activations are int8 with zero point 0, else uint8 with a free one.
        seed: of weights and inputs.
    """

    channels: int = 16
    classes: int = 5
    size: int = 8
    int8: frozenset[str] = field(default_factory=frozenset)
    symmetric: bool = False
    seed: int = 0

    @property
    def weights(self) -> dict[str, np.ndarray]:
        """Name → float32 array; the weight of an int8 layer lies on its per-channel grid."""
        rng = np.random.default_rng(self.seed)
        c = self.channels
        out: dict[str, np.ndarray] = {}
        for name, shape in (("conv1", (c, 3, 3, 3)), ("conv2", (c, c, 3, 3)), ("fc", (self.classes, c))):
            fan_in = int(np.prod(shape[1:]))
            weight = (rng.standard_normal(shape) * np.sqrt(2 / fan_in)).astype(np.float32)
            if name in self.int8:
                integers, scale = quantize_per_channel(weight)
                weight = integers.astype(np.float32) * scale.reshape(-1, *[1] * (weight.ndim - 1))
            out[f"{name}.weight"] = weight
            out[f"{name}.bias"] = (0.1 * rng.standard_normal(shape[0])).astype(np.float32)
        return out

    @property
    def layers(self) -> list[str]:
        """Names of the layers' weights."""
        return [name for name in self.weights if name.endswith(".weight")]

    def inputs(self, batch_size: int = 1) -> np.ndarray:
        """[batch_size, 3, size, size] float32, standard normal clipped to ±3."""
        rng = np.random.default_rng(self.seed + 1)
        return rng.standard_normal((batch_size, 3, self.size, self.size)).clip(-3, 3).astype(np.float32)

    def torch_outputs(self, inputs: np.ndarray) -> np.ndarray:
        """The plain reference [n, classes]: float arithmetic on the same grids."""
        w = {k: torch.from_numpy(v) for k, v in self.weights.items()}
        x = self._grid(torch.from_numpy(inputs), INPUT_SCALE, 128, "conv1")
        x = F.relu(F.conv2d(x, w["conv1.weight"], w["conv1.bias"], padding=1))
        x = self._grid(x, HIDDEN_SCALE, 0, "conv1", "conv2")
        x = F.relu(F.conv2d(x, w["conv2.weight"], w["conv2.bias"], padding=1))
        x = self._grid(x, HIDDEN_SCALE, 0, "conv2")
        x = self._grid(x.mean(dim=(2, 3)), POOL_SCALE, 0, "fc")
        x = self._grid(F.linear(x, w["fc.weight"], w["fc.bias"]), OUTPUT_SCALE, 128, "fc")
        return np.asarray(x.numpy())

    def _grid(self, x: torch.Tensor, scale: float, zero_point: int, *layers: str) -> torch.Tensor:
        """``x`` on an 8-bit grid where one of ``layers`` is int8, else unchanged."""
        if self.int8.isdisjoint(layers):
            return x
        scale, zero_point, low, high = self.quantizer(scale, zero_point)
        step = torch.tensor(scale, dtype=torch.float32)
        return (torch.clamp(torch.round(x / step) + zero_point, low, high) - zero_point) * step

    def quantizer(self, scale: float, zero_point: int) -> tuple[float, int, int, int]:
        """(scale, zero point, low, high) of a uint8 grid, or of the int8 grid with zero point 0 over its range."""
        if not self.symmetric:
            return scale, zero_point, 0, 255
        return (scale if zero_point else scale * 255 / 127), 0, -128, 127

    def onnx_bytes(self) -> bytes:
        """The serialised model, opset 17, batch size free."""
        return bytes(_Writer(self).model().SerializeToString())


def quantize_per_channel(weight: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Symmetric int8 grid: (integers like ``weight``, scale [out channels] float32)."""
    scale = (np.abs(weight).reshape(len(weight), -1).max(axis=1) / 127).astype(np.float32)
    integers = np.rint(weight / scale.reshape(-1, *[1] * (weight.ndim - 1)))
    return np.clip(integers, -127, 127).astype(np.int8), scale


def single_layer(
    op: str, rank: int, *, int8: bool = True, input_grid: bool = True, output_grid: bool = True, **attributes: Any
) -> bytes:
    """One layer with 4 inputs and 6 outputs, int8 weights and Q/DQ pairs as asked; input [1, 4, 8, ...]."""
    rng = np.random.default_rng(0)
    axis = 1 if op in ("ConvTranspose", "MatMul") else 0
    kernel = (3,) * (rank - 2)
    shape = (4, 6, *kernel) if axis == 1 else (6, 4, *kernel)
    constants: dict[str, Any] = {
        "s": np.float32(6 / 255),
        "z": np.uint8(128),
        "b": rng.standard_normal(6).astype(np.float32),
    }
    nodes: list[onnx.NodeProto] = []
    x, w = "input", "w"
    if input_grid:
        nodes += [
            helper.make_node("QuantizeLinear", [x, "s", "z"], ["xq"]),
            helper.make_node("DequantizeLinear", ["xq", "s", "z"], ["xd"]),
        ]
        x = "xd"
    if int8:
        constants |= {
            "w": rng.integers(-127, 128, shape).astype(np.int8),
            "ws": np.full(6, 0.01, np.float32),
            "wz": np.zeros(6, np.int8),
        }
        nodes.append(helper.make_node("DequantizeLinear", ["w", "ws", "wz"], ["wd"], axis=axis))
        w = "wd"
    else:
        constants["w"] = rng.standard_normal(shape).astype(np.float32)
    inputs = [x, w] if op == "MatMul" else [x, w, "b"]
    nodes.append(helper.make_node(op, inputs, ["y"], name="/layer", **attributes))
    out = "y"
    if output_grid:
        constants |= {"os": np.float32(0.1), "oz": np.uint8(128)}
        nodes += [
            helper.make_node("QuantizeLinear", ["y", "os", "oz"], ["yq"]),
            helper.make_node("DequantizeLinear", ["yq", "os", "oz"], ["yd"]),
        ]
        out = "yd"
    graph = helper.make_graph(
        nodes,
        "layer",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, [1, 4, *(8,) * (rank - 2)])],
        [helper.make_tensor_value_info(out, TensorProto.FLOAT, None)],
        [numpy_helper.from_array(np.asarray(v), k) for k, v in constants.items() if k != "b" or op != "MatMul"],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    return bytes(model.SerializeToString())


class _Writer:
    """Builds the graph of one :class:`TinyNetwork`."""

    def __init__(self, network: TinyNetwork) -> None:
        self.network = network
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: list[onnx.TensorProto] = []

    def constant(self, name: str, value: np.ndarray | np.generic) -> str:
        self.initializers.append(numpy_helper.from_array(np.asarray(value), name))
        return name

    def node(self, op: str, inputs: list[str], output: str, **attributes: Any) -> str:
        self.nodes.append(helper.make_node(op, inputs, [output], name=f"/{output}/{op}", **attributes))
        return output

    def grid(self, value: str, scale: float, zero_point: int, *layers: str) -> str:
        """``value`` behind a Q/DQ pair where one of ``layers`` is int8."""
        if self.network.int8.isdisjoint(layers):
            return value
        scale, zero_point, low, _ = self.network.quantizer(scale, zero_point)
        names = [
            self.constant(f"{value}_scale", np.float32(scale)),
            self.constant(f"{value}_zero", (np.int8 if low else np.uint8)(zero_point)),
        ]
        quantized = self.node("QuantizeLinear", [value, *names], f"{value}_q")
        return self.node("DequantizeLinear", [quantized, *names], f"{value}_dq")

    def parameters(self, layer: str) -> list[str]:
        weight, name = self.network.weights[f"{layer}.weight"], f"{layer}.weight"
        bias = self.constant(f"{layer}.bias", self.network.weights[f"{layer}.bias"])
        if layer not in self.network.int8:
            return [self.constant(name, weight), bias]
        integers, scale = quantize_per_channel(weight)
        inputs = [
            self.constant(name, integers),
            self.constant(f"{name}_scale", scale),
            self.constant(f"{name}_zero", np.zeros(len(scale), np.int8)),
        ]
        return [self.node("DequantizeLinear", inputs, f"{name}_dq", axis=0), bias]

    def convolution(self, value: str, layer: str) -> str:
        inputs = [value, *self.parameters(layer)]
        out = self.node("Conv", inputs, f"{layer}_out", kernel_shape=[3, 3], pads=[1, 1, 1, 1])
        return self.node("Relu", [out], f"{layer}_relu")

    def model(self) -> onnx.ModelProto:
        net = self.network
        x = self.grid("input", INPUT_SCALE, 128, "conv1")
        x = self.grid(self.convolution(x, "conv1"), HIDDEN_SCALE, 0, "conv1", "conv2")
        x = self.grid(self.convolution(x, "conv2"), HIDDEN_SCALE, 0, "conv2")
        x = self.node("GlobalAveragePool", [x], "pool")
        x = self.node("Flatten", [x], "features")
        x = self.grid(x, POOL_SCALE, 0, "fc")
        x = self.node("Gemm", [x, *self.parameters("fc")], "fc_out", transB=1)
        x = self.grid(x, OUTPUT_SCALE, 128, "fc")
        shape_in: list[str | int | None] = ["n", 3, net.size, net.size]
        shape_out: list[str | int | None] = ["n", net.classes]
        graph = helper.make_graph(
            self.nodes,
            "tiny",
            [helper.make_tensor_value_info("input", TensorProto.FLOAT, shape_in)],
            [helper.make_tensor_value_info(x, TensorProto.FLOAT, shape_out)],
            self.initializers,
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
        onnx.checker.check_model(model, full_check=True)
        return model
