"""ONNX operators in torch: name → function of the inputs (None where left out) and the attributes.

Source: ONNX operator specification, opsets 17 to 23.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from onnx import helper
from torch import Tensor
from torch.nn import functional as F

from autocomp.runtimes._torch_layers import (
    average_pool,
    batch_norm,
    convolution,
    dequantize,
    gemm,
    integers,
    layer_norm,
    lstm,
    max_pool,
    quantize,
    resize,
    torch_pads,
    transposed_convolution,
)


def reshape(x: Tensor, shape: Tensor, *, allowzero: int = 0) -> Tensor:
    """Reshape; 0 keeps a dimension."""
    sizes = integers(shape)
    return x.reshape([x.shape[i] if n == 0 and not allowzero else n for i, n in enumerate(sizes)])


def slice_(x: Tensor, starts: Tensor, ends: Tensor, axes: Tensor | None = None, steps: Tensor | None = None) -> Tensor:
    """Slice, steps above 0."""
    at = range(len(starts)) if axes is None else integers(axes)
    by = [1] * len(starts) if steps is None else integers(steps)
    index = [slice(None)] * x.dim()
    for axis, start, end, step in zip(at, integers(starts), integers(ends), by, strict=True):
        if step < 1:
            raise ValueError(f"a slice with step {step} is not covered")
        index[axis] = slice(*slice(start, end, step).indices(x.shape[axis]))
    return x[tuple(index)]


def gather(x: Tensor, indices: Tensor, *, axis: int = 0) -> Tensor:
    """Gather: rows along an axis; an index below 0 counts from the end."""
    at = indices.to(x.device)
    at = torch.where(at < 0, at + x.shape[axis], at)
    picked = x.index_select(axis, at.reshape(-1))
    axis %= x.dim()
    return picked.reshape(*x.shape[:axis], *indices.shape, *x.shape[axis + 1 :])


def gather_nd(x: Tensor, indices: Tensor, *, batch_dims: int = 0) -> Tensor:
    """GatherND without batch dimensions."""
    if batch_dims:
        raise ValueError(f"batch_dims {batch_dims} is not covered")
    return x[tuple(indices.to(x.device).unbind(-1))]


def split(
    x: Tensor, sizes: Tensor | None = None, *, axis: int = 0, num_outputs: int = 0, outputs: int = 1
) -> tuple[Tensor, ...]:
    """Split by sizes, or into equal parts, the last one smaller."""
    if sizes is not None:
        return tuple(torch.split_with_sizes(x, integers(sizes), axis))
    return x.chunk(num_outputs or outputs, axis)


def expand(x: Tensor, shape: Tensor) -> Tensor:
    """Expand: both sides broadcast."""
    rank = max(x.dim(), shape.numel())
    own, asked = ([1] * (rank - len(sizes)) + sizes for sizes in (list(x.shape), integers(shape)))
    return x.expand([a if n == 1 else n for a, n in zip(own, asked, strict=True)])


def pad(
    x: Tensor, pads: Tensor, value: Tensor | None = None, axes: Tensor | None = None, *, mode: str = "constant"
) -> Tensor:
    """Pad with a constant, all axes."""
    if mode != "constant" or axes is not None:
        raise ValueError(f"mode {mode} or some axes only is not covered")
    return F.pad(x, torch_pads(integers(pads)), value=0.0 if value is None else float(value))


def reduction(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """ReduceMean and its like: axes as input (opset 18) or attribute."""

    def reduce(
        x: Tensor, axes: Tensor | list[int] | None = None, *, keepdims: int = 1, noop_with_empty_axes: int = 0
    ) -> Tensor:
        over = integers(axes) if isinstance(axes, Tensor) else axes
        if not over and noop_with_empty_axes:
            return x
        return function(x, dim=tuple(over or range(x.dim())), keepdim=bool(keepdims))

    return reduce


def clip(x: Tensor, low: Tensor | None = None, high: Tensor | None = None) -> Tensor:
    """Clip; a bound may be left out."""
    return x if low is None and high is None else torch.clamp(x, low, high)


def div(a: Tensor, b: Tensor) -> Tensor:
    """Div: integers are truncated."""
    return a / b if a.is_floating_point() else torch.div(a, b, rounding_mode="trunc")


def unsqueeze(x: Tensor, axes: Tensor) -> Tensor:
    """Unsqueeze: axes of the result."""
    rank = x.dim() + axes.numel()
    for axis in sorted(a % rank for a in integers(axes)):
        x = x.unsqueeze(axis)
    return x


def cast(x: Tensor, *, to: int, saturate: int = 1) -> Tensor:
    """Cast."""
    return x.to(getattr(torch, helper.tensor_dtype_to_np_dtype(to).name))


def shape_of(x: Tensor, *, start: int = 0, end: int | None = None) -> Tensor:
    """Shape, in the CPU's memory."""
    return torch.tensor(list(x.shape)[start:end], dtype=torch.int64)


