"""Folding of BatchNorm into the convolution or linear layer before it.

In eval mode y = gamma · (conv(x) − mean) / sqrt(var + eps) + beta is one affine map a channel, so it
becomes part of the layer's weight and bias (Jacob et al. 2018, "Quantization and Training of Neural
Networks for Efficient Integer-Arithmetic-Only Inference", section 3.2). Computed in float64.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _BatchNorm

from autocomp.core.network import Fold
from autocomp.errors import DataError
from autocomp.graph import ops

FOLDABLE = ("conv1d", "conv2d", "conv3d", "conv_transpose2d", "linear")


def get_module(root: nn.Module, path: str) -> nn.Module:
    """The submodule at ``path``; DataError where there is none."""
    try:
        return root.get_submodule(path)
    except AttributeError:
        raise DataError(f"the model has no module {path!r}; give the architecture that the weights belong to") from None


def affine(norm: _BatchNorm) -> tuple[Tensor, Tensor]:
    """Factor and offset [channels] (float64) that ``norm`` applies in eval mode."""
    mean, var = norm.running_mean, norm.running_var
    assert mean is not None
    assert var is not None
    factor = 1.0 / torch.sqrt(var.double() + norm.eps)
    if norm.weight is not None:
        factor = factor * norm.weight.double()
    offset = -mean.double() * factor
    if norm.bias is not None:
        offset = offset + norm.bias.double()
    return factor, offset


def scale_channels(layer: nn.Module, factor: Tensor) -> Tensor:
    """The layer's weight with output channel i multiplied by ``factor[i]`` (float64 inside, float32 out)."""
    weight = layer.weight
    assert isinstance(weight, Tensor)
    wide = weight.detach().double()
    if isinstance(layer, nn.ConvTranspose2d):
        # [in, out / groups, kh, kw]: the inputs of group g make its own out / groups channels
        grouped = wide.reshape(layer.groups, -1, *wide.shape[1:])
        scaled = grouped * factor.reshape(layer.groups, 1, -1, *[1] * (wide.dim() - 2))
        return scaled.reshape(wide.shape).float()
    return (wide * factor.reshape(-1, *[1] * (wide.dim() - 1))).float()


def fold_module(root: nn.Module, layer_path: str, norm_path: str) -> Fold:
    """Fold one norm in place: the layer gets new weights and a bias, an Identity takes the norm's place.

    Raises:
        DataError: the modules are missing or do not fit each other.
    """
    layer, norm = get_module(root, layer_path), get_module(root, norm_path)
    if ops.layer_kind(layer) not in FOLDABLE or not isinstance(norm, _BatchNorm) or norm.running_var is None:
        raise DataError(
            f"cannot fold {norm_path!r} ({type(norm).__name__}) into {layer_path!r} ({type(layer).__name__}); "
            "give the architecture that the weights belong to"
        )
    channels = int(getattr(layer, "out_features" if isinstance(layer, nn.Linear) else "out_channels"))
    if norm.num_features != channels:
        raise DataError(f"{norm_path!r} has {norm.num_features} channels but {layer_path!r} has {channels}")
    factor, offset = affine(norm)
    old_bias = layer.bias.detach().double() if isinstance(layer.bias, Tensor) else torch.zeros_like(offset)
    layer.weight = nn.Parameter(scale_channels(layer, factor), requires_grad=False)
    layer.bias = nn.Parameter((old_bias * factor + offset).float(), requires_grad=False)
    parent, _, name = norm_path.rpartition(".")
    setattr(root.get_submodule(parent), name, nn.Identity())
    zeros, ones = torch.zeros(channels), torch.ones(channels)
    return Fold(
        layer=layer_path,
        norm=norm_path,
        mean=norm.bias.detach().clone() if norm.bias is not None else zeros,
        std=norm.weight.detach().abs().clone() if norm.weight is not None else ones,
    )


def fold_all(root: nn.Module, pairs: Iterable[tuple[str, str]]) -> dict[str, Fold]:
    """Fold (layer, norm) pairs in place; by layer."""
    return {layer: fold_module(root, layer, norm) for layer, norm in pairs}


