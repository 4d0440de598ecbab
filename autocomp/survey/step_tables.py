"""Tables of a search space that list settings of a compression step: every field takes one value or several."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from autocomp.core.steps import StepConfig, steps_on
from autocomp.errors import ConfigError, UnknownNameError
from autocomp.survey import toml_tables as toml

_Step = TypeVar("_Step", bound=StepConfig)

# Optimal step of a uniform quantizer for a unit Gaussian (Max 1960, table II); 8 bits extrapolated.
# It places nominal widths among step sizes, from most precise to coarsest.
GAUSSIAN_STEP = {8: 0.0308, 7: 0.0569, 6: 0.1041, 5: 0.1881, 4: 0.3352, 3: 0.5860, 2: 0.9957}

EXCLUSIVE = {"sparsify": ("ratio", "pattern")}
"""Fields of a step that exclude each other: each list is a set of settings of its own."""


def settings(kind: type[_Step], table: Mapping[str, Any], file: str, where: str) -> tuple[_Step, ...]:
    """All steps that a table describes: the product of its lists, in the file's order.

    Raises:
        ConfigError: an unknown key, or a value that the step refuses; names file, table, value and what is allowed.
    """
    toml.known(table, [f.name for f in dataclasses.fields(kind)], file, where)
    made: list[_Step] = []
    for part in _exclusive(kind.kind, table):
        names = list(part)
        lists = [part[n] if isinstance(part[n], list) else [part[n]] for n in names]
        for values in itertools.product(*lists):
            fields = dict(zip(names, values, strict=True))
            try:
                made.append(kind(**fields))
            except ConfigError as error:
                raise ConfigError(f"{file}: {where}: {error}") from None
            except TypeError:
                shown = ", ".join(f"{n} = {v!r}" for n, v in fields.items()) or "nothing"
                raise ConfigError(f"{file}: {where}: {shown}; {_wanted(kind)}") from None
    return tuple(dict.fromkeys(made))


def _exclusive(kind: str, table: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The table, or one table for each of its fields that exclude each other."""
    given = [n for n in EXCLUSIVE.get(kind, ()) if n in table]
    if len(given) < 2:
        return [dict(table)]
    return [{n: v for n, v in table.items() if n == one or n not in given} for one in given]


def _wanted(kind: type[StepConfig]) -> str:
    fields = dataclasses.fields(kind)
    needed = [f.name for f in fields if f.default is dataclasses.MISSING]
    return f"give {', '.join(needed)}" if needed else f"fields: {', '.join(f.name for f in fields)}"


def by_kind(tables: Sequence[Mapping[str, Any]], axis: str, file: str, where: str) -> tuple[StepConfig, ...]:
    """Steps of any kind on ``axis``: tables that name their ``kind``.

    Raises:
        ConfigError: as :func:`settings`, or a kind that there is not on this axis (with the nearest names).
    """
    known = steps_on(axis)
    made: list[StepConfig] = []
    for number, table in enumerate(tables, start=1):
        place = f"{where} {number}"
        name = str(table.get("kind"))
        if name not in known:
            raise ConfigError(f"{file}: {place}: {UnknownNameError('kind', name, known)}")
        made += settings(known[name], {k: v for k, v in table.items() if k != "kind"}, file, place)
    return tuple(dict.fromkeys(made))


def coarseness(step: StepConfig) -> tuple[float, str]:
    """Sort key: the step in standard deviations that takes about as many bits, then the label."""
    size = getattr(step, "step", None)
    if size is None:
        bits = _bits(step)
        size = GAUSSIAN_STEP.get(int(bits), 4.1 * 2.0**-bits) if bits == int(bits) else 4.1 * 2.0**-bits
        size = 0.0 if bits > 8 else size
    return (float(size), step.label())


def _bits(step: StepConfig) -> float:
    """About how many bits a weight takes, from the step's own fields."""
    if (bits := getattr(step, "bits", None)) is not None:
        return float(bits)
    if (entries := getattr(step, "entries", None)) is not None:
        return math.log2(entries) / getattr(step, "dim", 1)
    if (buckets := getattr(step, "buckets", None)) is not None:
        return 16.0 * float(buckets)
    if (snr := getattr(step, "snr_db", None)) is not None:
        return float(snr) / 6.02
    return {"binarize_weights": 1.0, "ternarize_weights": 1.58, "float8_weights": 8.0}.get(step.kind, 2.0)
