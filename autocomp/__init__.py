"""autocomp: hardware-aware compression search for trained PyTorch networks.

``autocomp.search`` finds the Pareto front, ``autocomp.sweep`` those of many models, targets and budgets,
``autocomp.load`` opens a file, ``autocomp.verify`` measures again what a run claims, ``autocomp.report`` rebuilds its
report. Heavy packages are imported when first needed.
"""

from __future__ import annotations

import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

__all__ = ["AutocompError", "__version__", "load", "report", "search", "sweep", "verify"]

if TYPE_CHECKING:
    from autocomp.api import search, sweep
    from autocomp.errors import AutocompError
    from autocomp.loading import load
    from autocomp.pipeline import report, verify

_HOMES = {
    "search": "autocomp.api",
    "sweep": "autocomp.api",
    "load": "autocomp.loading",
    "report": "autocomp.pipeline",
    "verify": "autocomp.pipeline",
    "AutocompError": "autocomp.errors",
}


class _FolderAndFunction(ModuleType):
    """A folder of this package that has the name of a public function: ``autocomp.search(...)`` still calls it."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return _public(self.__name__.rpartition(".")[2])(*args, **kwargs)


class _Package(ModuleType):
    """Importing ``autocomp.search.<module>`` makes the folder an attribute here and would hide the function."""

    def __setattr__(self, name: str, value: Any) -> None:
        if name in _HOMES and isinstance(value, ModuleType):
            value.__class__ = _FolderAndFunction
        super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package


def _public(name: str) -> Any:
    import importlib

    try:
        return getattr(importlib.import_module(_HOMES[name]), name)
    except ModuleNotFoundError as error:
        if error.name and error.name.startswith("autocomp"):
            raise AttributeError(name) from error
        raise


def __getattr__(name: str) -> Any:
    """Public names, imported when first used."""
    if name in _HOMES:
        return _public(name)
    raise AttributeError(f"module 'autocomp' has no attribute {name!r}")