def norms(module: nn.Module) -> dict[str, _BatchNorm]:
    """BatchNorms by path, as often as they are registered."""
    return {n: m for n, m in module.named_modules(remove_duplicate=False) if isinstance(m, _BatchNorm)}


def foldable(module: nn.Module, graph: fx.Graph) -> tuple[dict[str, fx.Node], dict[str, str]]:
    """Which norms can be folded.

    Returns:
        (norm path → its batch_norm node, whose first argument is the layer's node), and
        (norm path → why not) for the others.
    """
    nodes = [n for n in graph.nodes if n.op == "call_function" and ops.op_name(n) == "batch_norm"]
    found: dict[str, fx.Node] = {}
    reasons: dict[str, str] = {}
    for path, norm in norms(module).items():
        calls = [n for n in nodes if n.meta["path"] == path]
        reason = _obstacle(module, graph, norm, calls)
        if reason:
            reasons[path] = reason
        else:
            found[path] = calls[0]
    return found, reasons


def _obstacle(module: nn.Module, graph: fx.Graph, norm: _BatchNorm, calls: list[fx.Node]) -> str:
    """Why a norm stays, "" where it can be folded."""
    if norm.running_mean is None or norm.running_var is None:
        return "it has no running statistics"
    if len(calls) != 1:
        return "it runs more than once" if calls else "it does not run on the example input"
    call = calls[0]
    if ops.argument(call, 5, "training"):
        return "it runs on batch statistics"
    if sum(n is norm for n in norms(module).values()) > 1 or not all(
        len(a.users) == 1 for a in ops.inputs_of(call)[1:] if a.op == "get_attr"
    ):
        return "it is shared"
    layer = call.args[0]
    if not isinstance(layer, fx.Node) or ops.weight_of(layer) is None or ops.op_name(layer) not in FOLDABLE:
        return "no convolution or linear layer is directly before it"
    return _layer_obstacle(module, layer)


def _layer_obstacle(module: nn.Module, node: fx.Node) -> str:
    path = node.meta["path"]
    weight = ops.weight_of(node)
    assert weight is not None
    try:
        layer = module.get_submodule(path)
    except AttributeError:
        return "the layer before it is no module"
    if ops.layer_kind(layer) != ops.op_name(node) or weight.target != f"{path}.weight":
        return "the layer before it does not run in its own module"
    if len(node.users) != 1:
        return "the layer before it has other readers"
    bias = ops.argument(node, ops.LAYER_OPS[ops.op_name(node)] + 1, "bias")
    shared = len(weight.users) != 1 or (isinstance(bias, fx.Node) and len(bias.users) != 1)
    holders = sum(p is layer._parameters.get("weight") for _, p in module.named_parameters(remove_duplicate=False))
    if shared or holders != 1:
        return "the layer before it is shared or runs more than once"
    if (bias is None) != (layer._parameters.get("bias") is None):
        return "the layer before it does not use its own bias"
    return ""


def remove_norms(graph: fx.Graph, nodes: dict[str, fx.Node]) -> Iterator[str]:
    """Take folded norms out of a captured graph; yields the state-dict keys of the biases now read."""
    for norm in nodes.values():
        layer = norm.args[0]
        assert isinstance(layer, fx.Node)
        position = ops.LAYER_OPS[ops.op_name(layer)] + 1
        key = f"{layer.meta['path']}.bias"
        if ops.argument(layer, position, "bias") is None:
            with graph.inserting_before(layer):
                bias = graph.get_attr(key)
            bias.meta = {"path": ""}
            args = list(layer.args) + [None] * (position + 1 - len(layer.args))
            args[position] = bias
            layer.args = tuple(args)
            layer.kwargs = {k: v for k, v in layer.kwargs.items() if k != "bias"}
        norm.replace_all_uses_with(layer)
        graph.erase_node(norm)
        yield key
    for node in reversed(graph.nodes):
        if node.op == "get_attr" and not node.users:
            graph.erase_node(node)
