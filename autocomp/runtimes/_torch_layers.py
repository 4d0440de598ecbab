"""ONNX operators that layers are made of, in torch: grids, products, pooling, normalisation.

Source: ONNX operator specification, opsets 17 to 23. Variants that autocomp's exporter does not write are refused by
a ValueError; so is an attribute that a function does not know, by a TypeError.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

_RANGES = {torch.uint8: (0, 255), torch.int8: (-128, 127)}


def quantize(x: Tensor, scale: Tensor, zero: Tensor | None = None, axis: int = 1) -> Tensor:
    """QuantizeLinear to uint8 or int8; ties go to the even number."""
    dtype = torch.uint8 if zero is None else zero.dtype
    low, high = _RANGES[dtype]
    steps = torch.round(x.float() / _along(scale, x, axis).float())
    shifted = steps if zero is None else steps + _along(zero, x, axis).float()
    return shifted.clamp(low, high).to(dtype)


def dequantize(q: Tensor, scale: Tensor, zero: Tensor | None = None, axis: int = 1) -> Tensor:
    """DequantizeLinear to the scale's type."""
    shifted = q.float() if zero is None else q.float() - _along(zero, q, axis).float()
    return (shifted * _along(scale, q, axis).float()).to(scale.dtype)


def _along(parameter: Tensor, x: Tensor, axis: int) -> Tensor:
    """A scalar, or a vector along ``axis`` of ``x``."""
    if parameter.dim() == 0 or parameter.numel() == 1:
        return parameter.reshape(())
    shape = [1] * x.dim()
    shape[axis] = -1
    return parameter.reshape(shape)


def convolution(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    strides: list[int] | None = None,
    pads: list[int] | None = None,
    dilations: list[int] | None = None,
    group: int = 1,
    kernel_shape: list[int] | None = None,
    auto_pad: str = "NOTSET",
) -> Tensor:
    """Conv of rank 1 to 3."""
    rank = x.dim() - 2
    x, padding = _padded(x, pads, auto_pad, 0.0)
    function: Callable[..., Tensor] = (F.conv1d, F.conv2d, F.conv3d)[rank - 1]
    return function(x, weight, bias, strides or 1, padding, dilations or 1, group)


def transposed_convolution(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    strides: list[int] | None = None,
    pads: list[int] | None = None,
    dilations: list[int] | None = None,
    group: int = 1,
    output_padding: list[int] | None = None,
    kernel_shape: list[int] | None = None,
    auto_pad: str = "NOTSET",
) -> Tensor:
    """ConvTranspose of rank 1 to 3."""
    rank = x.dim() - 2
    pads = pads or [0] * 2 * rank
    if auto_pad != "NOTSET" or pads[:rank] != pads[rank:]:
        raise ValueError(f"padding {pads}, auto_pad {auto_pad} is not covered")
    function: Callable[..., Tensor] = (F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)[rank - 1]
    return function(x, weight, bias, strides or 1, pads[:rank], output_padding or 0, group, dilations or 1)


def _padded(x: Tensor, pads: list[int] | None, auto_pad: str, fill: float) -> tuple[Tensor, list[int]]:
    """``x`` and the symmetric padding that is left to do; one that is not symmetric is done here."""
    rank = x.dim() - 2
    if auto_pad not in ("NOTSET", "VALID"):
        raise ValueError(f"auto_pad {auto_pad} is not covered")
    pads = pads or [0] * 2 * rank
    if pads[:rank] == pads[rank:]:
        return x, pads[:rank]
    return F.pad(x, torch_pads(pads), value=fill), [0] * rank


def torch_pads(pads: list[int]) -> list[int]:
    """[begins..., ends...] → torch's order, last axis first."""
    half = len(pads) // 2
    return [n for i in reversed(range(half)) for n in (pads[i], pads[half + i])]


def max_pool(
    x: Tensor,
    *,
    kernel_shape: list[int],
    strides: list[int] | None = None,
    pads: list[int] | None = None,
    dilations: list[int] | None = None,
    ceil_mode: int = 0,
    auto_pad: str = "NOTSET",
    storage_order: int = 0,
) -> Tensor:
    """MaxPool, values only."""
    rank = x.dim() - 2
    x, padding = _padded(x, pads, auto_pad, -torch.inf)
    function: Callable[..., Tensor] = (F.max_pool1d, F.max_pool2d, F.max_pool3d)[rank - 1]
    return function(x, kernel_shape, strides or 1, padding, dilations or 1, bool(ceil_mode))


