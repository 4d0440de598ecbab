"""What is remembered between processes: one JSON object a file, named by the conditions it holds under."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from autocomp.core.outcome import Measurement
from autocomp.core.run_folder import storage_errors, write_atomic

Size = TypeVar("Size", int, int | None)


def entry_path(folder: Path, kind: str, identity: Mapping[str, Any]) -> Path:
    """The file of exactly these conditions (JSON values)."""
    digest = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:32]
    return folder / f"{kind}-{digest}.json"


def read_json(path: Path) -> dict[str, Any] | None:
    """The object in ``path``; None where there is no file or it holds something else."""
    with storage_errors(path):
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
        except (FileNotFoundError, ValueError):
            return None
    return data if isinstance(data, dict) else None


def write_json(path: Path, data: Mapping[str, Any]) -> None:
    """Replace the object in ``path``; ``StorageError`` where the folder cannot be written."""
    with storage_errors(path):
        write_atomic(path, json.dumps(data, indent=1).encode())


def recall(path: Path) -> tuple[Measurement, int | None] | None:
    """What :func:`remember` wrote: a latency and the engine's bytes; None where there is nothing of that kind."""
    entry = read_json(path) or {}
    try:
        size = entry["engine_bytes"]
        return Measurement.from_json(entry["measurement"]), None if size is None else int(size)
    except (KeyError, TypeError, ValueError):
        return None


def remember(path: Path, key: str, measurement: Measurement, engine_bytes: Size) -> tuple[Measurement, Size]:
    """Write a latency under the key it was found for; returns what :func:`recall` will."""
    plain = measurement.to_json()
    write_json(path, {"key": key, "measurement": plain, "engine_bytes": engine_bytes})
    return Measurement.from_json(plain), engine_bytes
