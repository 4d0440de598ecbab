"""What is remembered between processes: one JSON object a file, named by the conditions it holds under."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from autocomp.core.run_folder import storage_errors, write_atomic


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