def average_pool(
    x: Tensor,
    *,
    kernel_shape: list[int],
    strides: list[int] | None = None,
    pads: list[int] | None = None,
    ceil_mode: int = 0,
    count_include_pad: int = 0,
    auto_pad: str = "NOTSET",
) -> Tensor:
    """AveragePool."""
    rank = x.dim() - 2
    pads = pads or [0] * 2 * rank
    if auto_pad not in ("NOTSET", "VALID") or pads[:rank] != pads[rank:]:
        raise ValueError(f"padding {pads}, auto_pad {auto_pad} is not covered")
    function: Callable[..., Tensor] = (F.avg_pool1d, F.avg_pool2d, F.avg_pool3d)[rank - 1]
    return function(x, kernel_shape, strides or [1] * rank, pads[:rank], bool(ceil_mode), bool(count_include_pad))


def resize(
    x: Tensor,
    roi: Tensor | None = None,
    scales: Tensor | None = None,
    sizes: Tensor | None = None,
    *,
    mode: str = "nearest",
    coordinate_transformation_mode: str = "half_pixel",
    nearest_mode: str = "round_prefer_floor",
    **unused: Any,
) -> Tensor:
    """Resize as ``F.interpolate`` is exported."""
    if sizes is not None and sizes.numel():
        size = integers(sizes)[2:]
    else:
        assert scales is not None
        size = [int(n * s) for n, s in zip(x.shape[2:], scales.tolist()[2:], strict=True)]
    if mode == "nearest" and (coordinate_transformation_mode, nearest_mode) == ("asymmetric", "floor"):
        return F.interpolate(x, size=size, mode="nearest")
    if mode == "linear" and coordinate_transformation_mode in ("half_pixel", "pytorch_half_pixel", "align_corners"):
        linear = ("linear", "bilinear", "trilinear")[x.dim() - 3]
        return F.interpolate(x, size=size, mode=linear, align_corners=coordinate_transformation_mode == "align_corners")
    raise ValueError(f"mode {mode}, {coordinate_transformation_mode}, {nearest_mode} is not covered")


def gemm(
    a: Tensor,
    b: Tensor,
    c: Tensor | None = None,
    *,
    transA: int = 0,
    transB: int = 0,
    alpha: float = 1.0,
    beta: float = 1.0,
) -> Tensor:
    """Gemm; the linear layer's form goes the linear layer's way."""
    if not transA and transB and alpha == beta == 1.0 and (c is None or c.dim() == 1):
        return F.linear(a, b, c)
    product = alpha * ((a.T if transA else a) @ (b.T if transB else b))
    return product if c is None else product + beta * c


def batch_norm(
    x: Tensor, weight: Tensor, bias: Tensor, mean: Tensor, var: Tensor, *, epsilon: float = 1e-5, **unused: Any
) -> Tensor:
    """BatchNormalization in inference."""
    return F.batch_norm(x, mean, var, weight, bias, training=False, eps=epsilon)


def layer_norm(
    x: Tensor, scale: Tensor, bias: Tensor | None = None, *, axis: int = -1, epsilon: float = 1e-5, stash_type: int = 1
) -> Tensor:
    """LayerNormalization, first output."""
    return F.layer_norm(x, x.shape[axis:], scale, bias, epsilon)


def lstm(
    x: Tensor,
    w: Tensor,
    r: Tensor,
    b: Tensor | None = None,
    lengths: Tensor | None = None,
    h: Tensor | None = None,
    c: Tensor | None = None,
    *,
    hidden_size: int,
    direction: str = "forward",
    layout: int = 0,
    input_forget: int = 0,
    outputs: int = 1,
) -> tuple[Tensor, Tensor, Tensor]:
    """LSTM with the default activations; x: [steps, n, in] → Y [steps, directions, n, hidden], its last h and c."""
    if direction == "reverse" or layout or input_forget or lengths is not None:
        raise ValueError(f"direction {direction}, layout {layout}, coupled gates or lengths are not covered")
    ways = w.shape[0]
    order = [i + g * hidden_size for g in (0, 2, 3, 1) for i in range(hidden_size)]  # i o f c → torch's i f c o
    parameters = []
    for way in range(ways):
        parameters += [w[way][order], r[way][order]]
        if b is not None:
            parameters += [half[order] for half in b[way].chunk(2)]
    start = x.new_zeros(ways, x.shape[1], hidden_size)
    states = [start if s is None else s for s in (h, c)]
    y, last_h, last_c = torch.lstm(x, states, parameters, b is not None, 1, 0.0, False, ways == 2, False)
    return y.reshape(*y.shape[:2], ways, hidden_size).transpose(1, 2), last_h, last_c


def integers(x: Tensor) -> list[int]:
    """A tensor's elements as Python numbers."""
    return [int(n) for n in x.reshape(-1).tolist()]
