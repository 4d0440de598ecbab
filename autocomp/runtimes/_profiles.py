"""Hardware profiles: TOML files read strictly (schema: docs/hardware_profiles.md).

A key that is not in the schema is an error, not a comment, and a number without unit and source is
not accepted: what is unknown stays out of the file.
"""

from __future__ import annotations

import difflib
import math
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from autocomp import runtimes
from autocomp.core import shipped
from autocomp.core.hardware import HardwareProfile, Placement, Target
from autocomp.errors import AutocompError, ConfigError

LAYER_KINDS = ("conv1d", "conv2d", "conv3d", "conv_transpose2d", "linear", "embedding")
PRECISIONS = ("float32", "tf32", "bfloat16", "float16", "float8", "int8", "int4")

# Dimension → unit → factor to the base unit (the one whose factor is 1).
UNITS: Mapping[str, Mapping[str, float]] = {
    "bytes": {"B": 1, "KB": 1e3, "MB": 1e6, "GB": 1e9, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30},
    "time": {"s": 1, "ms": 1e-3, "us": 1e-6, "ns": 1e-9},
    "bandwidth": {"B/s": 1, "MB/s": 1e6, "GB/s": 1e9, "TB/s": 1e12, "MiB/s": 2**20, "GiB/s": 2**30},
    "frequency": {"Hz": 1, "kHz": 1e3, "MHz": 1e6, "GHz": 1e9},
    "throughput": {"op/s": 1, "Mop/s": 1e6, "Gop/s": 1e9, "Top/s": 1e12},
    "power": {"W": 1, "mW": 1e-3},
    "energy": {"J": 1, "nJ": 1e-9, "pJ": 1e-12},
    "channels": {"channels": 1},
    "threads": {"threads": 1},
    "count": {"1": 1},
}
_WHOLE = ("bytes", "channels", "threads", "count")

LIMITS = {"memory_bytes": "bytes", "flash_bytes": "bytes"}
NUMBERS = {
    "memory_bandwidth_bytes_per_s": "bandwidth",
    "clock_hz": "frequency",
    "launch_overhead_s": "time",
    "board_power_w": "power",
    **{f"peak_{p}_ops_per_s": "throughput" for p in PRECISIONS},
    **{f"energy_{p}_j_per_op": "energy" for p in PRECISIONS},
}
_PLACEMENT = ("outputs", "elementwise", "symmetric", "residual", "depthwise")
FLOAT_TYPES = ("float32", "float16")
INT4_BLOCKS = (8, 16, 32, 64, 128, 256)
_SECTIONS = (
    "title",
    "runtime",
    "device",
    "latency_table",
    "precisions",
    "placement",
    "channel_multiple",
    "limits",
    "options",
    "numbers",
)


@dataclass(frozen=True)
class _Reader:
    """Checks on one file, so that every message names the file and the key."""

    path: Path

    def error(self, key: str, message: str) -> ConfigError:
        return ConfigError(f"{self.path}: {key}: {message}")

    def known(self, found: Iterable[str], allowed: Iterable[str], section: str = "") -> None:
        names = list(allowed)
        for key in found:
            if key not in names:
                near = difflib.get_close_matches(key, names, n=1, cutoff=0.4)
                hint = f"did you mean {near[0]}?" if near else f"known: {', '.join(names) or 'none'}"
                raise self.error(f"{section}.{key}" if section else key, f"unknown key; {hint}")

    def table(self, data: Mapping[str, Any], key: str, default: Mapping[str, Any] | None = None) -> dict[str, Any]:
        value = data.get(key, default)
        if not isinstance(value, Mapping):
            raise self.error(key, f"must be a table, is {value!r}" if key in data else "missing; it is required")
        return dict(value)

    def text(self, data: Mapping[str, Any], key: str, section: str = "") -> str:
        value = data.get(key)
        if not isinstance(value, str) or not value.strip():
            where = f"{section}.{key}" if section else key
            raise self.error(
                where, "missing; give a non-empty text" if value is None else f"must be text, is {value!r}"
            )
        return value

    def number(self, value: Any, key: str, dimension: str) -> dict[str, Any]:
        """``{value, unit, source}`` in base units: {"value", "unit", "source", "written"}."""
        units = UNITS[dimension]
        if not isinstance(value, Mapping):
            example = f"{{ value = 1, unit = {next(iter(units))!r}, source = '...' }}"
            raise self.error(key, f"must be a table such as {example}, is {value!r}")
        self.known(value, ("value", "unit", "source"), key)
        raw, unit = value.get("value"), value.get("unit")
        if isinstance(raw, bool) or not isinstance(raw, int | float) or not math.isfinite(raw) or raw <= 0:
            raise self.error(f"{key}.value", f"must be a number above 0, is {raw!r}")
        if not isinstance(unit, str) or unit not in units:
            raise self.error(f"{key}.unit", f"{unit!r} is no unit of {dimension}; allowed {', '.join(units)}")
        source = self.text(value, "source", key)
        base: float = raw * units[unit]
        if dimension in _WHOLE:
            if base != int(base):
                raise self.error(f"{key}.value", f"must be a whole number of {dimension}, is {base:g}")
            base = int(base)
        name = next(u for u, factor in units.items() if factor == 1)
        return {"value": base, "unit": name, "source": source, "written": f"{raw} {unit}"}


