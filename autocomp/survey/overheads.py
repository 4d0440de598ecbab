"""What the file takes besides the units' tensors: its head, tensors left alone, and lines of the manifest."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch

from autocomp.coding.container import overhead_bytes, stored_bytes
from autocomp.coding.tensors import encode_tensor
from autocomp.core.candidate import Candidate
from autocomp.core.compressed import ActivationQuantizer, CompressedModel
from autocomp.core.edits import Edit, LayerSpec, Replace
from autocomp.core.encodings import Encoding
from autocomp.core.hardware import Placement
from autocomp.core.network import Network
from autocomp.core.prices import ManifestLine
from autocomp.core.space import SearchSpace
from autocomp.core.steps import Choice
from autocomp.core.workload import Workload
from autocomp.evaluators import artifact
from autocomp.graph._cuts import resized
from autocomp.survey.execution import executed_units, value_owners
from autocomp.transforms.low_rank import Factorise, factor_specs
from autocomp.transforms.prune import PruneChannels
from autocomp.transforms.recipe import recipe_of


def overheads(
    workload: Workload,
    network: Network,
    space: SearchSpace,
    tensors: Mapping[str, Encoding],
    quantizers: Mapping[tuple[str, str], ActivationQuantizer],
    placement: Placement,
) -> tuple[int, tuple[ManifestLine, ...]]:
    """Fixed bytes, and the lines that decisions add to the manifest.

    Lines are deflated together, so each kind is measured with one and with all of its lines there: the first one costs
    more, which is a line of its own that any decision of the kind brings; all others count alike.

    Args:
        workload: gives what the manifest says.
        network: folded, unchanged.
        space: the units: their tensors' bytes are no part of this.
        tensors: of the uncompressed network.
        quantizers: (value, precision) → quantizer of all values that may be quantized.
        placement: of the target.
    """
    plain = CompressedModel(candidate=Candidate({}), tensors=dict(tensors))

    def head(names: Sequence[str], **changes: Any) -> int:
        return overhead_bytes(artifact.manifest(workload, network, plain.replace(**changes)), names, ())

    names = list(tensors)
    least = head(names)
    decided = {
        k for u in space.units.values() for n in u.layers for k in (network.layers[n].weight, network.layers[n].bias)
    }
    fixed = least + sum(stored_bytes(len(encode_tensor(e))) for n, e in tensors.items() if n not in decided)
    lines: tuple[ManifestLine, ...] = ()
    for precision in executed_units(space):
        values = value_owners(network, space, placement, precision)
        owners = {v: frozenset(f"{u}:{precision}" for u in units) for v, units in values.items()}
        every = {v: quantizers[v, precision] for v in owners}
        one = dict(list(every.items())[:1])
        made = _lines(owners, head(names, activations=one) - least, head(names, activations=every) - least)
        lines += made
        for needs in _inner_values(network, space, precision) if made else ():
            lines += (ManifestLine(owners=needs, bytes=made[-1].bytes),)
    for owners, edits, longer in (_resizes(network, space, names), _replacements(network, space, names)):
        one_alone = head(names, edits=tuple(edits[:1])) - least
        lines += _lines(owners, one_alone, head(longer, edits=tuple(edits)) - least)
    return fixed, lines


def _lines(owners: Mapping[str, frozenset[str]], one: int, all_: int) -> tuple[ManifestLine, ...]:
    """A line for each of ``owners``, and what the first one costs besides; bytes of one alone and of all."""
    if not owners:
        return ()
    each = (all_ - one) / (len(owners) - 1) if len(owners) > 1 else one
    first = ManifestLine(owners=(frozenset().union(*owners.values()),), bytes=one - each)
    return (first, *(ManifestLine(owners=(names,), bytes=each) for names in owners.values()))


def _inner_values(network: Network, space: SearchSpace, precision: str) -> Iterator[tuple[frozenset[str], ...]]:
    """What it takes for each value between two layers of a chain to be quantized: the chain, executed so."""
    able = executed_units(space)[precision]
    for unit, _, specs in _chains(network, space):
        if unit in able:
            yield from [(frozenset({f"{unit}:rank"}), frozenset({f"{unit}:{precision}"}))] * (len(specs) - 1)


_Edited = tuple[dict[str, frozenset[str]], list[Edit], list[str]]
"""Module → the decisions that may change it, the edits where all of them do, and the tensors' names then."""


def _resizes(network: Network, space: SearchSpace, names: Sequence[str]) -> _Edited:
    owners: dict[str, frozenset[str]] = {}
    keep = {}
    for unit in space.units.values():
        if not any(isinstance(o, PruneChannels) for o in unit.axes.get("prune", ())):
            continue
        groups = recipe_of(space).coupling().groups
        for group in (groups[n] for n in unit.layers if n in groups):
            keep[group.root] = torch.arange(group.channels) % 2 == 0
            for cut in group.cuts:
                owners[cut.path] = owners.get(cut.path, frozenset()) | {f"{unit.name}:prune"}
    if not keep:
        return {}, [], list(names)
    edits, _ = resized(network.module, recipe_of(space).coupling().masks(keep))
    return owners, edits, list(names)


def _replacements(network: Network, space: SearchSpace, names: Sequence[str]) -> _Edited:
    owners, edits, longer = {}, list[Edit](), list(names)
    for unit, name, specs in _chains(network, space):
        layer = network.layers[name]
        owners[name] = frozenset({f"{unit}:rank"})
        edits.append(Replace(path=name, layers=specs))
        at = longer.index(layer.weight)
        longer[at : at + 1] = [f"{name}.{i}.weight" for i in range(len(specs))]
        if layer.bias is not None:
            longer[longer.index(layer.bias)] = f"{name}.{len(specs) - 1}.bias"
    return owners, edits, longer


def _chains(network: Network, space: SearchSpace) -> Iterator[tuple[str, str, tuple[LayerSpec, ...]]]:
    """(unit, layer, chain of its last legal rank) for every layer that may be factorised."""
    for unit in space.units.values():
        steps = [o for o in unit.axes.get("rank", ()) if isinstance(o, Factorise)]
        legal = [s for s in steps if recipe_of(space).reason(Candidate({unit.name: Choice((s,))})) is None]
        for name in unit.layers if legal else ():
            yield unit.name, name, factor_specs(network.layers[name], legal[-1], network.module.get_submodule(name))
