"""Layers: modules with a weight that can be compressed, found in the graph or by watching a forward pass."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from torch import Tensor, fx, nn
from torch.nn.utils import parametrize

from autocomp.core.network import Layer, Skipped
from autocomp.graph import ops
from autocomp.graph.values import behind_activation


@dataclass(frozen=True)
class Owner:
    """A weight with the modules that hold it; the first one names the layer."""

    weight: str
    bias: str | None
    module: nn.Module
    kind: str
    names: tuple[str, ...]


@dataclass(frozen=True)
class Call:
    """Shapes of one execution of a layer, batch axis included."""

    input_shape: tuple[int, ...]
    output_shape: tuple[int, ...]


def first_names(module: nn.Module) -> dict[int, str]:
    """id of each parameter → its first state-dict key."""
    return {id(p): name for name, p in reversed(list(module.named_parameters(remove_duplicate=False)))}


def owners(module: nn.Module) -> tuple[list[Owner], list[Skipped]]:
    """Weights of layer modules, modules that share one merged; those that cannot be replaced by name are skipped.

    A tensor shared by an embedding and a linear layer is the linear layer's.
    """
    names = first_names(module)
    found: dict[str, list[tuple[str, nn.Module, str]]] = {}
    skipped: list[Skipped] = []
    for path, child in module.named_modules(remove_duplicate=False):
        kind = ops.layer_kind(child)
        if kind is None:
            continue
        if parametrize.is_parametrized(child) or not isinstance(child._parameters.get("weight"), nn.Parameter):
            if not any(s.name == path for s in skipped):
                skipped.append(Skipped(name=path, reason="its weight is computed from other parameters"))
            continue
        found.setdefault(names[id(child.weight)], []).append((path, child, kind))
    result = []
    for weight, holders in found.items():
        holders.sort(key=lambda h: h[2] == "embedding")
        path, child, kind = holders[0]
        bias = child._parameters.get("bias")
        result.append(
            Owner(
                weight=weight,
                bias=names[id(bias)] if bias is not None else None,
                module=child,
                kind=kind,
                names=(path, *(h[0] for h in holders[1:])),
            )
        )
    return result, skipped


def macs_of(kind: str, weight: tuple[int, ...], call: Call) -> int:
    """Multiply-accumulates of one sample in one call."""
    batch = call.input_shape[0]
    if kind == "embedding" or not batch:
        return 0
    if kind == "conv_transpose2d":
        return math.prod(call.input_shape) // batch * math.prod(weight[1:])
    return math.prod(call.output_shape) // batch * math.prod(weight[1:])


def make_layer(
    owner: Owner, state: Mapping[str, Tensor], calls: list[Call], input_value: str | None, output_value: str | None
) -> Layer:
    """The record of one layer; ``calls`` are all its executions in one forward pass."""
    weight = tuple(state[owner.weight].shape)
    return Layer(
        name=owner.names[0],
        kind=owner.kind,
        weight=owner.weight,
        bias=owner.bias,
        weight_shape=weight,
        groups=int(getattr(owner.module, "groups", 1)),
        input_shape=calls[0].input_shape[1:],
        output_shape=calls[0].output_shape[1:],
        macs=sum(macs_of(owner.kind, weight, call) for call in calls),
        parameters=state[owner.weight].numel() + (state[owner.bias].numel() if owner.bias else 0),
        calls=len(calls),
        aliases=owner.names[1:],
        input_value=input_value,
        output_value=output_value,
    )


def layer_nodes(graph: fx.Graph, owner: Owner) -> list[fx.Node] | str:
    """The calls of a layer in order of execution, or why it has to stay in float32 (one line)."""
    weights = [n for n in graph.nodes if n.op == "get_attr" and n.target == owner.weight]
    readers = [user for w in weights for user in w.users]
    if not readers:
        return "it does not run on the example input"
    if not all(ops.weight_of(user) in weights and _reads_once(user, weights[0]) for user in readers):
        return "its weight is also used outside the layer"
    kinds = {ops.op_name(user) for user in readers}
    if not kinds <= {owner.kind, "embedding"} or (kinds == {"embedding"} and owner.kind != "embedding"):
        return (
            f"its weight is used by {', '.join(sorted(kinds - {owner.kind}))}, which is not the layer's own operation"
        )
    order = {node: i for i, node in enumerate(graph.nodes)}
    return sorted((u for u in readers if ops.op_name(u) == owner.kind), key=order.__getitem__)


def _reads_once(user: fx.Node, weight: fx.Node) -> bool:
    return ops.inputs_of(user).count(weight) == 1


def from_graph(
    module: nn.Module, graph: fx.Graph, shapes: Mapping[fx.Node, tuple[int, ...]], keys: Mapping[str, str]
) -> tuple[dict[str, Layer], list[Skipped]]:
    """Layers of a captured graph, in order of execution.

    Args:
        shapes: node → shape of its result, batch axis included.
        keys: fx node name → value key.
    """
    found, skipped = owners(module)
    state = dict(module.state_dict(keep_vars=True))
    order = {node: i for i, node in enumerate(graph.nodes)}
    layers: list[tuple[int, Layer]] = []
    for owner in found:
        nodes = layer_nodes(graph, owner)
        if isinstance(nodes, str):
            skipped.append(Skipped(name=owner.names[0], reason=nodes))
            continue
        calls = [Call(shapes[ops.data_of(n)], shapes[n]) for n in nodes]
        out = behind_activation(nodes[0])
        layer = make_layer(owner, state, calls, keys.get(ops.data_of(nodes[0]).name), keys.get(out.name))
        layers.append((order[nodes[0]], layer))
    layers.sort(key=lambda pair: pair[0])
    return {layer.name: layer for _, layer in layers}, skipped


def from_forward(module: nn.Module, example: Tensor) -> tuple[dict[str, Layer], list[Skipped]]:
    """Layers that run in one forward pass on ``example``, in order of execution, without a graph."""
    found, skipped = owners(module)
    state = dict(module.state_dict(keep_vars=True))
    calls: dict[int, list[Call]] = {}
    modules = dict(module.named_modules(remove_duplicate=False))
    handles = []
    for i, owner in enumerate(found):
        holders = {id(modules[name]): modules[name] for name in owner.names}
        for holder in holders.values():
            if ops.layer_kind(holder) != owner.kind:
                continue

            def record(
                _m: nn.Module, args: tuple[Tensor, ...], kwargs: dict[str, Tensor], out: Tensor, i: int = i
            ) -> None:
                data = args[0] if args else next(iter(kwargs.values()))
                calls.setdefault(i, []).append(Call(tuple(data.shape), tuple(out.shape)))

            handles.append(holder.register_forward_hook(record, with_kwargs=True))
    try:
        module(example)
    finally:
        for handle in handles:
            handle.remove()
    layers = {found[i].names[0]: make_layer(found[i], state, seen, None, None) for i, seen in calls.items()}
    for owner in found:
        if owner.names[0] not in layers:
            skipped.append(Skipped(name=owner.names[0], reason="it does not run on the example input"))
    return layers, skipped


def other_parameters(module: nn.Module, accounted: set[str]) -> Iterator[Skipped]:
    """Modules that own parameters and are neither a layer nor named in ``accounted``."""
    for path, child in module.named_modules():
        if path in accounted or not child._parameters or all(p is None for p in child._parameters.values()):
            continue
        if any(path.startswith(f"{name}.parametrizations") for name in accounted):
            continue
        kind = type(child).__name__
        where = path or "(the model itself)"
        yield Skipped(name=where, reason=f"{kind}: its parameters are no convolution or linear weight")
