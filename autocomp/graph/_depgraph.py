"""torch-pruning's dependency graph, read out as groups of cuts (DepGraph, Fang et al. 2023)."""

from __future__ import annotations

import contextlib
import copy
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from autocomp.core.network import Network
from autocomp.graph._cuts import Cut
from autocomp.graph.capture import first_tensor
from autocomp.graph.trace import stand_in

_WIDER = 4  # indices that are followed, in the longest axis of any parameter


class RefusedError(Exception):
    """These channels cannot be removed; the message is one line why."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Draft:
    """A group that nobody has verified yet; fields as in ``ChannelGroup``."""

    root: str
    channels: int
    layers: tuple[str, ...]
    consumers: tuple[str, ...]
    cuts: tuple[Cut, ...]
    heads: bool = False


@dataclass(frozen=True, kw_only=True)
class _Axis:
    """How one module shrinks along its inputs or outputs.

    Attributes:
        role: see :class:`Cut`.
        size: channels along that axis.
        tensors: (name, axis, whether it counts the channels of one convolution group only).
        attributes: integer attributes that count the channels.
        local: channels of one convolution group where all of them must lose the same ones; else None.
    """

    role: str
    size: int
    tensors: tuple[tuple[str, int, bool], ...]
    attributes: tuple[str, ...]
    local: int | None = None


def _convolution(module: nn.modules.conv._ConvNd, outward: bool) -> _Axis:
    groups, inputs, outputs = module.groups, module.in_channels, module.out_channels
    if groups == outputs and outputs > 1:
        if inputs != outputs:
            raise RefusedError(f"a convolution of {groups} groups makes {outputs} channels of {inputs}")
        whole = ("in_channels", "out_channels", "groups")
        return _Axis(role="output", size=outputs, tensors=(("weight", 0, False), ("bias", 0, False)), attributes=whole)
    axis = 1 if module.transposed == outward else 0
    size, name = (outputs, "out_channels") if outward else (inputs, "in_channels")
    # axis 1 counts the channels of one group, for plain and transposed convolutions alike
    weight = ("weight", axis, axis == 1 and groups > 1)
    return _Axis(
        role="output" if outward else "input",
        size=size,
        tensors=(weight, ("bias", 0, False)) if outward else (weight,),
        attributes=(name,),
        local=size // groups if groups > 1 else None,
    )


def _axis_of(module: nn.Module, outward: bool) -> _Axis | None:
    """How ``module`` shrinks; None where nothing of it counts channels."""
    if isinstance(module, nn.modules.conv._ConvNd):
        return _convolution(module, outward)
    if isinstance(module, nn.Linear) and outward:
        tensors = (("weight", 0, False), ("bias", 0, False))
        return _Axis(role="output", size=module.out_features, tensors=tensors, attributes=("out_features",))
    if isinstance(module, nn.Linear):
        tensors_in = (("weight", 1, False),)
        return _Axis(role="input", size=module.in_features, tensors=tensors_in, attributes=("in_features",))
    if isinstance(module, nn.Embedding):
        size = module.embedding_dim
        return _Axis(role="output", size=size, tensors=(("weight", 1, False),), attributes=("embedding_dim",))
    if isinstance(module, nn.modules.batchnorm._NormBase):
        names = ("weight", "bias", "running_mean", "running_var")
        size = module.num_features
        return _Axis(
            role="between", size=size, tensors=tuple((n, 0, False) for n in names), attributes=("num_features",)
        )
    if isinstance(module, nn.PReLU):
        if module.num_parameters == 1:
            return None
        size = module.num_parameters
        return _Axis(role="between", size=size, tensors=(("weight", 0, False),), attributes=("num_parameters",))
    if isinstance(module, nn.LayerNorm | nn.GroupNorm):
        raise RefusedError(f"{type(module).__name__} normalises over these channels, so removing some changes the rest")
    raise RefusedError(f"{type(module).__name__} cannot be resized")


@contextlib.contextmanager
def _bounded_reshapes(limit: int) -> Iterator[None]:
    """Two mends of torch-pruning's reshapes; whatever follows from them is verified like every group.

    A reshape keeps its indices where torch-pruning infers none of its channels, and then divides by them (seen
    on chains of channel shuffles). And where it takes reshapes for flattenings that are none (window attention),
    each round through a residual stream multiplies the indices, until memory is full: beyond ``limit`` of them
    the channels are refused.
    """
    from torch_pruning.dependency import index_mapping

    update, flatten = index_mapping.update_reshape_index_mapping, index_mapping._FlattenIndexMapping.__call__

    def tolerant(graph: Any, node: Any) -> None:
        with contextlib.suppress(ZeroDivisionError):
            update(graph, node)

    def bounded(mapping: Any, indices: Any) -> Any:
        if not mapping.reverse and len(indices) * mapping._stride > limit:
            raise RefusedError("its channels cannot be followed through the reshapes behind it")
        return flatten(mapping, indices)

    index_mapping.update_reshape_index_mapping = tolerant
    index_mapping._FlattenIndexMapping.__call__ = bounded
    try:
        yield
    finally:
        index_mapping.update_reshape_index_mapping = update
        index_mapping._FlattenIndexMapping.__call__ = flatten


class Dependencies:
    """The dependency graph of one network, built on a copy of its module.

    Args:
        network: folded, with a graph.

    Raises:
        capture.EXPORT_ERRORS: torch-pruning cannot trace the module.
    """

    def __init__(self, network: Network) -> None:
        import torch_pruning as tp

        self._network, self._kinds = network, tp.ops.OPTYPE
        module = copy.deepcopy(network.module).eval()
        for parameter in module.parameters():
            parameter.requires_grad_(parameter.is_floating_point())
        self._modules = dict(module.named_modules())
        self._paths = {id(child): path for path, child in self._modules.items()}
        self._keys = {id(p): key for key, p in module.named_parameters()}
        # no index of a tensor is beyond its longest axis; what lies between layers may be wider
        self._limit = _WIDER * max((size for p in module.parameters() for size in p.shape), default=1)
        with torch.enable_grad(), warnings.catch_warnings(), _bounded_reshapes(self._limit):
            warnings.simplefilter("ignore")  # on parameters outside layers; every group is verified
            self._graph = tp.DependencyGraph().build_dependency(
                module, (stand_in(network),), output_transform=first_tensor, verbose=False
            )
        self._module = module

    def draft(self, root: str) -> Draft:
        """The group of the output channels of layer ``root``.

        Raises:
            RefusedError: it is tied to something that cannot shrink.
            capture.EXPORT_ERRORS: torch-pruning gives up.
        """
        module = self._modules[root]
        if module not in self._graph.module2node:
            raise RefusedError("the dependency graph does not see it run by itself")
        pruner = self._graph.get_pruner_of_module(module)
        count = int(pruner.get_out_channels(module))
        with warnings.catch_warnings(), _bounded_reshapes(self._limit):
            warnings.simplefilter("ignore")
            items = self._graph.get_pruning_group(module, pruner.prune_out_channels, list(range(count))).items
        found = [self._member(item) for item in items]
        return _draft(self._network, root, count, [member for member in found if member is not None])

    def _member(self, item: Any) -> tuple[str, _Axis, list[int], list[int]] | None:
        node = item.dep.target
        if node.type == self._kinds.OUTPUT:
            raise RefusedError("tied to the network's output")
        if isinstance(node.module, nn.Parameter):
            path, _, name = self._keys[id(node.module)].rpartition(".")
            axis = node.pruning_dim % node.module.dim()
            size = node.module.shape[axis]
            return path, _Axis(role="between", size=size, tensors=((name, axis, False),), attributes=()), *_pairs(item)
        path = self._paths.get(id(node.module), "")
        if id(node.module) not in self._paths:
            return None  # an operation without tensors of its own
        outward = bool(self._graph.is_out_channel_pruning_fn(item.dep.handler))
        found = _axis_of(node.module, outward)
        return None if found is None else (path, found, *_pairs(item))


def _pairs(item: Any) -> tuple[list[int], list[int]]:
    """Indices of a member and the root's outputs that they belong to."""
    roots = list(item.root_idxs)
    if any(r is None for r in roots):
        raise RefusedError("the root's channels cannot be followed through it (grouped-query attention)")
    return [int(i) for i in item.idxs], [int(r) for r in roots]


