"""What a network computes on a target that works in float16: the exported model's rounding, in float32 arithmetic.

Weights, constants and the result of every operation are rounded to float16; sums inside an operation are float32, as
tensor cores take them. What the export keeps in float32 (:mod:`autocomp.runtimes._float16`) is kept here.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, fx
from torch.nn import functional as F

from autocomp.core.compressed import ActivationQuantizer
from autocomp.graph import ops

LARGEST = 65504.0
SMALLEST_SCALE = 2.0**-24
"""A scale stays above zero, which no builder takes."""
MASK = 1e30
"""Constants beyond are masks ("minus infinity"), which float16's own limit serves as well."""

# Operations whose results leave float16's range on ordinary activations, what is computed from those in float32 as
# well, and what brings them back into range. The same lists in ONNX's words: runtimes/_float16.py.
_WIDE = frozenset(
    {"cumsum", "exp", "group_norm", "instance_norm", "linalg_vector_norm", "log", "norm", "pow", "prod", "square"}
    | {"std", "sum", "var"}
)
_FOLLOW = frozenset({"add", "div", "mean", "mul", "reciprocal", "rsqrt", "sqrt", "sub"})
_BACK = frozenset({"log", "reciprocal", "rsqrt", "sqrt", "std"})


def wide_nodes(nodes: Iterable[fx.Node], quantized: Collection[fx.Node] = ()) -> frozenset[fx.Node]:
    """Nodes, given in order of execution, whose results stay float32.

    Args:
        nodes: of a graph.
        quantized: those whose results are quantized: what reads them gets float16.
    """
    wide: set[fx.Node] = set()
    large: set[fx.Node] = set()  # results that may be out of float16's range
    for node in nodes:
        name = ops.op_name(node) if node.op == "call_function" else ""
        if name in _WIDE or (name in _FOLLOW and large.intersection(ops.inputs_of(node))):
            wide.add(node)
            if name not in _BACK and node not in quantized:
                large.add(node)
    return frozenset(wide)


def rounded(value: Any) -> Any:
    """``value`` rounded to float16, as float32; beyond its range infinite. Tensors of integers are left alone."""
    if isinstance(value, Tensor):
        return value.to(torch.float16).to(torch.float32) if value.is_floating_point() else value
    return tuple(rounded(v) for v in value) if isinstance(value, tuple | list) else value


def rounded_constants(tensors: Mapping[str, Any]) -> dict[str, Any]:
    """Weights and constants as a float16 model holds them."""

    def constant(tensor: Any) -> Any:
        if isinstance(tensor, Tensor) and tensor.is_floating_point():
            tensor = torch.where(tensor.abs() >= MASK, tensor.clamp(-LARGEST, LARGEST), tensor)
        return rounded(tensor)

    return {name: constant(tensor) for name, tensor in tensors.items()}


def rounded_scale(quantizer: ActivationQuantizer) -> ActivationQuantizer:
    """The quantizer with its scale as a float16 model holds it."""
    scale = float(rounded(torch.tensor(quantizer.scale)))
    return replace(quantizer, scale=max(scale, SMALLEST_SCALE))


# operations that the export writes as several, each of which rounds


def _linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Gemm for rows; for more axes MatMul, then Add."""
    if x.dim() == 2 or bias is None:
        return F.linear(x, weight, bias)
    return rounded(F.linear(x, weight)) + bias  # type: ignore[no-any-return]


def _gelu(x: Tensor, *, approximate: str = "none") -> Tensor:
    if approximate != "none":
        return F.gelu(x, approximate=approximate)
    error = rounded(torch.erf(rounded(x / rounded(torch.tensor(math.sqrt(2))))))
    return x * rounded(0.5 * rounded(1 + error))  # type: ignore[no-any-return]


def _attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    *,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """Scaled query times scaled key, softmax, times value."""
    if attn_mask is not None or is_causal or enable_gqa:
        return F.scaled_dot_product_attention(
            query, key, value, attn_mask, 0.0, is_causal, scale=scale, enable_gqa=enable_gqa
        )
    root = rounded(torch.tensor(math.sqrt(query.shape[-1] ** -0.5 if scale is None else scale)))
    scores = rounded(rounded(query * root) @ rounded(key * root).transpose(-2, -1))
    return rounded(scores.softmax(-1)) @ value  # type: ignore[no-any-return]


IN_STEPS: Mapping[str, Callable[..., Tensor]] = {
    "gelu": _gelu,
    "linear": _linear,
    "rsqrt": lambda x: 1 / rounded(x.sqrt()),
    "scaled_dot_product_attention": _attention,
}
"""Name of an operation → what computes it with the roundings inside; the last one is the caller's."""
