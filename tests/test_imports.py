"""Who may import whom, and what may not be imported before it is needed."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import autocomp

PACKAGE = Path(autocomp.__file__).parent

FLOORS = (
    ("errors",),
    ("core", "environment"),
    ("cluster",),
    ("graph", "coding"),
    ("transforms",),
    ("runtimes",),
    ("profiling",),
    ("evaluators",),
    ("survey", "planner", "finish", "executors", "report", "workloads"),
    ("search",),
    ("stages",),
    ("pipeline", "loading"),
    ("config",),
    ("sweeps",),
    ("api", "terminal", "cli_options"),
    ("cli_sweep",),
    ("cli",),
    ("__main__",),
)
"""From the ground up. A module may import its own part and any floor below, never a neighbour on its floor."""

ONLY_FOR = {"config": {"cli", "cli_sweep", "api", "sweeps", "__init__"}}
"""Parts that nobody but these may import."""

HEAVY = (
    "torch",
    "optuna",
    "ray",
    "onnx",
    "onnxruntime",
    "openvino",
    "pandas",
    "matplotlib",
    "plotly",
    "sklearn",
    "scipy",
)


def floor_of(part: str) -> int:
    """Height of a part; ``__init__`` of the package and ``testing`` stand above everything."""
    if part in ("__init__", "testing"):
        return len(FLOORS)
    return next(height for height, parts in enumerate(FLOORS) if part in parts)


def part_of(module: str) -> str:
    """ "autocomp.core.row" → "core"; "autocomp" → "__init__"."""
    names = module.split(".")
    return names[1] if len(names) > 1 else "__init__"


def module_name(path: Path) -> str:
    names = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(names[:-1] if names[-1] == "__init__" else names)


def imports_of(path: Path) -> Iterator[tuple[str, int]]:
    """Every module of autocomp that ``path`` imports, inside functions and for type checking too."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    own = module_name(path).split(".")
    package = own if path.name == "__init__.py" else own[:-1]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.startswith("autocomp."):
                    yield alias.name, node.lineno
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) + 1 - node.level] if node.level else []
            source = ".".join([*base, *([node.module] if node.module else [])])
            if source.split(".")[0] != "autocomp":
                continue
            for alias in node.names:
                if alias.name != "__version__":
                    yield (f"autocomp.{alias.name}" if source == "autocomp" else source), node.lineno


SOURCES = sorted(PACKAGE.rglob("*.py"))


@pytest.mark.parametrize("path", SOURCES, ids=[str(p.relative_to(PACKAGE)) for p in SOURCES])
def test_imports_point_downwards(path: Path) -> None:
    part = part_of(module_name(path))
    wrong = []
    for target, line in imports_of(path):
        other = part_of(target)
        if other == part or part in ("__init__", "testing"):
            continue
        if floor_of(other) >= floor_of(part) or part not in ONLY_FOR.get(other, {part}):
            wrong.append(f"line {line}: {part} may not import {target}")
    assert not wrong, "\n".join(wrong)


def test_every_part_has_a_floor() -> None:
    parts = {part_of(module_name(p)) for p in SOURCES}
    assert parts - {"__init__", "testing"} <= {p for floor in FLOORS for p in floor}


def loaded_after(code: str) -> set[str]:
    """Top-level packages in ``sys.modules`` of a fresh interpreter that ran ``code``."""
    script = f"import sys, json\n{code}\nprint(json.dumps(sorted({{m.split('.')[0] for m in sys.modules}})))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=60)
    return set(json.loads(done.stdout.splitlines()[-1]))


def test_import_is_light() -> None:
    assert loaded_after("import autocomp").isdisjoint(HEAVY)


def test_help_is_light() -> None:
    code = """
from autocomp import cli
sys.argv = ["autocomp", "--help"]
try:
    code = cli.main()
except SystemExit as stop:
    code = stop.code
assert not code, code
"""
    assert loaded_after(code).isdisjoint(HEAVY)


def test_nouns_are_light() -> None:
    """``core`` and ``config`` are read by the command line before it knows what to do."""
    modules = [module_name(p) for p in SOURCES if part_of(module_name(p)) in ("errors", "core", "config")]
    assert loaded_after("import " + ", ".join(modules)).isdisjoint(HEAVY)


def test_exported_names() -> None:
    assert sorted(autocomp.__all__) == list(autocomp.__all__)
    for name in autocomp.__all__:
        assert getattr(autocomp, name) is not None, name
    assert {"search", "load", "verify", "report"} <= set(autocomp.__all__)
    with pytest.raises(AttributeError, match="nothing_like_this"):
        _ = autocomp.nothing_like_this


def test_public_functions_survive_their_packages() -> None:
    """``autocomp.search`` and ``autocomp.report`` are functions and folders: importing one keeps the other callable."""
    code = """
import importlib
import autocomp
importlib.import_module("autocomp.report.format")
importlib.import_module("autocomp.search.front")
assert callable(autocomp.search) and callable(autocomp.report)
from autocomp.report import format as one
import autocomp.report.format as two
assert one is two
"""
    loaded_after(code)
