"""The file of a sweep → its searches, in the order they run. Every bad value is one line that names file and key."""

from __future__ import annotations

import dataclasses
import itertools
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from autocomp import config
from autocomp.config import Given
from autocomp.core.settings import Settings
from autocomp.errors import ConfigError, UnknownNameError

AXES = {"models": "model", "targets": "target", "budgets": "budget", "seeds": "seed"}
"""Key of [sweep] → the option of ``autocomp search`` that it lists."""

MODEL_KEYS = ("model", "weights", "data", "image_size", "normalize", "name")
"""Keys of a model that is a table; ``name`` is what its folders and rows are called."""

NOT_COMMON = {
    "out": "each search has a folder inside the sweep's; choose that one with --out",
    "storage": "each search keeps its study in its own folder; leave it out",
}
"""Options of ``autocomp search`` that the searches of a sweep cannot have in common."""


@dataclass(frozen=True, kw_only=True)
class Search:
    """One search of a sweep.

    Attributes:
        name: its folder inside the sweep's.
        model, target, budget: as the table shows them; the budget as it was written, "" without one.
        settings: resolved; ``out`` and ``cache`` lie in the sweep's folder.
    """

    name: str
    model: str
    target: str
    budget: str
    settings: Settings


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """What was asked.

    Attributes:
        source: the file, for people.
        folder: absolute path of the sweep's folder.
        own_cache: whether the shared cache is the sweep's own (``--fresh`` then empties it).
        searches: in the order they run.
        provenance: option → "default", "flag" or the file, for what the searches have in common.
    """

    source: str
    folder: Path
    own_cache: bool
    searches: tuple[Search, ...]
    provenance: dict[str, str]


def read(source: Path | Mapping[str, Any], flags: Mapping[str, Any], out: Path | None = None) -> Sweep:
    """The searches that a file asks for.

    Args:
        source: TOML file with [sweep] and [search], or the same as a mapping.
        flags: options common to all searches, over those of [search]; None means not given.
        out: the sweep's folder; default: ``runs/<stem of the file>``.

    Raises:
        ConfigError, UnknownNameError, UnsupportedError: a key or value that is not allowed, or two searches that
            are the same.
    """
    if isinstance(source, Mapping):
        file, stem, data = "sweep", "sweep", dict(source)
    else:
        file, stem, data = str(source), source.stem, config.read_toml(source, str(source))
    _check_keys(data, ("sweep", "search"), file, "table")
    axes, common = _axes(_table(data, "sweep", file), file), _common(_table(data, "search", file), file)
    for axis, option in AXES.items():
        if axis in axes and option in common:
            raise ConfigError(f"{common[option].label}: [sweep] has {axis}; give the {option} in one of them")
    given = Given.flags(flags)
    for option, reason in {**{o: f"list it as {a} in [sweep]" for a, o in AXES.items()}, **NOT_COMMON}.items():
        if option in given:
            raise ConfigError(f"{given[option].label}: not for a sweep: {reason}")
    folder = (out or Path("runs") / stem).expanduser().absolute()
    searches: dict[str, Search] = {}
    for where, name, combination in _combinations(axes):
        settings, provenance = config.settle({**common, **combination, **given})
        model = name or config.model_label(settings.model)
        search = _search(settings, model, folder)
        if search.name in searches:
            raise ConfigError(
                f"{file}: {where}: another search has the folder {search.name} already; list nothing twice, and give "
                'models that are called alike names: {model = "...", name = "..."}'
            )
        searches[search.name] = search
    shared = dict.fromkeys(config.OPTIONS, "default") | {k: g.source for k, g in {**common, **given}.items()}
    own_cache = provenance["cache"] == "default"
    return Sweep(source=file, folder=folder, own_cache=own_cache, searches=tuple(searches.values()), provenance=shared)


def _search(settings: Settings, model: str, folder: Path) -> Search:
    name = config.run_name(settings, model)
    return Search(
        name=name,
        model=model,
        target=config.target_label(settings.target),
        budget=settings.budget_text,
        settings=dataclasses.replace(settings, out=folder / name, cache=settings.cache or folder / "cache"),
    )


# the tables of the file


def _table(data: Mapping[str, Any], key: str, file: str) -> dict[str, Any]:
    value = data.get(key, {})
    if not isinstance(value, Mapping):
        raise ConfigError(f"{file}: {key} = {value!r}; give a table [{key}]")
    return {name.replace("-", "_"): item for name, item in value.items()}


def _check_keys(names: Mapping[str, Any], known: tuple[str, ...], where: str, kind: str = "key") -> None:
    for name in names:
        if name not in known:
            raise UnknownNameError(kind, name, known).at(where)


def _axes(table: Mapping[str, Any], file: str) -> dict[str, list[dict[str, Given]]]:
    """Axis → its entries, each as option → value."""
    _check_keys(table, tuple(AXES), f"{file}: [sweep]")
    axes: dict[str, list[dict[str, Given]]] = {}
    for axis, values in table.items():
        if not isinstance(values, list | tuple) or not values:
            raise ConfigError(f"{file}: [sweep] {axis} = {values!r}; give a list of at least one, {axis} = [...]")
        labels = [f"{file}: {axis}[{i}]" for i in range(len(values))]
        axes[axis] = [_entry(AXES[axis], value, label, file) for value, label in zip(values, labels, strict=True)]
    return axes


def _entry(option: str, value: Any, label: str, file: str) -> dict[str, Given]:
    if not isinstance(value, Mapping):
        return {option: Given(value, label, file)}
    if option != "model":
        raise ConfigError(f"{label} = {dict(value)!r}; give one {option}, not a table")
    table = {name.replace("-", "_"): item for name, item in value.items()}
    _check_keys(table, MODEL_KEYS, label)
    if "model" not in table:
        raise ConfigError(f'{label}: no model; give {{model = "...", {", ".join(table)} = ...}}')
    return {key: Given(item, f"{label}.{key}", file) for key, item in table.items()}


def _common(table: Mapping[str, Any], file: str) -> dict[str, Given]:
    """[search]: option → value."""
    _check_keys(table, config.OPTIONS, f"{file}: [search]", "option")
    for option, reason in NOT_COMMON.items():
        if option in table:
            raise ConfigError(f"{file}: [search] {option} = {table[option]!r}: not for a sweep: {reason}")
    return {name: Given(value, f"{file}: [search] {name}", file) for name, value in table.items()}


def _combinations(axes: Mapping[str, list[dict[str, Given]]]) -> Iterator[tuple[str, str, dict[str, Given]]]:
    """Every combination: where it stands in the file, the name its model was given or "", option → value."""
    listed = {axis: list(enumerate(axes[axis])) for axis in AXES if axis in axes}
    for picks in itertools.product(*listed.values()):
        where = ", ".join(f"{axis}[{i}]" for axis, (i, _) in zip(listed, picks, strict=True)) or "[search]"
        merged = {option: given for _, entry in picks for option, given in entry.items()}
        yield where, _name(merged.pop("name", None)), merged


def _name(given: Given | None) -> str:
    if given is None:
        return ""
    if not isinstance(given.value, str) or not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9._-]*", given.value):
        raise ConfigError(f"{given.label} = {given.value!r}: allowed are letters, digits, '.', '_' and '-'")
    return given.value
