"""Coupled groups kept in the run's cache: another process, or the same command again, need not find them anew.

A file is JSON: ``{"crc32": of the text of "coupling", "coupling": {"groups": [...], "refused": [...]}}``. Entries of a
cut are runs ``[first, step, length]``: consecutive channels mostly belong to consecutive entries, or to none.
"""

from __future__ import annotations

import json
import zlib
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from autocomp.core.network import Network, Skipped
from autocomp.core.run_folder import storage_errors, write_atomic
from autocomp.graph._cuts import Cut
from autocomp.graph.coupling import ChannelGroup, Coupling, coupled_groups
from autocomp.survey.keys import coupling_key


def stored_coupling(network: Network, cache: Path) -> Coupling:
    """:func:`~autocomp.graph.coupling.coupled_groups`, read from ``cache`` where they were found before.

    A file that is missing or damaged is made anew.

    Raises:
        StorageError: the cache cannot be written.
    """
    if network.graph is None:
        return coupled_groups(network)
    path = cache / "coupling" / f"{coupling_key(network)}.json"
    known = _read(path)
    if known is None:
        known = coupled_groups(network)
        text = _text(_to_json(known))
        with storage_errors(path):
            write_atomic(path, f'{{"crc32":{zlib.crc32(text.encode())},"coupling":{text}}}\n'.encode())
    return known


def _read(path: Path) -> Coupling | None:
    try:
        data = json.loads(path.read_bytes())
        found = data["coupling"]
        return _from_json(found) if zlib.crc32(_text(found).encode()) == data["crc32"] else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _text(data: Any) -> str:
    return json.dumps(data, separators=(",", ":"))


def _to_json(coupling: Coupling) -> dict[str, Any]:
    groups = [
        {**vars(group), "cuts": [{**vars(cut), "entries": _runs(cut.entries)} for cut in group.cuts]}
        for group in coupling.groups.values()
    ]
    return {"groups": groups, "refused": [vars(skipped) for skipped in coupling.refused]}


def _from_json(data: dict[str, Any]) -> Coupling:
    groups = {}
    for group in data["groups"]:
        cuts = tuple(Cut(**{**cut, "entries": _entries(cut["entries"])}) for cut in group["cuts"])
        names = {key: tuple(group[key]) for key in ("layers", "consumers")}
        groups[group["root"]] = ChannelGroup(**{**group, **names, "cuts": cuts})
    return Coupling(groups=groups, refused=tuple(Skipped(**skipped) for skipped in data["refused"]))


def _runs(entries: Tensor) -> list[list[int]]:
    """Runs [first, step, length] of equal differences."""
    runs: list[list[int]] = []
    for value in entries.tolist():
        if runs:
            first, step, length = runs[-1]
            if length == 1 or value == first + step * length:
                runs[-1] = [first, value - first if length == 1 else step, length + 1]
                continue
        runs.append([value, 0, 1])
    return runs


def _entries(runs: list[list[int]]) -> Tensor:
    """The reverse of :func:`_runs`: int64."""
    parts = [first + step * torch.arange(length) for first, step, length in runs]
    return torch.cat(parts) if parts else torch.zeros(0, dtype=torch.int64)