def load_profile(name_or_path: str) -> HardwareProfile:
    """A shipped profile by name, or any TOML file; figures come in base units (bytes, s, B/s, Hz).

    Raises:
        UnknownNameError: no such profile or runtime; the message has the nearest names.
        ConfigError: the file breaks the schema; the message names file, key and remedy.
    """
    path = shipped.resolve("hw_profiles", "target", name_or_path)
    read = _Reader(path)
    try:
        data = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not valid TOML: {error}") from error
    read.known(data, _SECTIONS)
    title, runtime = read.text(data, "title"), read.text(data, "runtime")
    if runtime not in runtimes.names():
        raise read.error("runtime", f"unknown runtime {runtime!r}; known: {', '.join(runtimes.names())}")
    sources: dict[str, Any] = {}
    precisions = _precisions(read, data, sources)
    placement = _placement(read, data, sources)
    if placement.int4_blocks and "int4" not in precisions.get("linear", ()):
        raise read.error("placement.int4_blocks", "needs 'int4' in precisions.linear.run")
    multiples = _numbers(read, data, "channel_multiple", dict.fromkeys(PRECISIONS, "channels"))
    limits = _numbers(read, data, "limits", LIMITS)
    numbers = _numbers(read, data, "numbers", NUMBERS)
    options, option_numbers = _options(read, data, runtimes.module(runtime).OPTIONS)
    for section, entries in (
        ("channel_multiple", multiples),
        ("limits", limits),
        ("numbers", numbers),
        ("options", option_numbers),
    ):
        sources.update({f"{section}.{key}": entry for key, entry in entries.items()})
    return HardwareProfile(
        name=path.stem,
        title=title,
        runtime=runtime,
        device=read.text(data, "device") if "device" in data else "",
        precisions=precisions,
        placement=placement,
        channel_multiple={key: entry["value"] for key, entry in multiples.items()},
        limits={key: entry["value"] for key, entry in limits.items()},
        options=options,
        numbers=sources,
        latency_table=_latency_table(read, data),
        path=path,
    )


def _latency_table(read: _Reader, data: Mapping[str, Any]) -> Path | None:
    """The file beside the profile that ``latency_table`` names."""
    if "latency_table" not in data:
        return None
    found = read.path.parent / read.text(data, "latency_table")
    if not found.is_file():
        raise read.error("latency_table", f"no file {found}; run autocomp profile again or take the key out")
    return found


def _precisions(read: _Reader, data: Mapping[str, Any], sources: dict[str, Any]) -> dict[str, tuple[str, ...]]:
    table = read.table(data, "precisions")
    read.known(table, LAYER_KINDS, "precisions")
    out = {}
    for kind in table:
        entry, key = read.table(table, kind), f"precisions.{kind}"
        read.known(entry, ("run", "source"), key)
        run = entry.get("run")
        if not isinstance(run, list) or not run or len(set(map(str, run))) != len(run):
            raise read.error(f"{key}.run", f"must be a list of different precisions, is {run!r}")
        for precision in run:
            if precision not in PRECISIONS:
                raise read.error(f"{key}.run", f"unknown precision {precision!r}; allowed {', '.join(PRECISIONS)}")
        out[kind] = tuple(run)
        sources[key] = {"source": read.text(entry, "source", key)}
    if not out:
        raise read.error("precisions", "empty; name at least one layer kind")
    return out