def _draft(
    network: Network, root: str, count: int, members: Sequence[tuple[str, _Axis, list[int], list[int]]]
) -> Draft:
    """The group, its entries being the smallest sets of root outputs that can be removed together."""
    labels = list(range(count))

    def find(i: int) -> int:
        while labels[i] != i:
            labels[i] = labels[labels[i]]
            i = labels[i]
        return i

    for path, axis, indices, roots in members:
        if max(indices) >= axis.size:
            raise RefusedError(f"its channels cannot be followed into {path}")
        for first, other in _joined(path, axis, indices, roots):
            low, high = sorted((find(first), find(other)))
            labels[high] = low
    numbers: dict[int, int] = {}
    entry = [numbers.setdefault(find(i), len(numbers)) for i in range(count)]
    cuts = []
    for path, axis, indices, roots in members:
        entries = torch.full((axis.size,), -1)
        entries[torch.tensor(indices)] = torch.tensor([entry[r] for r in roots])
        cuts += cuts_of(network.module, path, axis.tensors, axis.attributes, entries, axis.role, axis.local)
    return Draft(
        root=root,
        channels=len(numbers),
        layers=_in_order(network, {path for path, axis, *_ in members if axis.role == "output"}),
        consumers=_in_order(network, {path for path, axis, *_ in members if axis.role == "input"}),
        cuts=tuple({(c.place, c.role): c for c in cuts}.values()),
    )