def constant(**value: Any) -> Tensor:
    """Constant: a tensor, numbers or a number."""
    (found,) = value.values()
    return found if isinstance(found, Tensor) else torch.tensor(found)


OPERATORS: dict[str, Callable[..., Any]] = {
    "Abs": torch.abs,
    "Add": torch.add,
    "And": torch.logical_and,
    "AveragePool": average_pool,
    "BatchNormalization": batch_norm,
    "Cast": cast,
    "Clip": clip,
    "Concat": lambda *parts, axis: torch.cat(parts, axis),
    "Constant": constant,
    "Conv": convolution,
    "ConvTranspose": transposed_convolution,
    "DequantizeLinear": dequantize,
    "Div": div,
    "Elu": lambda x, alpha=1.0: F.elu(x, alpha),
    "Equal": torch.eq,
    "Erf": torch.erf,
    "Exp": torch.exp,
    "Expand": expand,
    "Flatten": lambda x, axis=1: x.reshape(x.shape[:axis].numel(), -1),
    "Gather": gather,
    "GatherND": gather_nd,
    "Gelu": lambda x, approximate="none": F.gelu(x, approximate=approximate),
    "Gemm": gemm,
    "GlobalAveragePool": lambda x: x.mean(tuple(range(2, x.dim())), keepdim=True),
    "Greater": torch.gt,
    "HardSigmoid": lambda x, alpha=0.2, beta=0.5: torch.clamp(alpha * x + beta, 0, 1),
    "HardSwish": F.hardswish,
    "Identity": lambda x: x,
    "LSTM": lstm,
    "LayerNormalization": layer_norm,
    "LeakyRelu": lambda x, alpha=0.01: F.leaky_relu(x, alpha),
    "Less": torch.lt,
    "Log": torch.log,
    "LogSoftmax": lambda x, axis=-1: F.log_softmax(x, axis),
    "MatMul": torch.matmul,
    "Max": lambda *parts: functools.reduce(torch.maximum, parts),
    "MaxPool": max_pool,
    "Min": lambda *parts: functools.reduce(torch.minimum, parts),
    "Mul": torch.mul,
    "Neg": torch.neg,
    "Not": torch.logical_not,
    "PRelu": lambda x, slope: torch.where(x < 0, x * slope, x),
    "Pad": pad,
    "Pow": torch.pow,
    "QuantizeLinear": quantize,
    "Range": lambda start, limit, delta: torch.arange(int(start), int(limit), int(delta), dtype=start.dtype),
    "Reciprocal": torch.reciprocal,
    "ReduceMax": reduction(torch.amax),
    "ReduceMean": reduction(torch.mean),
    "ReduceMin": reduction(torch.amin),
    "ReduceSum": reduction(torch.sum),
    "Relu": torch.relu,
    "Reshape": reshape,
    "Resize": resize,
    "Shape": shape_of,
    "Sigmoid": torch.sigmoid,
    "Slice": slice_,
    "Softmax": lambda x, axis=-1: torch.softmax(x, axis),
    "Softplus": F.softplus,
    "Split": split,
    "Sqrt": torch.sqrt,
    "Squeeze": lambda x, axes=None: x.squeeze() if axes is None else x.squeeze(tuple(integers(axes))),
    "Sub": torch.sub,
    "Tanh": torch.tanh,
    "Tile": lambda x, repeats: x.tile(integers(repeats)),
    "Transpose": lambda x, perm=None: x.permute(perm or list(reversed(range(x.dim())))),
    "Unsqueeze": unsqueeze,
    "Where": torch.where,
}
