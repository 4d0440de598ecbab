"""Trained weights under the user's cache folder: written whole or not at all, checked when read."""

from __future__ import annotations

import hashlib
import json
import os
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from autocomp.core.progress import Progress
from autocomp.environment import cache_folder


def cached(
    name: str, key: Mapping[str, Any], make: Callable[[], dict[str, torch.Tensor]], progress: Progress
) -> dict[str, torch.Tensor]:
    """State dict kept under ``name`` and the hash of ``key``; made and stored where there is none.

    A damaged file is made again, with a note; a folder that cannot be written costs a note, no error.
    """
    text = json.dumps(key, sort_keys=True, separators=(",", ":"))
    path = cache_folder() / "weights" / f"{name}-{hashlib.sha256(text.encode()).hexdigest()[:16]}.safetensors"
    if path.is_file():
        state = _read(path)
        if state is not None:
            return state
        progress.note(f"{path} is damaged: it is made again")
    state = {k: v.detach().clone().contiguous() for k, v in make().items()}
    try:
        _write(path, state, text)
    except OSError as error:
        progress.note(f"{path.parent}: trained weights could not be kept ({error.strerror}); set AUTOCOMP_CACHE")
    return state


def content_hash(state: Mapping[str, torch.Tensor]) -> str:
    """SHA-256 of names, types, shapes and values."""
    digest = hashlib.sha256()
    for key in sorted(state):
        value = state[key].detach().cpu().contiguous()
        digest.update(repr((key, str(value.dtype), tuple(value.shape))).encode())
        digest.update(value.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _read(path: Path) -> dict[str, torch.Tensor] | None:
    """The state, or None where the file is damaged."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            state = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118  (a file, not a dict)
            expected = (file.metadata() or {}).get("sha256")
    except (SafetensorError, OSError):
        return None
    return state if expected == content_hash(state) else None


def _write(path: Path, state: dict[str, torch.Tensor], key: str) -> None:
    from safetensors.torch import save

    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    metadata = {"sha256": content_hash(state), "key": key, "torch": torch.__version__}
    try:
        with draft.open("wb") as file:
            file.write(save(state, metadata))
            file.flush()
            os.fsync(file.fileno())
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)
