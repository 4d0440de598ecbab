"""Edits carried out on a module: what a structural transform and a loader have in common."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, fx, nn

from autocomp.core.edits import Edit, LayerSpec, Replace, Resize
from autocomp.core.network import Fold, Network
from autocomp.core.variant import Origin, Variant
from autocomp.errors import DataError
from autocomp.graph import ops
from autocomp.graph.capture import EXPORT_ERRORS, NotTraceableError, first_tensor, quiet_tracing
from autocomp.graph.fold import get_module
from autocomp.graph.program import Program
from autocomp.graph.trace import Folded, assemble, bind, check_agreement, network_of, stand_in

MAX_ELEMENTS = 1 << 31

_CONVOLUTIONS: dict[str, type[nn.Conv1d | nn.Conv2d | nn.Conv3d]] = {
    "conv1d": nn.Conv1d,
    "conv2d": nn.Conv2d,
    "conv3d": nn.Conv3d,
}


def make_module(spec: LayerSpec) -> nn.Module:
    """The layer that ``spec`` describes, its weights zero.

    Raises:
        DataError: a kind or sizes that no layer has.
    """
    try:
        if spec.kind == "linear":
            made: nn.Module = nn.Linear(spec.inputs, spec.outputs, bias=spec.bias, device="meta")
        else:
            spatial: dict[str, Any] = {"stride": spec.stride, "padding": spec.padding, "dilation": spec.dilation}
            made = _CONVOLUTIONS[spec.kind](
                spec.inputs,
                spec.outputs,
                spec.kernel,  # type: ignore[arg-type]  # as long as the convolution has axes, or it raises
                groups=spec.groups,
                bias=spec.bias,
                device="meta",
                **spatial,
            )
    except (KeyError, ValueError, TypeError, RuntimeError) as error:
        raise DataError(f"no layer is made like {spec} ({error}); the file is damaged, get it again") from error
    if sum(p.numel() for p in made.parameters()) > MAX_ELEMENTS:
        raise DataError(f"a layer like {spec} is too large; the file is damaged, get it again")
    for name, parameter in list(made.named_parameters()):
        setattr(made, name, nn.Parameter(torch.zeros(parameter.shape), requires_grad=False))
    return made.eval()


def apply_edits(module: nn.Module, edits: Sequence[Edit]) -> None:
    """Change the structure of ``module`` in place; resized and new tensors are zero.

    Raises:
        DataError: a path, attribute or tensor that the module does not have.
    """
    for edit in edits:
        target = get_module(module, edit.path)
        if isinstance(edit, Replace):
            chain = nn.Sequential(*(make_module(spec) for spec in edit.layers))
            parent, _, name = edit.path.rpartition(".")
            setattr(module.get_submodule(parent), name, chain.eval())
            continue
        _resize(target, edit)


def _resize(target: nn.Module, edit: Resize) -> None:
    for name, value in edit.attributes.items():
        old = getattr(target, name, None)
        if isinstance(old, bool) or not isinstance(old, int | tuple) or name.startswith("_"):
            raise DataError(f"{edit.path or 'the model'} has no size {name!r}; pass the class the file was made from")
        setattr(target, name, value)
    for name, shape in edit.shapes.items():
        if math.prod(shape) > MAX_ELEMENTS or min(shape, default=1) < 0:
            raise DataError(f"{edit.path}.{name} of shape {shape} is too large; the file is damaged, get it again")
        if isinstance(target._parameters.get(name), nn.Parameter):
            target._parameters[name] = nn.Parameter(torch.zeros(shape), requires_grad=False)
        elif isinstance(target._buffers.get(name), Tensor):
            target._buffers[name] = torch.zeros(shape)
        else:
            raise DataError(f"{edit.path or 'the model'} has no tensor {name!r}; pass the class the file was made from")


def edited_module(module: nn.Module, edits: Sequence[Edit], tensors: Mapping[str, Tensor]) -> nn.Module:
    """A changed copy of ``module``; arguments as for :func:`edited`. For whoever only runs it: nothing is traced."""
    changed = copy.deepcopy(module)
    apply_edits(changed, edits)
    state = changed.state_dict(keep_vars=True)
    with torch.no_grad():
        for key, values in tensors.items():
            state[key].copy_(values)
    return changed


def edited(
    variant: Variant, edits: Sequence[Edit], tensors: Mapping[str, Tensor], origins: Mapping[str, Origin]
) -> Variant:
    """``variant`` after further edits; the old value is left as it is.

    Args:
        variant: what is changed.
        edits: in order.
        tensors: state-dict key of the edited module → float32 values, for every tensor that an edit made
            anew and every other one that changes.
        origins: layer of the edited network → what it was in ``variant``'s network; others are as they were.

    Raises:
        DataError: the edited module does not run.
    """
    module = edited_module(variant.network.module, edits, tensors)
    batch = stand_in(variant.network)
    network = _same_graph(variant.network, module, edits, batch) or network_of(module, batch)
    found: dict[str, Origin] = {}
    for name in network.layers:
        step = origins.get(name, Origin(layer=name))
        found[name] = _composed(variant.origins[step.layer], step)
    folds = {fold.layer: fold for fold in _folds(variant.network, network, origins)}
    network = replace(network, folds=folds, skipped=variant.network.skipped)
    return Variant(network=network, edits=(*variant.edits, *edits), origins=found, notes=variant.notes)


def _same_graph(old: Network, module: nn.Module, edits: Sequence[Edit], batch: Tensor) -> Network | None:
    """The network of an edited module on the operations that were traced before, None where sizes are among them."""
    if old.graph is None:
        return None
    plain = fx.Graph()
    plain.output(plain.graph_copy(old.graph.graph, {}))
    try:
        for edit in edits:
            if isinstance(edit, Replace):
                _call_chain(plain, edit)
        graph = bind(plain, module, old.graph)
        with quiet_tracing():
            check_agreement(Program(graph).run(batch), first_tensor(module(batch)), "other operations")
    except (NotTraceableError, *EXPORT_ERRORS):
        return None
    return assemble(Folded(module, graph, {}, {}), batch)


def _call_chain(graph: fx.Graph, edit: Replace) -> None:
    """The calls of a layer become calls of the chain that replaced it; the last one keeps the old call's name.

    Raises:
        NotTraceableError: a call of another kind than the chain's layers.
    """
    calls = [n for n in graph.nodes if getattr(ops.weight_of(n), "target", None) == f"{edit.path}.weight"]
    for node in calls:
        if any(spec.kind != ops.op_name(node) for spec in edit.layers):
            raise NotTraceableError(f"{edit.path} is called as {ops.op_name(node)}")
        old, data = list(node.all_input_nodes), ops.data_of(node)
        with graph.inserting_before(node):
            for i, spec in enumerate(edit.layers):
                path = f"{edit.path}.{i}"
                bias = graph.get_attr(f"{path}.bias") if spec.bias else None
                args: tuple[Any, ...] = (data, graph.get_attr(f"{path}.weight"), bias)
                if spec.kind != "linear":
                    args += (list(spec.stride), list(spec.padding), list(spec.dilation), spec.groups)
                target = getattr(torch.ops.aten, spec.kind).default
                if i < len(edit.layers) - 1:
                    data = graph.call_function(target, args)
                    data.meta["path"] = path
                else:
                    node.target, node.args, node.kwargs = target, args, {}
                    node.meta["path"] = path
        for source in old:
            if source.op == "get_attr" and not source.users:
                graph.erase_node(source)


def _composed(old: Origin, new: Origin) -> Origin:
    """What a layer was in the base network, from what it was one step ago."""
    outputs = old.outputs
    if new.outputs is not None:
        outputs = new.outputs if outputs is None else outputs[new.outputs]
    return Origin(layer=old.layer, outputs=outputs, inner=old.inner or new.inner)


def _folds(old: Network, new: Network, origins: Mapping[str, Origin]) -> list[Fold]:
    """The folded norms, by the layers that now make their outputs, with the channels that are left."""
    found = []
    for name in new.layers:
        origin = origins.get(name, Origin(layer=name))
        fold = old.folds.get(origin.layer)
        if fold is None or origin.inner:
            continue
        kept = slice(None) if origin.outputs is None else origin.outputs
        found.append(Fold(layer=name, norm=fold.norm, mean=fold.mean[kept], std=fold.std[kept]))
    return found