def _placement(read: _Reader, data: Mapping[str, Any], sources: dict[str, Any]) -> Placement:
    table = read.table(data, "placement", {})
    read.known(table, (*_PLACEMENT, "float_type", "int4_blocks", "source"), "placement")
    if not table:
        return Placement()
    sources["placement"] = {"source": read.text(table, "source", "placement")}
    flags = {key: table[key] for key in _PLACEMENT if key in table}
    for key, value in flags.items():
        if not isinstance(value, bool):
            raise read.error(f"placement.{key}", f"must be true or false, is {value!r}")
    float_type = table.get("float_type", FLOAT_TYPES[0])
    if float_type not in FLOAT_TYPES:
        raise read.error("placement.float_type", f"is {float_type!r}; allowed {', '.join(FLOAT_TYPES)}")
    blocks = table.get("int4_blocks", [])
    if not isinstance(blocks, list) or any(type(b) is not int or b not in INT4_BLOCKS for b in blocks):
        raise read.error(
            "placement.int4_blocks", f"is {blocks!r}; allowed a list of {', '.join(map(str, INT4_BLOCKS))}"
        )
    return Placement(**flags, float_type=float_type, int4_blocks=tuple(blocks))


def _numbers(
    read: _Reader, data: Mapping[str, Any], section: str, dimensions: Mapping[str, str]
) -> dict[str, dict[str, Any]]:
    table = read.table(data, section, {})
    read.known(table, dimensions, section)
    return {key: read.number(value, f"{section}.{key}", dimensions[key]) for key, value in table.items()}


def _options(
    read: _Reader, data: Mapping[str, Any], schema: Mapping[str, str | tuple[Any, ...]]
) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    """The runtime's ``OPTIONS``: a dimension's name for numbers, else the tuple of allowed values."""
    table = read.table(data, "options", {})
    read.known(table, schema, "options")
    options: dict[str, Any] = {}
    numbers: dict[str, dict[str, Any]] = {}
    for key, value in table.items():
        allowed = schema[key]
        if isinstance(allowed, str):
            numbers[key] = read.number(value, f"options.{key}", allowed)
            options[key] = numbers[key]["value"]
        elif any(value == a and type(value) is type(a) for a in allowed):
            options[key] = value
        else:
            shown = ", ".join(str(a).lower() if isinstance(a, bool) else repr(a) for a in allowed)
            raise read.error(f"options.{key}", f"is {value!r}; allowed {shown}")
    return options, numbers


def load_target(name_or_path: str) -> Target:
    """Profile and runtime. :meth:`Target.cannot_build` and :meth:`Target.cannot_measure` say what is missing here."""
    profile = load_profile(name_or_path)
    return Target(profile=profile, runtime=runtimes.find(profile.runtime))


STATES = ("measured", "predicted", "unusable")
"""Latencies are measured here; predicted from the profile's figures; or the target cannot be used at all."""


def list_targets() -> list[dict[str, Any]]:
    """Every shipped profile: ``name``, ``title``, ``runtime``, ``usable``, ``latency``, ``why_not``.

    ``latency`` is one of :data:`STATES`. ``why_not`` says why latencies are not measured here and what to do about it,
    "" where they are.
    """
    return [_state(name) for name in shipped.names("hw_profiles")]


def _state(name: str) -> dict[str, Any]:
    row: dict[str, Any] = {"name": name, "title": "", "runtime": "", "usable": False, "latency": "unusable"}
    try:
        target = load_target(name)
    except AutocompError as error:
        return row | {"why_not": str(error)}
    profile = target.profile
    why = target.cannot_measure()
    figures = profile.latency_table is not None or any(k.startswith("numbers.peak_") for k in profile.numbers)
    latency = "measured" if why is None else "predicted" if figures else "unusable"
    if latency == "unusable":
        why = f"{why}; the profile has no figures to predict from"
    return row | {
        "title": profile.title,
        "runtime": profile.runtime,
        "usable": latency != "unusable",
        "latency": latency,
        "why_not": why or "",
    }
