"""The stitched database: every unit's tensors in every priced choice, made once and read on demand.

A candidate's network is stitched from it without quantizing anything again (Optimal Brain
Compression, Frantar and Alistarh 2022, section 4.4). The coded records of the artifact are the
storage: what is read here is byte for byte what a file holds.

A unit's file: 8 bytes ``ACUNIT01``; uint32 length of the header, little-endian; the header, UTF-8 JSON;
arrays and records, at the offsets that the header gives, counted from its end. Files are written whole
and renamed into place, so a file that is there is complete.
"""

from __future__ import annotations

import fcntl
import json
import mmap
import os
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from autocomp.coding.container import stored_bytes
from autocomp.coding.tensors import decode_tensor
from autocomp.core.encodings import Encoding
from autocomp.core.run_folder import storage_errors, write_atomic
from autocomp.core.steps import Choice
from autocomp.errors import CorruptFileError
from autocomp.survey.kept import Kept

MAGIC = b"ACUNIT01"


@dataclass(frozen=True, kw_only=True, eq=False)
class Entry:
    """One priced choice of a unit.

    Attributes:
        kl: KL divergence with only this choice made, nats.
        delta: float32 [d], whitened logit change.
        records: state-dict key → coded tensor.
        density: of a structural choice: unit → storage choice's key → coded bytes a weight, relative to the
            whole layer's.
    """

    kl: float
    delta: np.ndarray
    records: Mapping[str, bytes]
    density: Mapping[str, Mapping[str, float]] = field(default_factory=dict)

    @property
    def bytes(self) -> int:
        """What all the unit's tensors take in a file."""
        return sum(stored_bytes(len(r)) for r in self.records.values())


def write_unit(path: Path, entries: Mapping[str, Entry], seconds: float) -> None:
    """Write a unit's entries, by canonical key of their choice, in one atomic step."""
    header: dict[str, Any] = {"seconds": seconds, "entries": {}}
    parts: list[bytes] = []
    offset = 0

    def put(data: bytes) -> list[int]:
        nonlocal offset
        parts.append(data)
        offset += len(data)
        return [offset - len(data), len(data)]

    for key, entry in entries.items():
        header["entries"][key] = {
            "kl": entry.kl.hex(),
            "delta": put(np.ascontiguousarray(entry.delta, dtype="<f4").tobytes()),
            "records": {name: put(bytes(record)) for name, record in entry.records.items()},
            "density": entry.density,
        }
    text = json.dumps(header, separators=(",", ":")).encode()
    with storage_errors(path):
        write_atomic(path, b"".join((MAGIC, struct.pack("<I", len(text)), text, *parts)))


def add_to_unit(path: Path, entries: Mapping[str, Entry], seconds: float) -> bool:
    """Write entries beside those that the file holds; several processes may do so at the same time.

    What is in the file stays as it is: another process may have read it already.

    Args:
        path: a unit's file, made where there is none or a damaged one.
        entries: by canonical key of their choice.
        seconds: that they took; added to those of the others.

    Returns:
        Whether all of ``entries`` went in; False where another process was faster with one of them.
    """
    with storage_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = os.open(path.parent / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)  # given back by the kernel however its holder ends
        known = readable(path)
        held = {k: known.entry(k) for k in known.choices()} if known is not None else {}
        write_unit(path, dict(entries) | held, seconds + (known.seconds if known is not None else 0.0))
        return held.keys().isdisjoint(entries)
    finally:
        os.close(lock)


class UnitFile:
    """A unit's file, mapped into memory; entries are cut out of it on demand.

    Args:
        path: written by :func:`write_unit`.

    Raises:
        CorruptFileError: not such a file, or shorter than its header says.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            with path.open("rb") as file:
                self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            if self._map[:8] != MAGIC:
                raise ValueError("wrong magic")
            (length,) = struct.unpack("<I", self._map[8:12])
            header = json.loads(self._map[12 : 12 + length])
            self._start = 12 + length
            self._entries: dict[str, dict[str, Any]] = header["entries"]
            self.seconds = float(header["seconds"])
            spans = [s for e in self._entries.values() for s in (e["delta"], *e["records"].values())]
            if self._start + max((o + n for o, n in spans), default=0) != len(self._map):
                raise ValueError("wrong length")
        except (ValueError, KeyError, TypeError, struct.error) as error:
            raise CorruptFileError(f"{path} is damaged ({error}); delete it and run again") from error

    def __contains__(self, key: str) -> bool:
        return key in self._entries

    def choices(self) -> list[str]:
        """Canonical keys of the choices in the file."""
        return list(self._entries)

    def _cut(self, span: list[int]) -> bytes:
        begin = self._start + span[0]
        return self._map[begin : begin + span[1]]

    def entry(self, key: str) -> Entry:
        """The entry of a choice; KeyError where it was not priced."""
        found = self._entries[key]
        return Entry(
            kl=float.fromhex(found["kl"]),
            delta=np.frombuffer(self._cut(found["delta"]), dtype="<f4").astype(np.float32),
            records=self.records(key),
            density=found["density"],
        )

    def records(self, key: str) -> dict[str, bytes]:
        """Coded tensors of a choice; KeyError where it was not priced."""
        return {name: self._cut(span) for name, span in self._entries[key]["records"].items()}


def readable(path: Path) -> UnitFile | None:
    """The file, or None where there is none or it is damaged (it is then made anew)."""
    try:
        return UnitFile(path) if path.is_file() else None
    except CorruptFileError:
        return None


@dataclass(eq=False)
class Database:
    """Tensors by (unit, choice). Holds paths only until it is read, so it can be sent to another process.

    Args:
        files: unit → its file.
        kept: tensors decoded already; the survey leaves here what it has just coded.
    """

    files: Mapping[str, Path]
    kept: Kept = field(default_factory=Kept, repr=False)
    _open: dict[str, UnitFile] = field(default_factory=dict, init=False, repr=False)

    def __getstate__(self) -> dict[str, Any]:
        return {"files": dict(self.files)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["files"])  # type: ignore[misc]

    def _unit(self, unit: str) -> UnitFile:
        if unit not in self._open:
            if unit not in self.files:
                raise KeyError(f"unit {unit} was not surveyed")
            self._open[unit] = UnitFile(self.files[unit])
        return self._open[unit]

    def has(self, unit: str, choice: Choice) -> bool:
        """Whether this storage choice was priced."""
        return unit in self.files and choice.key() in self._unit(unit)

    def seconds(self, unit: str) -> float:
        """Wall seconds that pricing the unit took."""
        return self._unit(unit).seconds

    def entry(self, unit: str, choice: Choice) -> Entry:
        """Price and records of a choice; KeyError where it was not priced."""
        return self._unit(unit).entry(choice.key())

    def records(self, unit: str, choice: Choice) -> dict[str, bytes]:
        """State-dict key → coded tensor, as the artifact stores it; KeyError where it was not priced."""
        return self._unit(unit).records(choice.key())

    def lookup(self, unit: str, choice: Choice) -> dict[str, Encoding]:
        """State-dict key → encoding; KeyError where it was not priced. Treat the tensors as read only."""
        found = self.kept.get(unit, choice)
        if found is None:
            found = {n: decode_tensor(r) for n, r in self.records(unit, choice).items()}
            self.kept.put(unit, choice, found)
        return found
