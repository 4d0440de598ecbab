"""What the survey found, as another process reads it from the run's cache."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from autocomp.coding.container import stored_bytes
from autocomp.core.compressed import ActivationQuantizer
from autocomp.core.network import Network
from autocomp.core.prices import ManifestLine, Prices, PriceTable
from autocomp.core.space import SearchSpace, Unit, unit_and_axis
from autocomp.core.steps import FLOAT, Choice
from autocomp.errors import CorruptFileError
from autocomp.survey.database import Database, Entry, UnitFile
from autocomp.survey.execution import executed_units, execution_choices, price_name
from autocomp.survey.kept import Kept
from autocomp.survey.structure import structure_prices
from autocomp.transforms.recipe import recipe_of

INDEX = "survey.json"


@dataclass(frozen=True, kw_only=True, eq=False)
class Survey:
    """What the survey found.

    Attributes:
        prices: the price table.
        database: tensors by (unit, choice).
        quantizers: (value key, precision) → quantizer, for every value that any candidate may quantize so.
        seconds: wall seconds that the pricing took, earlier runs included.
    """

    prices: PriceTable
    database: Database
    quantizers: dict[tuple[str, str], ActivationQuantizer]
    seconds: float


def load_survey(network: Network, space: SearchSpace, cache: Path, kept: Kept | None = None) -> Survey:
    """Read the survey that :func:`survey` left in ``cache``, as another process does.

    Args:
        network: what was surveyed.
        space: its units and choices.
        cache: the run's folder, which holds the index.
        kept: tensors that are in memory already.

    Raises:
        CorruptFileError: there is none for this space, or it is damaged.
    """
    path = cache / INDEX
    try:
        index = json.loads(path.read_text())
        folder = cache / index.get("folder", "survey")
        database = Database({u: folder / index["units"][u] for u in space.units}, kept or Kept())
        storage = {
            u.name: _storage_prices(network, database, u, space.storage_choices(u), index["bytes"][u.name])
            for u in space.units.values()
        }
        lines = tuple(ManifestLine(owners=tuple(map(frozenset, o)), bytes=float(b)) for o, b in index["lines"])
        execution, seconds = {}, sum(database.seconds(u) for u in space.units)
        if index["execution"] is not None:
            file = UnitFile(folder / index["execution"])
            seconds += file.seconds
            execution = _execution_prices(file, space, _quantizer_bytes(space, lines))
        measured = {n: UnitFile(folder / f) for n, f in index["structure"].items()}
        seconds += sum(f.seconds for f in measured.values())
        structure = {}
        if measured:
            found = {n: {k: f.entry(k) for k in f.choices()} for n, f in measured.items()}
            structure = structure_prices(space, recipe_of(space), found, storage)
        made = [(k, ActivationQuantizer.from_json(q)) for k, q in index["quantizers"]]
        quantizers = {(k, q.precision): q for k, q in made}
        fixed = int(index["fixed_bytes"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CorruptFileError(f"{path}: no survey of space {space.name} can be read ({error}); run again") from error
    macs = {u.name: sum(network.layers[n].macs for n in u.layers) for u in space.units.values()}
    prices = PriceTable(
        storage=storage,
        execution=execution,
        structure=structure,
        macs=macs,
        fixed_bytes=fixed,
        lines=lines,
        exact_shares=recipe_of(space).legal_shares if measured else None,
        seconds={"survey": seconds},
    )
    return Survey(prices=prices, database=database, quantizers=quantizers, seconds=seconds)


def priced(cache: Path) -> tuple[int, int]:
    """Files of prices that are there, and files that the index in ``cache`` names; (0, 0) where it cannot be read."""
    try:
        index = json.loads((cache / INDEX).read_text())
        folder = cache / index.get("folder", "survey")
        names = [*index["units"].values(), *index["structure"].values(), *filter(None, [index["execution"]])]
    except (OSError, ValueError, KeyError):
        return 0, 0
    return sum((folder / name).is_file() for name in names), len(names)


def sensitivity_table(survey: Survey) -> list[dict[str, Any]]:
    """Rows of ``autocomp survey``, one a (unit, choice): ``unit``, ``axis`` ("storage" or "execution"),
    ``choice``, ``bytes``, ``kl`` (measured) and ``predicted_kl`` (½‖u‖²), nats."""
    rows = []
    for axis, table in (("storage", survey.prices.storage), ("execution", survey.prices.execution)):
        for unit, prices in table.items():
            squares = 0.5 * (prices.delta.astype(np.float64) ** 2).sum(axis=1)
            for i, choice in enumerate(prices.choices):
                rows.append(
                    {
                        "unit": unit,
                        "axis": axis,
                        "choice": choice.label(),
                        "bytes": int(prices.bytes[i]),
                        "kl": float(prices.kl[i]),
                        "predicted_kl": float(squares[i]),
                    }
                )
    return rows


# prices from files


def _storage_prices(
    network: Network, database: Database, unit: Unit, choices: Sequence[Choice], sizes: Mapping[str, int]
) -> Prices:
    entries = {c: database.entry(unit.name, c) for c in choices}
    usable = [c for c in choices if np.isfinite(entries[c].kl)]
    ordered = sorted(usable, key=lambda c: (c != FLOAT, -sizes[c.key()]))
    names = {network.layers[n].bias for n in unit.layers}
    biases = sum(stored_bytes(len(r)) for n, r in entries[choices[0]].records.items() if n in names)
    return _prices(ordered, [sizes[c.key()] for c in ordered], [entries[c] for c in ordered], biases)


def _quantizer_bytes(space: SearchSpace, lines: Sequence[ManifestLine]) -> dict[str, int]:
    """Name of an execution price → its part of the quantizers, so that the sum over all units is right."""
    shares = {price_name(u, precision): 0.0 for precision, units in executed_units(space).items() for u in units}
    for line in lines:
        names = [price_name(*unit_and_axis(o)) for o in line.owners[0]] if len(line.owners) == 1 else []
        for name in names:
            if name in shares:
                shares[name] += line.bytes / len(names)
    bounds = np.cumsum([0.0, *shares.values()]).round().astype(int)
    return {name: int(size) for name, size in zip(shares, np.diff(bounds), strict=True)}


def _execution_prices(file: UnitFile, space: SearchSpace, sizes: Mapping[str, int]) -> dict[str, Prices]:
    out = {}
    for unit, choices in execution_choices(space).items():
        names = [None if c.precision is None else price_name(unit, c.precision) for c in choices]
        known = {name: file.entry(name) for name in names if name is not None}
        none = Entry(kl=0.0, delta=np.zeros_like(next(iter(known.values())).delta), records={})
        entries = [none if name is None else known[name] for name in names]
        out[unit] = _prices(choices, [0 if name is None else sizes[name] for name in names], entries)
    return out


def _prices(choices: Sequence[Choice], sizes: Sequence[int], entries: Sequence[Entry], biases: int = 0) -> Prices:
    return Prices(
        choices=tuple(choices),
        bytes=np.asarray(sizes, dtype=np.int64),
        kl=np.asarray([e.kl for e in entries], dtype=np.float64),
        delta=np.stack([e.delta for e in entries]),
        biases=biases,
    )
