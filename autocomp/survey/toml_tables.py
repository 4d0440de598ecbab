"""Reading TOML strictly: every key known, every message names file, key, value and remedy."""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from autocomp.errors import ConfigError


def parse(path: Path) -> dict[str, Any]:
    """The file's content; :class:`ConfigError` where it is not TOML."""
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path.name}: not valid TOML: {error}") from None


def known(table: Mapping[str, Any], known: Sequence[str], file: str, where: str) -> None:
    """:class:`ConfigError` with the nearest name where a key of ``table`` is not ``known``."""
    for key in table:
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
            hint = f"did you mean {near[0]}?" if near else f"known: {', '.join(known)}"
            raise ConfigError(f"{file}: {where + '.' if where else ''}{key}: unknown key; {hint}")


def table(data: Mapping[str, Any], key: str, file: str, where: str = "") -> dict[str, Any]:
    """The table ``[key]``, empty where the file has none."""
    value = data.get(key, {})
    if not isinstance(value, dict):
        raise ConfigError(f"{file}: {where + '.' if where else ''}{key} = {value!r}; give a table [{key}]")
    return value


def tables(data: Mapping[str, Any], key: str, file: str) -> list[dict[str, Any]]:
    """The tables ``[[key]]``."""
    value = data.get(key, [])
    if not isinstance(value, list) or not all(isinstance(v, dict) for v in value):
        raise ConfigError(f"{file}: {key}: give tables [[{key}]]")
    return value


def texts(value: Any, file: str, where: str) -> list[str]:
    """One text or a list of them."""
    values = [value] if isinstance(value, str) else value
    if not isinstance(values, list) or not all(isinstance(v, str) for v in values):
        raise ConfigError(f"{file}: {where} = {value!r}; give a layer name, a glob or a list of them")
    return values


def matching(patterns: Iterable[str], layers: Iterable[str], file: str, where: str) -> set[str]:
    """Layers that any pattern matches; a pattern that matches none is an error."""
    names = list(layers)
    found: set[str] = set()
    for pattern in patterns:
        hits = {n for n in names if fnmatchcase(n, pattern)}
        if not hits:
            near = difflib.get_close_matches(pattern, names, n=3, cutoff=0.3)
            hint = f"near: {', '.join(near)}" if near else f"layers: {', '.join(names[:8])}"
            raise ConfigError(f"{file}: {where}: {pattern!r} matches no layer; {hint}")
        found |= hits
    return found
