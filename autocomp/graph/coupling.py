"""Coupled groups: the channels of a network that can only be removed together.

Found by torch-pruning's dependency graph (DepGraph, Fang et al. 2023) and, for attention heads, by the
names of projections; then verified: a random half of every group is really removed, and the outputs must
be those of the whole network with these channels set to zero.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from autocomp.core.network import Network, Skipped
from autocomp.graph import ops
from autocomp.graph._cuts import Cut, Place, key_of, masks_of, overlap, resized, shrunk, taken
from autocomp.graph._depgraph import Dependencies, Draft, RefusedError
from autocomp.graph._heads import head_drafts
from autocomp.graph.capture import EXPORT_ERRORS, first_tensor, one_line, quiet_tracing
from autocomp.graph.edit import apply_edits
from autocomp.graph.program import Environment, Program
from autocomp.graph.trace import stand_in

TOLERANCE = 1e-4
"""Largest difference of outputs, relative to their largest magnitude: a hundred times what rounding does
to sums of a few thousand products, a hundredth of what one wrong channel does."""

JITTER = 0.1
"""Noise on every weight during verification, in its root mean square: a residual branch that starts at
zero would otherwise agree with anything."""


@dataclass(frozen=True, kw_only=True, eq=False)
class ChannelGroup:
    """Channels that are removed together.

    Attributes:
        root: the first layer in order of execution that makes them; names the group.
        channels: number of entries; an entry is what can be removed by itself (one channel, one head, or
            one channel of every group of a grouped convolution).
        layers: all layers whose outputs shrink, in order of execution.
        consumers: layers whose inputs shrink, in order of execution.
        cuts: every tensor axis and integer attribute that shrinks, with the entries its indices belong to.
        heads: entries are attention heads.
    """

    root: str
    channels: int
    layers: tuple[str, ...]
    consumers: tuple[str, ...]
    cuts: tuple[Cut, ...]
    heads: bool = False

    def output_cut(self, layer: str) -> Cut:
        """The attribute of one of :attr:`layers` that counts its output channels."""
        names = ("out_channels", "out_features", "embedding_dim")
        return next(c for c in self.cuts if c.path == layer and c.role == "output" and c.name in names)

    def outputs(self, layer: str) -> Tensor:
        """Entry of each output channel of one of :attr:`layers`, int64 [channels] (-1: of none)."""
        return self.output_cut(layer).entries

    @property
    def width(self) -> int:
        """Output channels of the root that one entry stands for."""
        return max(1, int((self.outputs(self.root) == 0).sum()))


@dataclass(frozen=True, kw_only=True, eq=False)
class Coupling:
    """The groups of one network.

    Attributes:
        groups: by root, in order of execution.
        refused: layers and modules whose channels stay, and why (one line).
    """

    groups: Mapping[str, ChannelGroup]
    refused: tuple[Skipped, ...] = ()

    def masks(self, keep: Mapping[str, Tensor]) -> dict[Place, Tensor]:
        """What stays of every axis: root → bool [entries] to what :func:`resized` reads."""
        return masks_of((self.groups[root].cuts, mask) for root, mask in keep.items())

    def after(self, keep: Mapping[str, Tensor]) -> Coupling:
        """The groups of the network without what ``keep`` (root → bool [entries]) leaves out."""
        masks = self.masks(keep)
        groups = {}
        for root, group in self.groups.items():
            own = keep.get(root)
            cuts = tuple(shrunk(cut, masks, own) for cut in group.cuts)
            left = group.channels if own is None else int(own.sum())
            groups[root] = replace(group, channels=left, cuts=cuts)
        return Coupling(groups=groups, refused=self.refused)


def coupled_groups(network: Network) -> Coupling:
    """Every group of channels or heads that can be removed from ``network``, verified on two random inputs.

    Args:
        network: folded; read only. One without a graph has no groups and one refusal.

    Source: Fang et al. 2023, "DepGraph: Towards Any Structural Pruning"; the verification is ours.
    """
    if network.graph is None:
        return Coupling(groups={}, refused=(Skipped(name="", reason=f"no graph to prune in: {network.no_graph}"),))
    search = _Search(network)
    search.heads()
    search.channels()
    order = {name: i for i, name in enumerate(network.layers)}
    groups = dict(sorted(search.groups.items(), key=lambda item: order[item[0]]))
    return Coupling(groups=groups, refused=tuple(search.refused))


class _Search:
    """Groups found so far, and the layers whose outputs are accounted for."""

    def __init__(self, network: Network) -> None:
        self.network = network
        self.groups: dict[str, ChannelGroup] = {}
        self.refused: list[Skipped] = []
        self._done: set[str] = set()
        self._verifier = _Verifier(network)
        self._shared = {
            name: f"layer {layer.name} runs {layer.calls} times"
            if layer.calls > 1
            else f"layer {layer.name} shares its weight with {layer.aliases[0]}"
            for layer in network.layers.values()
            if layer.calls > 1 or layer.aliases
            for name in (layer.name, *layer.aliases)
        }

    def heads(self) -> None:
        """Attention heads first: the channels of their projections belong to nobody else."""
        found, refused = head_drafts(self.network)
        self.refused += refused
        for drafts in found:
            reasons = [self._try(draft) for draft in drafts]
            if None not in reasons:
                self.refused.append(Skipped(name=drafts[0].root, reason=f"attention heads: {reasons[0]}"))

    def channels(self) -> None:
        """What the dependency graph says of every other layer."""
        try:
            dependencies = Dependencies(self.network)
        except EXPORT_ERRORS as error:
            self.refused.append(Skipped(name="", reason=f"no dependency graph: {one_line(error)}"))
            return
        for root in self.network.layers:
            if root in self._done:
                continue
            try:
                draft = dependencies.draft(root)
            except RefusedError as error:
                self._refuse(root, str(error))
                continue
            except EXPORT_ERRORS as error:
                self._refuse(root, f"torch-pruning cannot follow its channels ({one_line(error)})")
                continue
            reason = self._try(draft)
            self._done.update(draft.layers)
            if reason is not None:
                self._refuse(root, reason)

    def _refuse(self, root: str, reason: str) -> None:
        self._done.add(root)
        self.refused.append(Skipped(name=root, reason=reason))

    def _try(self, draft: Draft) -> str | None:
        """Take ``draft`` as a group, or say why not."""
        if draft.root in self._done:
            return None
        reason = self._known(draft) or self._verifier.reason(draft.channels, draft.cuts)
        if reason is None:
            self.groups[draft.layers[0]] = ChannelGroup(**{**vars(draft), "root": draft.layers[0]})
            self._done.update(draft.layers)
        return reason

    def _known(self, draft: Draft) -> str | None:
        """A reason that needs no run of the network."""
        paths = {cut.path for cut in draft.cuts}
        tied = next((self._shared[p] for p in sorted(paths) if p in self._shared), None)
        if tied is not None:
            return tied
        strangers = [p for p in (*draft.layers, *draft.consumers) if p not in self.network.layers]
        if strangers:
            return f"{strangers[0]} is no layer that can be changed"
        if not draft.consumers:
            return "tied to the network's output: no layer reads these channels"
        if draft.channels < 2:
            return "it has one channel that can be removed by itself, and one has to stay"
        where = overlap(draft.cuts, (c for g in self.groups.values() for c in g.cuts))
        return None if where is None else f"some of its channels in {where} belong to another group"


class _Verifier:
    """Removes half of a group and compares outputs."""

    def __init__(self, network: Network) -> None:
        assert network.graph is not None
        self._network = network
        self._program = Program(network.graph)
        self._inputs = stand_in(network)
        generator = torch.Generator().manual_seed(1)
        self._tensors: dict[str, Tensor] = {}
        for key, parameter in network.module.named_parameters():
            values = parameter.detach()
            size = float(values.square().mean().sqrt()) if values.numel() else 0.0
            noise = torch.randn(values.shape, generator=generator)
            self._tensors[key] = values + JITTER * (size or 1.0) * noise
        self._environment: Environment = {}
        self._position = 0

    def reason(self, channels: int, cuts: tuple[Cut, ...]) -> str | None:
        """Why these cuts are not legal (one line), or None."""
        keep = torch.zeros(channels, dtype=torch.bool)
        # a random half: a regular one could suit a shuffle or a split by accident
        keep[torch.randperm(channels, generator=torch.Generator().manual_seed(2))[: max(1, channels // 2)]] = True
        masks = masks_of([(cuts, keep)])
        try:
            with quiet_tracing():
                found = first_tensor(self._pruned(masks)(self._inputs))
                expected = self._expected(masks)
        except EXPORT_ERRORS as error:
            return f"the code fixes shapes: without half of the channels it fails ({one_line(error)})"
        if found.shape != expected.shape:
            fixed = found.shape[:1] != expected.shape[:1]
            return "the code fixes shapes that count these channels" if fixed else "tied to the network's output"
        scale = float(expected.abs().max()) if expected.numel() else 0.0
        if not torch.allclose(found, expected, rtol=0, atol=TOLERANCE * scale):
            return "removing its channels is not the same as setting them to zero"
        return None

    def _pruned(self, masks: Mapping[Place, Tensor]) -> nn.Module:
        """A copy of the module that is smaller; only what shrinks is really copied."""
        source = self._network.module
        memo: dict[int, object] = {
            id(p): nn.Parameter(self._tensors[key], requires_grad=False) for key, p in source.named_parameters()
        }
        module = copy.deepcopy(source, memo).eval()
        edits, indices = resized(source, masks)
        apply_edits(module, edits)
        state = {**dict(module.named_parameters()), **dict(module.named_buffers())}
        buffers = dict(source.named_buffers())
        for key, kept in indices.items():
            old = self._tensors[key] if key in self._tensors else buffers[key]
            state[key].data.copy_(taken(old, kept))
        return module

    def _expected(self, masks: Mapping[Place, Tensor]) -> Tensor:
        """Outputs with zeros for what is cut. What runs before the first of them is kept for the next group."""
        cut = {key_of(path, name) for path, name, axis in masks if axis is not None}
        nodes, last = self._program.nodes, len(self._program.nodes)
        read = ({str(n.target) for n in ops.inputs_of(node) if n.op == "get_attr"} for node in nodes)
        first = next((i for i, keys in enumerate(read) if keys & cut), last)
        if first < self._position:
            self._environment, self._position = {}, 0
        self._program.advance(self._environment, self._position, first, inputs=self._inputs, tensors=self._tensors)
        self._position, environment, tensors = first, dict(self._environment), self._masked(masks)
        self._program.advance(environment, first, last, inputs=self._inputs, tensors=tensors)
        return self._program.result(environment, tensors)

    def _masked(self, masks: Mapping[Place, Tensor]) -> dict[str, Tensor]:
        """All tensors, zero where an axis is cut; statistics of norms stay."""
        tensors = dict(self._tensors)
        for (path, name, axis), mask in masks.items():
            key = key_of(path, name)
            if axis is not None and key in tensors:
                shape = [-1 if i == axis else 1 for i in range(tensors[key].dim())]
                tensors[key] = tensors[key] * mask.reshape(shape)
        return tensors
