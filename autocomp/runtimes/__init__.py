"""Runtimes: code that builds an engine from an ONNX model, runs it and times it.

One module that defines ``runtime()`` is one runtime; it is found by its file name. Listing them
imports none of them, and importing one does not import the package it drives.
"""

from __future__ import annotations

import ast
import importlib
from pathlib import Path
from types import ModuleType
from typing import cast

from autocomp.core.hardware import Runtime
from autocomp.core.plugins import names as module_names
from autocomp.errors import UnknownNameError


def names() -> list[str]:
    """Names of the runtimes, sorted: modules here that define ``runtime()`` at top level."""
    return [name for name in module_names(__name__) if _defines_runtime(Path(__file__).with_name(f"{name}.py"))]


def module(name: str) -> ModuleType:
    """The module of a runtime; :class:`UnknownNameError` with the nearest names where there is none."""
    known = names()
    if name not in known:
        raise UnknownNameError("runtime", name, known)
    return importlib.import_module(f"{__name__}.{name}")


def find(name: str) -> Runtime:
    """The runtime of that name, usable here or not (see ``missing()``)."""
    return cast(Runtime, module(name).runtime())


def plan_suffix(name: str) -> str | None:
    """Suffix of the plan files that a runtime's users ship (".plan"), None where they ship the ONNX file."""
    return getattr(module(name), "PLAN_SUFFIX", None)


def _defines_runtime(path: Path) -> bool:
    if not path.is_file():
        return False
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return any(isinstance(node, ast.FunctionDef) and node.name == "runtime" for node in tree.body)
