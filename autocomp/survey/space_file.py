"""Search spaces from TOML: which settings each unit may take on this device.

Schema and worked examples: docs/search_spaces.md.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cache, partial
from typing import Any

from autocomp.core import shipped
from autocomp.core.candidate import Candidate
from autocomp.core.hardware import HardwareProfile
from autocomp.core.network import Layer, Network
from autocomp.core.space import SearchSpace, Unit
from autocomp.core.steps import Choice, StepConfig
from autocomp.errors import ConfigError
from autocomp.graph.coupling import Coupling, coupled_groups
from autocomp.graph.placement import may_run_8bit
from autocomp.survey import toml_tables as toml
from autocomp.survey.space_options import STEP_TABLES, TABLES, ActivationOptions, LayerRules, layer_rules
from autocomp.survey.step_tables import coarseness
from autocomp.transforms.low_rank import Factorise, suggested_rank
from autocomp.transforms.recipe import Recipe


def load_space(
    name_or_path: str,
    network: Network,
    profile: HardwareProfile,
    coupling: Callable[[], Coupling] | None = None,
) -> SearchSpace:
    """The search space of a file for this network on this device.

    Args:
        name_or_path: name of a shipped space ("joint") or path of a TOML file.
        network: gives the layers.
        profile: rules out int8 and float8 execution for layer kinds that it does not list with it; its channel
            multiple holds for pruning.
        coupling: the network's groups of channels; found here where None. Asked only where the space prunes.

    Raises:
        UnknownNameError: no such space; the nearest names are offered.
        ConfigError: the file, key, value and remedy in one line.
    """
    path = shipped.resolve("search_spaces", "space", name_or_path)
    return space_from_toml(toml.parse(path), network, profile, coupling, file=path.name, name=path.stem)


def list_spaces() -> list[dict[str, str]]:
    """Shipped spaces: ``name``, ``title``, ``text``, ``path``."""
    rows = []
    for name in shipped.names("search_spaces"):
        path = shipped.resolve("search_spaces", "space", name)
        description = _description(toml.parse(path), path.name)
        rows.append({"name": name, **description, "path": str(path)})
    return rows


def space_from_toml(
    data: Mapping[str, Any],
    network: Network,
    profile: HardwareProfile,
    coupling: Callable[[], Coupling] | None = None,
    *,
    file: str,
    name: str,
) -> SearchSpace:
    """:func:`load_space` on a parsed file; ``file`` names it in messages."""
    toml.known(data, ("description", *TABLES, "leave", "override", "group"), file, "")
    _description(data, file)
    prune = toml.table(data, "prune", file)
    multiple = _multiple(prune.get("multiple"), profile, file)
    if "multiple" in prune:
        data = {**data, "prune": {k: v for k, v in prune.items() if k != "multiple"}}
    base = layer_rules(LayerRules(), data, file, "")
    leave = toml.table(data, "leave", file)
    toml.known(leave, ("layers",), file, "leave")
    left = toml.matching(
        toml.texts(leave.get("layers", []), file, "leave.layers"), network.layers, file, "leave.layers"
    )
    rules = _overridden(base, toml.tables(data, "override", file), network, file)
    grouped = _grouped(toml.tables(data, "group", file), network, left, file)
    recipe = Recipe(
        network=network, coupling=coupling or cache(partial(coupled_groups, network)), units=grouped, multiple=multiple
    )
    notes: list[str] = []
    units: dict[str, Unit] = {}
    for unit_name, layers in grouped.items():
        _same_rules(unit_name, layers, rules, file)
        members = [network.layers[layer] for layer in layers]
        able = _executable(unit_name, members, rules[layers[0]].activations, network, profile, notes)
        axes = _axes(unit_name, rules[layers[0]], members, recipe, able, file, notes)
        units[unit_name] = Unit(name=unit_name, layers=layers, axes=axes)
    if not units:
        raise ConfigError(f"{file}: leave.layers leaves every layer alone; nothing remains to search")
    if not any(len(options) > 1 or options[0] is not None for u in units.values() for options in u.axes.values()):
        why = f" ({notes[0]})" if notes else ""
        raise ConfigError(f"{file}: no layer has a legal choice besides float32{why}; give bits, steps or ratios")
    return SearchSpace(name=name, units=units, notes=tuple(dict.fromkeys(notes)), rules=recipe)


def _multiple(value: Any, profile: HardwareProfile, file: str) -> int:
    """Numbers of channels that stay are multiples of it: the file's, or what the profile asks for at most."""
    if value is None:
        return max(profile.channel_multiple.values(), default=1)
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ConfigError(f"{file}: prune.multiple = {value!r}; give a number of channels, 1 or more")
    return value


# what the tables mean


