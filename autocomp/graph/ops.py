"""What the aten operations mean to compression: which are layers, activations, shape changes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import fx, nn

LAYER_OPS: dict[str, int] = {
    "conv1d": 1,
    "conv2d": 1,
    "conv3d": 1,
    "conv_transpose2d": 1,
    "linear": 1,
    "embedding": 0,
}
"""Operation → position of its weight argument. The bias is the argument behind the weight."""

KINDS: tuple[tuple[type[nn.Module], str], ...] = (
    (nn.Conv1d, "conv1d"),
    (nn.Conv2d, "conv2d"),
    (nn.Conv3d, "conv3d"),
    (nn.ConvTranspose2d, "conv_transpose2d"),
    (nn.Linear, "linear"),
    (nn.Embedding, "embedding"),
)

CLIPS = frozenset({"relu", "relu6", "hardtanh", "clamp", "clamp_min"})
"""Activation functions that a runtime fuses into the layer before them."""

MOVES = frozenset(
    {"view", "reshape", "flatten", "unflatten", "squeeze", "unsqueeze", "permute", "transpose", "t", "contiguous"}
    | {"dropout", "feature_dropout", "alias", "clone", "detach", "max_pool1d", "max_pool2d", "max_pool3d"}
    | {"zero_pad"}  # the zeros that it adds lie on every grid
    | {"slice", "select", "narrow", "expand", "expand_as", "channel_shuffle", "pixel_shuffle", "numpy_T"}
)
"""Operations whose results are elements of their input: on its grid if that is quantized."""

AVERAGES = frozenset(
    {"avg_pool1d", "avg_pool2d", "avg_pool3d", "adaptive_avg_pool1d", "adaptive_avg_pool2d", "adaptive_avg_pool3d"}
)
COMBINATIONS = frozenset({"add", "cat", "concat", "concatenate", "mul"}) | AVERAGES
"""Operations that runtimes also execute on integers when everything around them is quantized."""

_POSITIVE = frozenset({"relu", "relu6", "sigmoid", "softmax", "_softmax", "hardsigmoid", "abs", "exp", "softplus"})
_KEEPS_SIGN = frozenset(
    {"mean", "sum", "amax", "upsample_nearest2d", "upsample_bilinear2d", "getitem", "chunk", "split"}
)
_CHECKS = frozenset({"_assert_scalar", "_assert_async", "_assert_tensor_metadata", "sym_constrain_range_for_size"})


def op_name(node: fx.Node) -> str:
    """Name of a node's operation without overload or in-place mark ("conv2d", "add", "getitem")."""
    target = node.target
    if isinstance(target, torch._ops.OpOverload):
        return target._schema.name.split("::")[1]
    return getattr(target, "__name__", str(target))


def value_op(node: fx.Node) -> str:
    """:func:`op_name`, but "zero_pad" for padding with zeros, which alone keeps a value on its grid."""
    name = op_name(node)
    if name == "pad":
        zeros = argument(node, 2, "mode", "constant") == "constant" and argument(node, 3, "value") in (None, 0)
    else:
        zeros = name == "constant_pad_nd" and argument(node, 2, "value", 0) == 0
    return "zero_pad" if zeros else name


def is_check(node: fx.Node) -> bool:
    """Whether the node only asserts something about its inputs."""
    return node.op == "call_module" or (node.op == "call_function" and op_name(node) in _CHECKS)


def layer_kind(module: nn.Module) -> str | None:
    """Kind of layer that ``module`` is, None for anything else."""
    return next((kind for cls, kind in KINDS if isinstance(module, cls)), None)


def argument(node: fx.Node, position: int, name: str, default: Any = None) -> Any:
    """An argument given by position or by name."""
    return node.args[position] if len(node.args) > position else node.kwargs.get(name, default)


def weight_of(node: fx.Node) -> fx.Node | None:
    """The get_attr node that a layer operation takes its weight from, None where there is no such node."""
    if node.op != "call_function" or op_name(node) not in LAYER_OPS:
        return None
    weight = argument(node, LAYER_OPS[op_name(node)], "weight")
    return weight if isinstance(weight, fx.Node) and weight.op == "get_attr" else None


def data_of(node: fx.Node) -> fx.Node:
    """The node whose result a layer operation works on."""
    position, name = (1, "indices") if op_name(node) == "embedding" else (0, "input")
    found = argument(node, position, name)
    assert isinstance(found, fx.Node)
    return found


def walk_nodes(argument: Any) -> Iterator[fx.Node]:
    """The fx nodes inside an argument, in order, as often as they occur."""
    if isinstance(argument, fx.Node):
        yield argument
    elif isinstance(argument, list | tuple):
        for item in argument:
            yield from walk_nodes(item)
    elif isinstance(argument, dict):
        for item in argument.values():
            yield from walk_nodes(item)
    elif isinstance(argument, slice):
        yield from walk_nodes((argument.start, argument.stop, argument.step))


def inputs_of(node: fx.Node) -> list[fx.Node]:
    """The nodes that ``node`` reads, in order, as often as it does."""
    return list(walk_nodes((node.args, dict(node.kwargs))))


def is_nonnegative(node: fx.Node, known: dict[fx.Node, bool]) -> bool:
    """Whether the result is ≥ 0 whatever the input, given what is known of the nodes it reads."""
    op = op_name(node)
    if op in _POSITIVE:
        return True
    if op in ("hardtanh", "clamp", "clamp_min"):
        low = argument(node, 1, "min_val" if op == "hardtanh" else "min", -1.0 if op == "hardtanh" else None)
        return isinstance(low, int | float) and low >= 0
    if op in ("add", "mul", "cat", "concat", "concatenate"):
        alpha = node.kwargs.get("alpha", 1)
        numbers = [a for a in node.args if isinstance(a, int | float)]
        reads = inputs_of(node)
        return (
            isinstance(alpha, int | float)
            and alpha >= 0
            and all(n >= 0 for n in numbers)
            and all(known.get(n, False) for n in reads)
        )
    if op in MOVES or op in AVERAGES or op in _KEEPS_SIGN or op.startswith("adaptive_max_pool"):
        reads = inputs_of(node)
        return bool(reads) and known.get(reads[0], False)
    return False
