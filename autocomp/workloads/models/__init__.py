"""Built-in model families: a file a family, each with ``MODELS``, name → factory of the class count."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import TYPE_CHECKING

from autocomp.core import plugins
from autocomp.errors import UnknownNameError

if TYPE_CHECKING:
    from torch import nn


def _registry() -> dict[str, Callable[[int], nn.Module]]:
    factories: dict[str, Callable[[int], nn.Module]] = {}
    for family in plugins.names(__name__):
        factories.update(importlib.import_module(f"{__name__}.{family}").MODELS)
    return factories


def names() -> list[str]:
    """Names of the built-in models, sorted."""
    return sorted(_registry())


def build(name: str, classes: int) -> nn.Module:
    """The network ``name`` with freshly initialised weights and ``classes`` outputs.

    Raises:
        UnknownNameError: no built-in model has this name.
    """
    registry = _registry()
    if name not in registry:
        raise UnknownNameError("model", name, registry)
    return registry[name](classes)
