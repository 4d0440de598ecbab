"""Search spaces from TOML: which settings each unit may take on this device.

Schema and worked examples: docs/search_spaces.md.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import partial
from typing import Any, TypeVar

from autocomp.core import shipped
from autocomp.core.hardware import HardwareProfile
from autocomp.core.network import Layer, Network
from autocomp.core.space import SearchSpace, Unit
from autocomp.core.steps import StepConfig
from autocomp.errors import ConfigError
from autocomp.survey import toml_tables as toml
from autocomp.transforms.quantize import QuantizeActivations, QuantizeWeights

# Optimal step of a uniform quantizer for a unit Gaussian (Max 1960, table II); 8 bits extrapolated.
# It places nominal widths among step sizes, from most precise to coarsest.
GAUSSIAN_STEP = {8: 0.0308, 7: 0.0569, 6: 0.1041, 5: 0.1881, 4: 0.3352, 3: 0.5860, 2: 0.9957}


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
        made = sorted(dict.fromkeys(made), key=_coarseness)
        return (*([None] if self.float32 else []), *made)


@dataclass(frozen=True, kw_only=True)
class ActivationOptions:
    """Table ``[activations]``: how a layer may be executed.

    Attributes:
        precisions: "float32", "int8".
        calibrator: "minmax", "percentile", "mse" or "entropy"; one for the whole space, since a value
            between two layers has one quantizer.
    """

    precisions: tuple[str, ...] = ("float32",)
    calibrator: str = "mse"

    def options(self, *, int8: bool) -> tuple[QuantizeActivations | None, ...]:
        """All options, float32 first; without int8 where the device or the graph has none."""
        out: list[QuantizeActivations | None] = [None] if "float32" in self.precisions or not int8 else []
        return (*out, QuantizeActivations(calibrator=self.calibrator)) if int8 else tuple(out)


@dataclass(frozen=True, kw_only=True)
class Rules:
    """What holds for one layer: the file's tables with its overrides laid over."""

    weights: WeightOptions = field(default_factory=WeightOptions)
    activations: ActivationOptions = field(default_factory=ActivationOptions)


def load_space(name_or_path: str, network: Network, profile: HardwareProfile) -> SearchSpace:
    """The search space of a file for this network on this device.

    Args:
        name_or_path: name of a shipped space ("default") or path of a TOML file.
        network: gives the layers.
        profile: rules out int8 execution for layer kinds that it does not list with "int8".

    Raises:
        UnknownNameError: no such space; the nearest names are offered.
        ConfigError: the file, key, value and remedy in one line.
    """
    path = shipped.resolve("search_spaces", "space", name_or_path)
    return space_from_toml(toml.parse(path), network, profile, file=path.name, name=path.stem)


def list_spaces() -> list[dict[str, str]]:
    """Shipped spaces: ``name``, ``title``, ``text``, ``path``."""
    rows = []
    for name in shipped.names("search_spaces"):
        path = shipped.resolve("search_spaces", "space", name)
        description = _description(toml.parse(path), path.name)
        rows.append({"name": name, **description, "path": str(path)})
    return rows


def space_from_toml(
    data: Mapping[str, Any], network: Network, profile: HardwareProfile, *, file: str, name: str
) -> SearchSpace:
    """:func:`load_space` on a parsed file; ``file`` names it in messages."""
    toml.known(data, ("description", "weights", "activations", "leave", "override", "group"), file, "")
    _description(data, file)
    base = Rules(
        weights=_options(WeightOptions(), toml.table(data, "weights", file), file, "weights"),
        activations=_options(ActivationOptions(), toml.table(data, "activations", file), file, "activations"),
    )
    leave = toml.table(data, "leave", file)
    toml.known(leave, ("layers",), file, "leave")
    left = toml.matching(
        toml.texts(leave.get("layers", []), file, "leave.layers"), network.layers, file, "leave.layers"
    )
    rules = _overridden(base, toml.tables(data, "override", file), network, file)
    notes: list[str] = []
    units: dict[str, Unit] = {}
    for unit_name, layers in _grouped(toml.tables(data, "group", file), network, left, file).items():
        _same_rules(unit_name, layers, rules, file)
        members = [network.layers[layer] for layer in layers]
        int8 = _int8_allowed(unit_name, members, rules[layers[0]].activations, network, profile, notes)
        units[unit_name] = Unit(name=unit_name, layers=layers, axes=_axes(rules[layers[0]], members, int8, file))
    if not units:
        raise ConfigError(f"{file}: leave.layers leaves every layer alone; nothing remains to search")
    return SearchSpace(name=name, units=units, notes=tuple(dict.fromkeys(notes)))


# what the tables mean


def _axes(rules: Rules, layers: Sequence[Layer], int8: bool, file: str) -> dict[str, tuple[StepConfig | None, ...]]:
    """Legal options by axis."""
    weights = rules.weights
    if any(layer.kind == "embedding" for layer in layers):
        # an embedding selects rows: there is no input whose error could be compensated
        weights = replace(weights, rounding="nearest")
    try:
        options = weights.options()
    except ConfigError as error:
        raise ConfigError(f"{file}: weights: {error}") from None
    if not options:
        raise ConfigError(f"{file}: weights: no option for {layers[0].name}; give bits, steps or float32 = true")
    return {"weights": options, "activations": rules.activations.options(int8=int8)}


