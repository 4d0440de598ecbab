"""Sizes of units' tensors as a file holds them: restored together, where the survey restores one unit alone.

A layer behind compressed ones gets gains that undo what those did as well. They spread its scales, or its float
weights, over more values, which take more bits. One network with every unit at a fairly coarse choice shows what a
layer inherits; each of the layer's choices is then measured with that gain on top of its own.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from torch import Tensor

from autocomp.coding.container import stored_bytes
from autocomp.coding.parts import Parts
from autocomp.coding.tensors import decode_tensor, encode_tensor, rescaled
from autocomp.core.candidate import Candidate
from autocomp.core.encodings import FloatTensor, round_scale
from autocomp.core.network import Network
from autocomp.core.run_folder import storage_errors, write_atomic
from autocomp.core.steps import FLOAT, Choice
from autocomp.errors import DataError
from autocomp.survey.database import Database
from autocomp.transforms.statistics import FloatStatistics, restore_statistics, with_gain
from autocomp.transforms.stitch import stitch

Sizes = dict[str, dict[str, int]]
"""Unit → storage choice's key → bytes in a file."""


def sizes_together(
    network: Network,
    choices: Mapping[str, Sequence[Choice]],
    database: Database,
    batches: Sequence[Tensor],
    path: Path,
) -> Sizes:
    """Bytes of every unit's choices, read from ``path`` where they were measured before.

    Args:
        network: folded, unchanged.
        choices: unit → its storage choices, priced.
        database: has their tensors.
        batches: calibration inputs that statistics are restored on.
        path: a file of this survey's; written where it is missing or damaged.
    """
    known = _read(path, choices)
    if known is None:
        gains = _inherited(network, choices, database, batches)
        known = {
            u: {c.key(): _bytes(network, database.records(u, c), gains) for c in every} for u, every in choices.items()
        }
        with storage_errors(path):
            write_atomic(path, json.dumps(known).encode())
    return known


def _read(path: Path, choices: Mapping[str, Sequence[Choice]]) -> Sizes | None:
    try:
        found = json.loads(path.read_bytes())
        return {u: {c.key(): int(found[u][c.key()]) for c in every} for u, every in choices.items()}
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _inherited(
    network: Network, choices: Mapping[str, Sequence[Choice]], database: Database, batches: Sequence[Tensor]
) -> dict[str, Tensor]:
    """Weight → gain [1] or [channels] that restoring gives it on top of its own, with all others compressed too."""
    alone = stitch(network, _coarse(choices, database), database.lookup)
    try:
        restored = restore_statistics(network, alone, batches, FloatStatistics.of(network, batches))
    except DataError:  # outputs that are not finite
        return {}
    gains = {}
    for layer in network.layers.values():
        before, after = alone.tensors[layer.weight], restored.tensors[layer.weight]
        if before is after:
            continue
        if isinstance(before, FloatTensor) or isinstance(after, FloatTensor):
            sums = [e.decode().transpose(0, layer.channel_axis).flatten(1).abs().sum(1) for e in (before, after)]
            gain = sums[1] / sums[0]
        else:
            gain = after.scale / before.scale
        gains[layer.weight] = gain.nan_to_num(1.0, 1.0, 1.0)
    return gains


def _coarse(choices: Mapping[str, Sequence[Choice]], database: Database) -> Candidate:
    """Every unit at the choice that a quarter of its choices are smaller than."""
    picks = {}
    for unit, every in choices.items():
        entries = {c: database.entry(unit, c) for c in every if c != FLOAT}
        rising = sorted((c for c, e in entries.items() if np.isfinite(e.kl)), key=lambda c: entries[c].bytes)
        if rising:
            picks[unit] = rising[len(rising) // 4]
    return Candidate(picks)


def _bytes(network: Network, records: Mapping[str, bytes], gains: Mapping[str, Tensor]) -> int:
    axes = {layer.weight: layer.channel_axis for layer in network.layers.values()}
    lengths = (len(_with(r, gains[n], axes[n])) if n in gains else len(r) for n, r in records.items())
    return sum(map(stored_bytes, lengths))


def _with(record: bytes, gain: Tensor, axis: int) -> bytes:
    """The record with ``gain`` [1] or [channels] on top."""
    parts = Parts.read(record)
    if not parts.channels:
        encoding = decode_tensor(record)
        channels = encoding.decode().shape[axis]
        return encode_tensor(with_gain(encoding, gain.expand(channels) if gain.numel() == 1 else gain, axis)[0])
    shared = gain.mean().reshape(1) if parts.channels == 1 else gain
    scales = round_scale(shared * shared.new_tensor(parts.scales()))
    return rescaled(record, np.ascontiguousarray(scales.numpy()))
