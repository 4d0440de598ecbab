"""autocomp: hardware-aware compression search for trained PyTorch networks.

``autocomp.search`` finds the Pareto front, ``autocomp.load`` opens a file, ``autocomp.verify`` measures again
what a run claims, ``autocomp.report`` rebuilds its report. Heavy packages are imported when first needed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

__all__ = ["AutocompError", "__version__", "load", "report", "search", "verify"]

if TYPE_CHECKING:
    from autocomp.api import search
    from autocomp.errors import AutocompError
    from autocomp.loading import load
    from autocomp.pipeline import report, verify

_HOMES = {
    "search": "autocomp.api",
    "load": "autocomp.loading",
    "report": "autocomp.pipeline",
    "verify": "autocomp.pipeline",
    "AutocompError": "autocomp.errors",
}


def __getattr__(name: str) -> Any:
    """Public names, imported when first used."""
    import importlib

    if name in _HOMES:
        try:
            return getattr(importlib.import_module(_HOMES[name]), name)
        except ModuleNotFoundError as error:
            if error.name and error.name.startswith("autocomp"):
                raise AttributeError(name) from error
            raise
    raise AttributeError(f"module 'autocomp' has no attribute {name!r}")