def _int8_allowed(
    unit: str,
    layers: Sequence[Layer],
    options: ActivationOptions,
    network: Network,
    profile: HardwareProfile,
    notes: list[str],
) -> bool:
    """Whether int8 execution is asked for and possible; a note says why not, once a reason."""
    if "int8" not in options.precisions:
        return False
    if network.graph is None:
        notes.append(f"int8 execution left out: the network has no graph ({network.no_graph})")
        return False
    for kind in {layer.kind for layer in layers}:
        if "int8" not in profile.precisions.get(kind, ()):
            notes.append(f"int8 execution left out for {kind} layers: {profile.name} does not run them in int8")
            return False
    unseen = [layer.name for layer in layers if layer.input_value is None]
    if unseen:
        notes.append(f"int8 execution left out for {unit}: the graph does not show the input of {unseen[0]}")
        return False
    return True


def _overridden(base: Rules, overrides: Sequence[Mapping[str, Any]], network: Network, file: str) -> dict[str, Rules]:
    """Layer → its rules; later overrides are laid over earlier ones, key by key."""
    rules = dict.fromkeys(network.layers, base)
    for number, table in enumerate(overrides, start=1):
        where = f"override {number}"
        toml.known(table, ("match", "weights", "activations"), file, where)
        if "match" not in table:
            raise ConfigError(f"{file}: {where}: match is missing; give a layer name or a glob such as 'layer1.*'")
        activations = toml.table(table, "activations", file, where)
        if "calibrator" in activations:
            raise ConfigError(f"{file}: {where}.activations.calibrator: one calibrator holds for the whole space")
        for layer in toml.matching(
            toml.texts(table["match"], file, f"{where}.match"), network.layers, file, f"{where}.match"
        ):
            old = rules[layer]
            rules[layer] = Rules(
                weights=_options(old.weights, toml.table(table, "weights", file, where), file, f"{where}.weights"),
                activations=_options(old.activations, activations, file, f"{where}.activations"),
            )
    return rules


def _grouped(
    groups: Sequence[Mapping[str, Any]], network: Network, left: set[str], file: str
) -> dict[str, tuple[str, ...]]:
    """Unit name → its layers, in order of execution; layers in no group are units by themselves."""
    owner: dict[str, str] = {}
    for number, table in enumerate(groups, start=1):
        where = f"group {number}"
        toml.known(table, ("name", "layers"), file, where)
        patterns = toml.texts(table.get("layers", []), file, f"{where}.layers")
        name = table.get("name", f"group{number}")
        if not isinstance(name, str) or not name or ":" in name:
            raise ConfigError(f"{file}: {where}.name = {name!r}; give a text without ':'")
        if name in network.layers or name in owner.values():
            raise ConfigError(f"{file}: {where}.name = {name!r} is taken; choose another")
        for layer in toml.matching(patterns, network.layers, file, f"{where}.layers") - left:
            if layer in owner:
                raise ConfigError(f"{file}: {where}: {layer} is in group {owner[layer]!r} already")
            owner[layer] = name
    units: dict[str, tuple[str, ...]] = {}
    for layer in network.layers:
        if layer not in left:
            unit = owner.get(layer, layer)
            units[unit] = (*units.get(unit, ()), layer)
    return units


def _same_rules(unit: str, layers: Sequence[str], rules: Mapping[str, Rules], file: str) -> None:
    for layer in layers[1:]:
        if rules[layer] != rules[layers[0]]:
            raise ConfigError(
                f"{file}: group {unit!r}: {layers[0]} and {layer} have different settings; "
                f"let each override match all layers of the group"
            )


def _coarseness(step: QuantizeWeights) -> tuple[float, int, int, str]:
    """Sort key: the step in standard deviations, then the more adaptive grid first."""
    size = step.step if step.step is not None else GAUSSIAN_STEP.get(int(step.bits or 16), 0.0)
    return (size, step.granularity == "tensor", step.symmetric, step.scale)


# reading the file


def _description(data: Mapping[str, Any], file: str) -> dict[str, str]:
    table = toml.table(data, "description", file)
    toml.known(table, ("title", "text"), file, "description")
    for key, value in table.items():
        if not isinstance(value, str):
            raise ConfigError(f"{file}: description.{key} = {value!r}; give a text")
    return {"title": table.get("title", ""), "text": table.get("text", "")}


_ALLOWED: dict[str, tuple[Any, ...]] = {
    "bits": (*range(2, 9), 16),
    "granularity": ("channel", "tensor"),
    "symmetric": (True, False),
    "scale": ("mse", "max"),
    "rounding": ("nearest", "compensated"),
    "precisions": ("float32", "int8"),
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
            raise ConfigError(f"{file}: {where}.{key} is empty; give float32, int8 or both")
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
