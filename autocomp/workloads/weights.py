"""Weights from files: safetensors, or torch checkpoints read with ``weights_only=True``. Nothing is unpickled."""

from __future__ import annotations

import pickle
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from autocomp.errors import CorruptFileError, DataError

_WRAPPERS = ("state_dict", "model", "model_state_dict")
_PREFIXES = ("module.", "_orig_mod.")  # DataParallel, torch.compile
_SHOWN = 3


def load_state(path: Path) -> dict[str, torch.Tensor]:
    """The state dict in ``path``, on the CPU.

    Checkpoints may hold it directly or under "state_dict", "model" or "model_state_dict"; the prefixes
    of DataParallel and torch.compile are removed.

    Raises:
        DataError: no such file, a pickle of objects, or no state dict inside.
        CorruptFileError: the file is damaged.
    """
    if not path.is_file():
        raise DataError(f"weights {path}: there is no such file; give a safetensors file or a torch checkpoint")
    with path.open("rb") as file:
        start = file.read(16)
    is_safetensors = len(start) > 8 and start[8:9] == b"{"
    state = _safetensors(path) if is_safetensors or path.suffix == ".safetensors" else _checkpoint(path)
    for prefix in _PREFIXES:
        if state and all(key.startswith(prefix) for key in state):
            state = {key.removeprefix(prefix): value for key, value in state.items()}
    return state


def _safetensors(path: Path) -> dict[str, torch.Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except (SafetensorError, KeyError, ValueError) as error:
        raise CorruptFileError(f"weights {path}: damaged safetensors file ({_line(error)}); get it again") from error


def _checkpoint(path: Path) -> dict[str, torch.Tensor]:
    try:
        found: Any = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        held = re.search(r"(?:GLOBAL|global|class) ([\w.]+\.[\w.]+)", str(error))
        what = f" ({held.group(1)})" if held else ""
        raise DataError(
            f"weights {path}: a pickle that holds more than tensors{what}; loading it could run any code, so it is "
            "refused; where you trust it, save its state_dict with safetensors.torch.save_file and give that file"
        ) from error
    except (RuntimeError, EOFError, OSError, ValueError, KeyError) as error:
        raise CorruptFileError(
            f"weights {path}: no readable torch checkpoint ({_line(error)}); get it again"
        ) from error
    for wrapper in _WRAPPERS:
        if isinstance(found, Mapping) and isinstance(found.get(wrapper), Mapping):
            found = found[wrapper]
            break
    if not isinstance(found, Mapping) or not found or not all(isinstance(v, torch.Tensor) for v in found.values()):
        raise DataError(
            f"weights {path}: no state dict inside; expected name → tensor, at the top or under {', '.join(_WRAPPERS)}"
        )
    return {str(key): value for key, value in found.items()}


def apply_state(model: nn.Module, state: Mapping[str, torch.Tensor], *, source: str, classes: int | None) -> None:
    """Put ``state`` into ``model``; every tensor must be there, of the right shape and finite.

    Args:
        model: changed in place.
        state: keys and shapes of the model's state dict; ``num_batches_tracked`` may be missing.
        source: names the weights in messages.
        classes: of the data; a head of another size is refused in these words.

    Raises:
        DataError: another head, missing or unexpected tensors, wrong shapes, NaN or infinity.
    """
    own = model.state_dict()
    _check_shapes(own, state, source, classes)
    missing = [k for k in own if k not in state and not k.endswith("num_batches_tracked")]
    unexpected = [k for k in state if k not in own]
    if missing or unexpected:
        parts = [f"{_few(missing)} missing"] * bool(missing) + [f"{_few(unexpected)} not in the model"] * bool(
            unexpected
        )
        raise DataError(f"weights {source}: {'; '.join(parts)}; give weights of this very architecture")
    check_finite(state, source)
    model.load_state_dict({k: v.to(own[k].dtype) for k, v in state.items()}, strict=False)


def check_finite(state: Mapping[str, torch.Tensor], source: str) -> None:
    """:class:`DataError` naming the tensors that hold NaN or infinity."""
    bad = [k for k, v in state.items() if v.is_floating_point() and not bool(torch.isfinite(v).all())]
    if bad:
        raise DataError(f"weights {source}: {_few(bad)} hold NaN or infinity; the network cannot be compressed")


def _check_shapes(
    own: Mapping[str, torch.Tensor], state: Mapping[str, torch.Tensor], source: str, classes: int | None
) -> None:
    wrong = [k for k in own if k in state and own[k].shape != state[k].shape]
    if not wrong:
        return
    heads = {
        state[k].shape[0]
        for k in wrong
        if own[k].dim() and own[k].shape[0] == classes and own[k].shape[1:] == state[k].shape[1:]
    }
    if len(heads) == 1 and all(own[k].dim() and state[k].shape[:1] == (next(iter(heads)),) for k in wrong):
        raise DataError(
            f"weights {source}: weights have {heads.pop()} classes, data has {classes}; "
            "give weights trained on these classes"
        )
    first = wrong[0]
    more = f" (and {len(wrong) - 1} more)" if len(wrong) > 1 else ""
    raise DataError(
        f"weights {source}: {first} has shape {list(state[first].shape)}, the model expects "
        f"{list(own[first].shape)}{more}; give weights of this very architecture"
    )


def _few(names: list[str]) -> str:
    """The first names, and how many more there are."""
    rest = len(names) - _SHOWN
    return ", ".join(names[:_SHOWN]) + (f" and {rest} more" if rest > 0 else "")


def _line(error: BaseException) -> str:
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[0][:200]
