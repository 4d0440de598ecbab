"""Axes that shrink: which indices of which tensors and attributes belong to which entry of a group."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from autocomp.core.edits import Edit, Resize

Place = tuple[str, str, int | None]
"""Module path, name of a tensor or an integer attribute, and the tensor's axis (None: an attribute)."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Cut:
    """One axis of a tensor, or one integer attribute, that shrinks with a group of channels.

    Attributes:
        path: module path ("" is the model itself).
        name: of its own parameter, buffer or integer attribute.
        axis: of the tensor; None for an attribute.
        entries: int64 [size of the axis, or value of the attribute], the group's entry that each index
            belongs to; -1 where it belongs to none.
        role: "output" (the layer makes these channels), "input" (it reads them) or "between".
    """

    path: str
    name: str
    axis: int | None
    entries: Tensor
    role: str

    @property
    def place(self) -> Place:
        """What shrinks; several groups may cut one place at different indices."""
        return self.path, self.name, self.axis

    def mask(self, keep: Tensor) -> Tensor:
        """bool [size]: indices that stay where ``keep`` [entries] of the group do."""
        return keep[self.entries.clamp_min(0)] | (self.entries < 0)


def masks_of(chosen: Iterable[tuple[Iterable[Cut], Tensor]]) -> dict[Place, Tensor]:
    """What stays of every place: pairs of a group's cuts and bool [entries] of what is kept."""
    masks: dict[Place, Tensor] = {}
    for cuts, keep in chosen:
        for cut in cuts:
            mask = cut.mask(keep)
            masks[cut.place] = masks[cut.place] & mask if cut.place in masks else mask
    return masks


def key_of(path: str, name: str) -> str:
    """State-dict key of a module's own tensor."""
    return f"{path}.{name}" if path else name


def resized(module: nn.Module, masks: Mapping[Place, Tensor]) -> tuple[list[Edit], dict[str, tuple[Tensor, ...]]]:
    """Edits that shrink ``module``, and for each of their tensors the indices kept along every axis.

    Args:
        module: as it is before; read only.
        masks: from :func:`masks_of`.

    Returns:
        One Resize a module, and state-dict key → int64 indices [kept], one tensor an axis.
    """
    attributes: dict[str, dict[str, int]] = {}
    kept: dict[str, dict[str, dict[int, Tensor]]] = {}
    for (path, name, axis), mask in masks.items():
        if axis is None:
            attributes.setdefault(path, {})[name] = int(mask.sum())
        else:
            kept.setdefault(path, {}).setdefault(name, {})[axis] = mask.nonzero().flatten()
    edits: list[Edit] = []
    indices: dict[str, tuple[Tensor, ...]] = {}
    for path in dict.fromkeys((*attributes, *kept)):
        shapes = {}
        for name, axes in kept.get(path, {}).items():
            old = getattr(module.get_submodule(path), name).shape
            full = tuple(axes.get(axis, torch.arange(size)) for axis, size in enumerate(old))
            indices[key_of(path, name)] = full
            shapes[name] = tuple(len(index) for index in full)
        edits.append(Resize(path=path, attributes=attributes.get(path, {}), shapes=shapes))
    return edits, indices


def taken(tensor: Tensor, indices: tuple[Tensor, ...]) -> Tensor:
    """``tensor`` at ``indices``, one tensor of them an axis."""
    for axis, index in enumerate(indices):
        if len(index) != tensor.shape[axis]:
            tensor = tensor.index_select(axis, index)
    return tensor.contiguous()


def shrunk(cut: Cut, masks: Mapping[Place, Tensor], keep: Tensor | None) -> Cut:
    """``cut`` after its place was reduced by ``masks``; ``keep`` is what stays of its own group (None: all)."""
    entries = cut.entries
    if keep is not None:
        numbers = torch.where(keep, keep.cumsum(0) - 1, -1)
        entries = torch.where(entries >= 0, numbers[entries.clamp_min(0)], entries)
    mask = masks.get(cut.place)
    return replace(cut, entries=entries if mask is None else entries[mask])


def overlap(cuts: Iterable[Cut], others: Iterable[Cut]) -> str | None:
    """The path of a module where two groups claim the same index, or None."""
    claimed: dict[Place, Tensor] = {}
    for other in others:
        mask = other.entries >= 0
        claimed[other.place] = claimed[other.place] | mask if other.place in claimed else mask
    for cut in cuts:
        if cut.place in claimed and bool((claimed[cut.place] & (cut.entries >= 0)).any()):
            return cut.path
    return None
