"""Rebuild a network around a user's own module, as an artifact recorded it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from autocomp.core.edits import Edit
from autocomp.core.network import Network
from autocomp.errors import DataError
from autocomp.graph import fold
from autocomp.graph.edit import apply_edits
from autocomp.graph.trace import float_copy, network_of


def attach(
    model: nn.Module,
    folds: Sequence[tuple[str, str]],
    example_shape: Sequence[int],
    dtype: torch.dtype = torch.float32,
    edits: Sequence[Edit] = (),
) -> Network:
    """The network of ``model`` with exactly the recorded norms folded and edits made; ``model`` is not touched.

    Its weights are whatever ``model`` holds (all of them are about to be replaced): only the structure
    is taken from it, and no norm is folded that was not folded then.

    Args:
        model: an instance of the architecture, trained or not.
        folds: (layer, norm) module paths.
        example_shape: of one input, without the batch axis.
        dtype: of the inputs (``torch.int64`` for token ids, all zero here).
        edits: structural edits of the folded module, in order.

    Raises:
        DataError: the module lacks these layers, or does not run on inputs of this shape.
    """
    module = float_copy(model)
    for layer, norm in folds:
        fold.get_module(module, layer)
        if isinstance(fold.get_module(module, norm), nn.Identity):
            raise DataError(f"{norm!r} is already folded in the given module; pass a fresh instance of its class")
    fold.fold_all(module, folds)
    apply_edits(module, edits)
    generator = torch.Generator().manual_seed(0)
    shape = (2, *example_shape)
    example = torch.randn(shape, generator=generator) if dtype.is_floating_point else torch.zeros(shape, dtype=dtype)
    return network_of(module, example)