def _axes(
    unit: str,
    rules: LayerRules,
    layers: Sequence[Layer],
    recipe: Recipe,
    able: Sequence[str],
    file: str,
    notes: list[str],
) -> dict[str, tuple[StepConfig | None, ...]]:
    """Legal options by axis, in recipe order."""
    weights = rules.weights
    if any(layer.kind == "embedding" for layer in layers):
        # an embedding selects rows: there is no input whose error could be compensated
        weights = replace(weights, rounding="nearest")
    try:
        stored: tuple[StepConfig | None, ...] = weights.options()
    except ConfigError as error:
        raise ConfigError(f"{file}: weights: {error}") from None
    out: dict[str, tuple[StepConfig | None, ...]] = {}
    for axis in STEP_TABLES:
        options = getattr(rules, axis)
        if axis == "rank" and rules.suggested:
            options = (*options, *suggested_steps(layers, rules.suggested, recipe.network))
            options = tuple(sorted(dict.fromkeys(options), key=lambda s: -s.rank))
        legal = _legal(unit, axis, options, recipe, notes)
        if legal:
            out[axis] = (None, *legal)
    shared = _legal(unit, "weights", rules.share, recipe, notes)
    if shared:
        every = [s for s in (*stored, *shared) if s is not None]
        stored = (*([None] if weights.float32 else []), *sorted(dict.fromkeys(every), key=coarseness))
    if not stored:
        raise ConfigError(f"{file}: weights: no option for {layers[0].name}; give bits, steps or float32 = true")
    out["weights"] = stored
    try:
        out["activations"] = rules.activations.options(able)
    except ConfigError as error:
        raise ConfigError(f"{file}: activations: {error}") from None
    return out


def suggested_steps(layers: Sequence[Layer], methods: Sequence[str], network: Network) -> tuple[Factorise, ...]:
    """Factorisations at the largest rank that EVBMF suggests for any of ``layers``; none where all of it is signal."""
    state = network.module.state_dict()
    shares = [suggested_rank(state[layer.weight]) for layer in layers if state[layer.weight].dim() > 1]
    share = round(max(shares, default=0.0), 3)
    return tuple(Factorise(method=m, rank=share) for m in methods) if 0 < share < 1 else ()


def _legal(
    unit: str, axis: str, options: Sequence[StepConfig], recipe: Recipe, notes: list[str]
) -> tuple[StepConfig, ...]:
    """The options that are legal for the unit by themselves; one note where none of several is."""
    reasons = {step: recipe.reason(Candidate({unit: Choice((step,))})) for step in options}
    legal = tuple(step for step, reason in reasons.items() if reason is None)
    if options and not legal and not (axis == "prune" and recipe.follows(unit)):
        notes.append(f"{axis} left out for {next(r for r in reasons.values() if r)}")
    return legal


def _executable(
    unit: str,
    layers: Sequence[Layer],
    options: ActivationOptions,
    network: Network,
    profile: HardwareProfile,
    notes: list[str],
) -> list[str]:
    """8-bit precisions that are asked for and possible; a note says why not, once a reason."""
    found = []
    for precision in (p for p in options.precisions if p != "float32"):
        why = _why_not(unit, layers, precision, network, profile)
        if why is None:
            found.append(precision)
        else:
            notes.append(f"{precision} execution left out{why}")
    return found


def _why_not(
    unit: str, layers: Sequence[Layer], precision: str, network: Network, profile: HardwareProfile
) -> str | None:
    """Which of the layers cannot execute in ``precision``, and why."""
    if network.graph is None:
        return f": the network has no graph ({network.no_graph})"
    for kind in sorted({layer.kind for layer in layers}):
        if precision not in profile.precisions.get(kind, ()):
            return f" for {kind} layers: {profile.name} does not run them in {precision}"
    if not any(may_run_8bit(layer, profile.placement) for layer in layers):
        return f" for depthwise convolutions: {profile.name} runs them in floating point"
    unseen = [layer.name for layer in layers if layer.input_value is None]
    return f" for {unit}: the graph does not show the input of {unseen[0]}" if unseen else None


def _overridden(
    base: LayerRules, overrides: Sequence[Mapping[str, Any]], network: Network, file: str
) -> dict[str, LayerRules]:
    """Layer → its rules; later overrides are laid over earlier ones, key by key."""
    rules = dict.fromkeys(network.layers, base)
    for number, table in enumerate(overrides, start=1):
        where = f"override {number}"
        toml.known(table, ("match", *TABLES), file, where)
        if "match" not in table:
            raise ConfigError(f"{file}: {where}: match is missing; give a layer name or a glob such as 'layer1.*'")
        for axis, key in (("activations", "calibrator"), ("prune", "multiple")):
            if key in toml.table(table, axis, file, where):
                raise ConfigError(f"{file}: {where}.{axis}.{key}: one {key} holds for the whole space")
        for layer in toml.matching(
            toml.texts(table["match"], file, f"{where}.match"), network.layers, file, f"{where}.match"
        ):
            rules[layer] = layer_rules(rules[layer], table, file, where)
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


def _same_rules(unit: str, layers: Sequence[str], rules: Mapping[str, LayerRules], file: str) -> None:
    for layer in layers[1:]:
        if rules[layer] != rules[layers[0]]:
            raise ConfigError(
                f"{file}: group {unit!r}: {layers[0]} and {layer} have different settings; "
                f"let each override match all layers of the group"
            )


def _description(data: Mapping[str, Any], file: str) -> dict[str, str]:
    table = toml.table(data, "description", file)
    toml.known(table, ("title", "text"), file, "description")
    for key, value in table.items():
        if not isinstance(value, str):
            raise ConfigError(f"{file}: description.{key} = {value!r}; give a text")
    return {"title": table.get("title", ""), "text": table.get("text", "")}
