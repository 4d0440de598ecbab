"""Plugins are files: the name asked for is the module's name in its package."""

from __future__ import annotations

import importlib
import pkgutil
from types import ModuleType

from autocomp.errors import UnknownNameError


def names(package: str) -> list[str]:
    """Names of the plugins in ``package`` ("autocomp.search.samplers"), sorted; '_' files are not plugins."""
    module = importlib.import_module(package)
    return sorted(m.name for m in pkgutil.iter_modules(module.__path__) if not m.name.startswith("_"))


def find(package: str, kind: str, name: str) -> ModuleType:
    """The plugin module; :class:`UnknownNameError` with the nearest names where there is none."""
    known = names(package)
    if name not in known:
        raise UnknownNameError(kind, name, known)
    return importlib.import_module(f"{package}.{name}")