def _joined(path: str, axis: _Axis, indices: list[int], roots: list[int]) -> Iterator[tuple[int, int]]:
    """Pairs of root outputs that meet in one index of a member."""
    seen: dict[int, int] = {}
    met: dict[int, set[int]] = {}
    for index, root in zip(indices, roots, strict=True):
        place = index if axis.local is None else index % axis.local
        met.setdefault(place, set()).add(index)
        yield seen.setdefault(place, root), root
    if axis.local is not None and any(len(found) * axis.local != axis.size for found in met.values()):
        raise RefusedError(f"only some groups of the grouped convolution {path} meet these channels")


def cuts_of(
    module: nn.Module,
    path: str,
    tensors: Sequence[tuple[str, int, bool]],
    attributes: Sequence[str],
    entries: Tensor,
    role: str,
    local: int | None = None,
) -> list[Cut]:
    """Cuts of one module; tensors that it does not have are left out.

    Raises:
        RefusedError: a tensor is computed from others, so it has no size of its own.
    """
    target = module.get_submodule(path)
    cuts = [Cut(path=path, name=name, axis=None, entries=entries, role=role) for name in attributes]
    for name, axis, one_group in tensors:
        if name in target._parameters or name in target._buffers:
            if getattr(target, name) is not None:
                part = entries[:local] if one_group else entries
                cuts.append(Cut(path=path, name=name, axis=axis, entries=part, role=role))
        elif hasattr(target, name) and getattr(target, name) is not None:
            raise RefusedError(f"{path}.{name} is computed from other parameters")
    return cuts


def _in_order(network: Network, paths: set[str]) -> tuple[str, ...]:
    """Layers in order of execution, others behind."""
    known: Mapping[str, int] = {name: i for i, name in enumerate(network.layers)}
    return tuple(sorted(paths, key=lambda p: (known.get(p, len(known)), p)))
