"""The tables of a search space as values: what each says a layer may become."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import partial
from typing import Any, TypeVar

from autocomp.core.steps import StepConfig
from autocomp.errors import ConfigError
from autocomp.survey import step_tables
from autocomp.survey import toml_tables as toml
from autocomp.transforms.low_rank import Factorise
from autocomp.transforms.prune import PruneChannels
from autocomp.transforms.quantize import CALIBRATORS, ROUNDINGS, QuantizeActivations, QuantizeWeights
from autocomp.transforms.sparsify import Sparsify


@dataclass(frozen=True, kw_only=True)
class WeightOptions:
    """Table ``[weights]``: the options of a layer's weight.

    Attributes:
        float32: whether the layer may be left alone.
        bits: nominal widths, 2 to 8 and 16.
        steps: step sizes in standard deviations of the channel (or tensor).
        granularity, symmetric, scale: every combination is an option.
        rounding: "compensated" or "nearest".
    """

    float32: bool = True
    bits: tuple[int, ...] = ()
    steps: tuple[float, ...] = ()
    granularity: tuple[str, ...] = ("channel",)
    symmetric: tuple[bool, ...] = (True,)
    scale: tuple[str, ...] = ("mse",)
    rounding: str = "compensated"

    def options(self) -> tuple[QuantizeWeights | None, ...]:
        """All options, from most precise to coarsest; None is float32."""
        made: list[QuantizeWeights] = []
        if 16 in self.bits:
            made.append(QuantizeWeights(bits=16))
        for granularity, symmetric in itertools.product(self.granularity, self.symmetric):
            grid = partial(QuantizeWeights, granularity=granularity, symmetric=symmetric, rounding=self.rounding)
            made += [grid(step=s) for s in self.steps]
            made += [grid(bits=b, scale=s) for b in self.bits if b != 16 for s in self.scale]
        made = sorted(dict.fromkeys(made), key=_adaptive)
        return (*([None] if self.float32 else []), *made)


@dataclass(frozen=True, kw_only=True)
class ActivationOptions:
    """Table ``[activations]``: how a layer may be executed.

    Attributes:
        precisions: "float32" (the target's own float type), "int8", "float8".
        calibrator: "minmax", "percentile", "mse" or "entropy"; one for the whole space, since a value
            between two layers has one quantizer.
    """

    precisions: tuple[str, ...] = ("float32",)
    calibrator: str = "mse"

    def options(self, able: Sequence[str]) -> tuple[QuantizeActivations | None, ...]:
        """All options, float32 first; of the 8-bit ones those in ``able``, which device and graph have."""
        made = [QuantizeActivations(precision=p, calibrator=self.calibrator) for p in self.precisions if p in able]
        return (*([None] if "float32" in self.precisions or not made else []), *made)


@dataclass(frozen=True, kw_only=True)
class LayerRules:
    """What holds for one layer: the file's tables with its overrides laid over.

    Attributes:
        weights, activations: tables of these names.
        share: further ways to store weights.
        prune, rank, sparsity: settings on the axes of these names, from mild to strong; none: left alone.
        suggested: factorisation methods that are also tried at the rank which stands out from noise in the layer's
            own weight (:func:`autocomp.transforms.low_rank.suggested_rank`).
    """

    weights: WeightOptions = field(default_factory=WeightOptions)
    activations: ActivationOptions = field(default_factory=ActivationOptions)
    share: tuple[StepConfig, ...] = ()
    prune: tuple[StepConfig, ...] = ()
    rank: tuple[StepConfig, ...] = ()
    sparsity: tuple[StepConfig, ...] = ()
    suggested: tuple[str, ...] = ()


SUGGESTED = "evbmf"
"""Among the ranks of a space file: the rank that empirical variational Bayesian matrix factorisation suggests."""

STEP_TABLES: dict[str, tuple[type[StepConfig], str]] = {
    "prune": (PruneChannels, "ratio"),
    "rank": (Factorise, "rank"),
    "sparsity": (Sparsify, "ratio"),
}
"""Tables that are one step each, and the field that says how strong it is."""

TABLES = ("weights", "activations", "share", *STEP_TABLES)


def layer_rules(base: LayerRules, data: Mapping[str, Any], file: str, where: str) -> LayerRules:
    """``base`` with the tables of ``data`` laid over."""
    place = f"{where}." if where else ""
    changes: dict[str, Any] = {
        "weights": _options(base.weights, toml.table(data, "weights", file, where), file, f"{place}weights"),
        "activations": _options(
            base.activations, toml.table(data, "activations", file, where), file, f"{place}activations"
        ),
    }
    if "share" in data:
        changes["share"] = step_tables.by_kind(toml.tables(data, "share", file), "weights", file, f"{place}share")
    for axis, (kind, strength) in STEP_TABLES.items():
        table = toml.table(data, axis, file, where)
        if axis in data:
            if axis == "rank":
                table, changes["suggested"] = _suggested(table, file, f"{place}rank")
            made = step_tables.settings(kind, table, file, f"{place}{axis}") if table else ()
            changes[axis] = tuple(sorted(made, key=lambda s: _strength(s, strength)))
    return replace(base, **changes)


def _suggested(table: Mapping[str, Any], file: str, where: str) -> tuple[dict[str, Any], tuple[str, ...]]:
    """The ``rank`` table without the word "evbmf" among its ranks, and the methods that it is said for."""
    ranks = table.get("rank")
    listed = ranks if isinstance(ranks, list) else [ranks]
    if SUGGESTED not in listed:
        return dict(table), ()
    methods = table.get("method", Factorise.method)
    step_tables.settings(Factorise, {"method": methods, "rank": 0.5}, file, where)
    numbers = [r for r in listed if r != SUGGESTED]
    chosen = tuple(methods if isinstance(methods, list) else [methods])
    return ({**table, "rank": numbers} if numbers else {}), chosen


def _strength(step: StepConfig, field_name: str) -> float:
    """Sort key from mild to strong: the share that goes."""
    value = getattr(step, field_name)
    if value is None:  # a pattern N:M
        keep, _, size = str(getattr(step, "pattern", "1:1")).partition(":")
        return 1.0 - int(keep) / int(size)
    return -float(value) if field_name == "rank" else float(value)


def _adaptive(step: QuantizeWeights) -> tuple[float, int, int, str]:
    """Sort key: the step in standard deviations, then the more adaptive grid first."""
    return (step_tables.coarseness(step)[0], step.granularity == "tensor", step.symmetric, step.scale)


_ALLOWED: dict[str, tuple[Any, ...]] = {
    "bits": (*range(2, 9), 16),
    "granularity": ("channel", "tensor"),
    "symmetric": (True, False),
    "scale": ("mse", "max"),
    "rounding": ROUNDINGS,
    "precisions": ("float32", *CALIBRATORS),
    "calibrator": ("minmax", "percentile", "mse", "entropy"),
    "float32": (True, False),
}


_T = TypeVar("_T", WeightOptions, ActivationOptions)


def _options(base: _T, table: Mapping[str, Any], file: str, where: str) -> _T:
    """``base`` with the table's keys replaced, each value checked."""
    toml.known(table, [f.name for f in fields(base)], file, where)
    changes: dict[str, Any] = {}
    for key, value in table.items():
        many = isinstance(getattr(base, key), tuple)
        values = value if isinstance(value, list) and many else [value]
        for v in values:
            _check(key, v, file, where)
        if key == "precisions" and not values:
            raise ConfigError(f"{file}: {where}.{key} is empty; give some of float32, int8, float8")
        changes[key] = tuple(dict.fromkeys(values)) if many else value
    return replace(base, **changes)


def _check(key: str, value: Any, file: str, where: str) -> None:
    if key == "steps":
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if not number or not 0.01 <= value <= 8:
            raise ConfigError(f"{file}: {where}.steps: {value!r}; allowed [0.01, 8] standard deviations")
        return
    allowed = _ALLOWED[key]
    if not any(value == a and isinstance(value, bool) == isinstance(a, bool) for a in allowed):
        shown = ", ".join(str(a).lower() if isinstance(a, bool) else str(a) for a in allowed)
        raise ConfigError(f"{file}: {where}.{key}: {value!r}; allowed {shown}")
