"""Structured pruning: channels, neurons and attention heads are removed, and the layers behind them refitted."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, MutableMapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor, nn

from autocomp.core.edits import Edit
from autocomp.core.network import Network
from autocomp.core.steps import StepConfig
from autocomp.core.variant import Origin, Variant
from autocomp.errors import ConfigError, UnknownNameError
from autocomp.graph._cuts import Place, resized, taken
from autocomp.graph.coupling import ChannelGroup, Coupling
from autocomp.graph.edit import edited, edited_module
from autocomp.transforms._importance import CRITERIA, choose, largest, measured
from autocomp.transforms._refit import refitted
from autocomp.transforms.compensate import Hessian


@dataclass(frozen=True, kw_only=True)
class PruneChannels(StepConfig):
    """A share of a coupled group's channels (or attention heads) is removed.

    Attributes:
        ratio: in (0, 1), the share of the group's entries that go; at least one stays.
        criterion: which ones: the least important by "l1", "l2", "bn_scale", "activation", "taylor",
            "hessian" or "random" (see :func:`~autocomp.transforms._importance.importance`).
    """

    kind: ClassVar[str] = "prune_channels"
    axis: ClassVar[str] = "prune"
    order: ClassVar[int] = 10

    ratio: float
    criterion: str = "l1"

    def __post_init__(self) -> None:
        _check_ratio("prune_channels.ratio", self.ratio)
        if self.criterion not in CRITERIA:
            raise ConfigError(f"prune_channels.criterion = {self.criterion!r}; allowed {', '.join(CRITERIA)}")

    def label(self) -> str:
        return f"p{self.ratio:g}{CRITERIA[self.criterion]}"


def _check_ratio(name: str, ratio: float) -> None:
    if not 0 < ratio < 1:
        raise ConfigError(f"{name} = {ratio:g}; allowed above 0 and below 1; leave the step out to remove nothing")


def kept_channels(channels: int, ratio: float, *, multiple: int = 1) -> int:
    """How many of ``channels`` entries stay: the share 1 - ``ratio``, rounded to a multiple (nearest, half up).

    Never 0 and never more than there are. Where no multiple below ``channels`` exists all of them stay.
    """
    nearest = multiple * max(1, math.floor(channels * (1 - ratio) / multiple + 0.5))
    return min(channels, nearest)


def kept_entries(group: ChannelGroup, ratio: float, multiple: int = 1) -> int:
    """:func:`kept_channels` of a group: ``multiple`` is of the root's channels, of which an entry may hold several."""
    return kept_channels(group.channels, ratio, multiple=multiple // math.gcd(multiple, group.width))


def legal_prune(group: ChannelGroup, ratio: float, multiple: int = 1) -> str | None:
    """Why ``ratio`` is nothing to try on ``group`` (one line), or None; computes nothing.

    Args:
        group: of a coupling.
        ratio: of :class:`PruneChannels`.
        multiple: what the target wants of numbers of channels.
    """
    if group.channels < 2:
        return f"{group.root}: one entry is left, and one has to stay"
    if kept_entries(group, ratio, multiple) == group.channels:
        grid = f" in multiples of {multiple}" if multiple > 1 else ""
        return f"{group.root}: ratio {ratio:g} of {group.channels} entries{grid} removes none; raise the ratio"
    return None


def prune_channels(
    variant: Variant,
    steps: Mapping[str, PruneChannels],
    *,
    coupling: Coupling,
    batches: Sequence[Tensor] | None = None,
    multiple: int = 1,
    compensate: bool = True,
    known: MutableMapping[str, Hessian] | None = None,
    seed: int = 0,
) -> Variant:
    """``variant`` without the least important entries of several groups, removed at once.

    Args:
        variant: what is pruned; left as it is.
        steps: root of a group → how it is pruned.
        coupling: of ``variant.network``.
        batches: calibration inputs [n, ...], for compensation and for criteria that look at data.
        multiple: numbers of channels that stay are rounded to multiples of it.
        compensate: refit the consumers' weights by least squares on ``batches``
            (:func:`~autocomp.transforms._refit.refitted`).
        known: second moments that earlier calls for this network and these batches measured; more are added.
        seed: of the criteria that are random.

    Raises:
        UnknownNameError: a root that ``coupling`` does not have.
        ConfigError: a step that is not legal (:func:`legal_prune`), calibration inputs missing, or a
            coupling of another network.
        DataError: calibration inputs that are empty or not finite.
    """
    (keep,) = _chosen(variant.network, [steps], coupling, batches, multiple, seed)
    return removed(variant, keep, coupling=coupling, batches=batches, compensate=compensate, known=known)


def pruned_modules(
    network: Network,
    alternatives: Sequence[Mapping[str, PruneChannels]],
    *,
    coupling: Coupling,
    batches: Sequence[Tensor],
    multiple: int = 1,
    seed: int = 0,
) -> Iterator[nn.Module]:
    """The module of :func:`prune_channels` for each of several steps, not traced: for whoever only runs them.

    Importance and second moments are measured once for all of them. Other arguments and errors as there.
    """
    keeps = _chosen(network, alternatives, coupling, batches, multiple, seed)
    refits = refitted(network, [_shrinking(network, coupling, keep) for keep in keeps], batches)
    removals = (_removal(network, keep, coupling, refit) for keep, refit in zip(keeps, refits, strict=True))
    return (edited_module(network.module, edits, tensors) for edits, tensors, _ in removals)


def _chosen(
    network: Network,
    alternatives: Sequence[Mapping[str, PruneChannels]],
    coupling: Coupling,
    batches: Sequence[Tensor] | None,
    multiple: int,
    seed: int,
) -> list[dict[str, Tensor]]:
    """For each alternative root → bool [entries], what stays; the steps are checked."""
    for steps in alternatives:
        _check_steps(coupling, steps, multiple)
        _check_fits(network, coupling, steps)
    every = [(root, step.criterion) for steps in alternatives for root, step in steps.items()]
    scores = measured(network, coupling, every, batches=batches, seed=seed)
    return [
        {
            root: largest(scores[root, step.criterion], kept_entries(coupling.groups[root], step.ratio, multiple))
            for root, step in steps.items()
        }
        for steps in alternatives
    ]


def _check_steps(coupling: Coupling, steps: Mapping[str, PruneChannels], multiple: int) -> None:
    if multiple < 1:
        raise ConfigError(f"prune_channels: multiple = {multiple}; allowed 1 and more")
    for root, step in steps.items():
        if root not in coupling.groups:
            raise UnknownNameError("group of channels", root, coupling.groups)
        reason = legal_prune(coupling.groups[root], step.ratio, multiple)
        if reason is not None:
            raise ConfigError(f"prune_channels: {reason}")


def removed(
    variant: Variant,
    keep: Mapping[str, Tensor],
    *,
    coupling: Coupling,
    batches: Sequence[Tensor] | None = None,
    compensate: bool = True,
    known: MutableMapping[str, Hessian] | None = None,
) -> Variant:
    """``variant`` with only the entries that ``keep`` (root → bool [entries]) names; see :func:`prune_channels`."""
    network = variant.network
    if compensate and batches is None:
        raise ConfigError("prune_channels: compensation needs calibration inputs; pass batches or compensate=False")
    _check_fits(network, coupling, keep)
    shrinking = [_shrinking(network, coupling, keep)]
    (refits,) = refitted(network, shrinking, batches or (), known) if compensate else ({},)
    edits, tensors, origins = _removal(network, keep, coupling, refits)
    return edited(variant, edits, tensors, origins)


def _removal(
    network: Network, keep: Mapping[str, Tensor], coupling: Coupling, refits: Mapping[str, Tensor]
) -> tuple[list[Edit], dict[str, Tensor], dict[str, Origin]]:
    """Edits, values of what they make anew or what was refitted, and what the layers were."""
    masks = coupling.masks(keep)
    tensors = {**dict(network.module.named_parameters()), **dict(network.module.named_buffers()), **refits}
    edits, indices = resized(network.module, masks)
    small = {key: taken(tensors[key].detach(), kept) for key, kept in indices.items()}
    whole = {key: tensor for key, tensor in refits.items() if key not in small}
    origins = {name: Origin(layer=name, outputs=kept) for name, kept in _outputs_kept(coupling, keep, masks).items()}
    return edits, {**small, **whole}, origins


def _check_fits(network: Network, coupling: Coupling, roots: Iterable[str]) -> None:
    for cut in (c for root in roots for c in coupling.groups[root].cuts):
        value = getattr(network.module.get_submodule(cut.path), cut.name)
        size = value if cut.axis is None else value.shape[cut.axis]
        if size != len(cut.entries):
            raise ConfigError(
                f"prune_channels: {cut.path}.{cut.name} has size {size}, the coupling says {len(cut.entries)}; "
                "find the coupled groups of this network anew"
            )


def _shrinking(network: Network, coupling: Coupling, keep: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Layer → bool [inputs of one convolution group], for every layer that loses inputs."""
    masks = coupling.masks(keep)
    found = {}
    for root in keep:
        for cut in coupling.groups[root].cuts:
            if cut.role == "input" and cut.name == "weight":
                mask = masks[cut.place]
                # a transposed convolution counts the inputs of all its groups on one axis
                groups = network.layers[cut.path].groups if cut.axis == 0 else 1
                found[cut.path] = mask[: len(mask) // groups]
    return found


def _outputs_kept(coupling: Coupling, keep: Mapping[str, Tensor], masks: Mapping[Place, Tensor]) -> dict[str, Tensor]:
    """Layer → int64 [kept], for every layer whose outputs shrink."""
    found = {}
    for root in keep:
        group = coupling.groups[root]
        for name in group.layers:
            place = group.output_cut(name).place
            found[name] = masks[place].nonzero().flatten()
    return found


def global_ratios(
    coupling: Coupling, scores: Mapping[str, Tensor], share: float, *, multiple: int = 1
) -> dict[str, float]:
    """One ratio a group, from one threshold over the entries of all groups.

    Scores are normalised as in LAMP (Lee et al. 2021, "Layer-adaptive sparsity for the magnitude-based
    pruning"): each is divided by the sum of those not smaller in its group, so the largest of a group is
    1 and goes last. Ours works on whole channels and on whatever criterion made the scores (already
    sums; the paper squares weights).

    Args:
        coupling: of the network.
        scores: root → [entries], from :func:`~autocomp.transforms._importance.importance`.
        share: in (0, 1), of all entries together.
        multiple: as for :func:`prune_channels`.

    Returns:
        Ratios of the groups that lose something once rounded, each legal by :func:`legal_prune`.
    """
    _check_ratio("global pruning: share", share)
    normalised = {}
    for root, values in scores.items():
        ordered, order = values.double().clamp_min(0).sort()
        above = ordered.flip(0).cumsum(0).flip(0)
        normalised[root] = torch.empty_like(ordered)
        normalised[root][order] = ordered / above.clamp_min(1e-300)
    pool = torch.cat(list(normalised.values())).sort().values
    threshold = pool[min(len(pool) - 1, int(share * len(pool)))]
    ratios = {}
    for root, values in normalised.items():
        gone = min(int((values < threshold).sum()), len(values) - 1)
        if gone and legal_prune(coupling.groups[root], gone / len(values), multiple) is None:
            ratios[root] = gone / len(values)
    return ratios


def schedule(ratio: float, steps: int) -> list[float]:
    """Ratios after each of ``steps`` rounds, the last one ``ratio``: fast at first, slow at the end.

    Source: the cubic schedule of Zhu and Gupta 2017, "To prune, or not to prune".
    """
    _check_ratio("schedule: ratio", ratio)
    if steps < 1:
        raise ConfigError(f"schedule: steps = {steps}; allowed 1 and more")
    return [ratio * (1 - (1 - i / steps) ** 3) for i in range(1, steps)] + [ratio]


def iterative_prune(
    variant: Variant,
    steps: Mapping[str, PruneChannels],
    *,
    coupling: Coupling,
    batches: Sequence[Tensor] | None = None,
    rounds: int = 3,
    tune: Callable[[nn.Module], None] | None = None,
    multiple: int = 1,
    compensate: bool = True,
    seed: int = 0,
) -> Variant:
    """:func:`prune_channels` in rounds: importance is measured anew on what each round leaves.

    Args:
        rounds: how many, on the cubic :func:`schedule`; the last one reaches the ratios of ``steps``.
        tune: called after each round (once something was removed) with that round's module, whose
            parameters it may train in place. What folded norms said of a layer's outputs no longer holds
            then and is dropped.
        (others): as for :func:`prune_channels`.

    Raises:
        ConfigError: as there; also "bn_scale" with ``tune``, because training moves the folded scales.
    """
    if tune is not None and any(step.criterion == "bn_scale" for step in steps.values()):
        raise ConfigError("prune_channels.criterion = 'bn_scale' does not go with fine-tuning in between; use l1")
    _check_steps(coupling, steps, multiple)
    start, first = variant, coupling
    criteria = {root: step.criterion for root, step in steps.items()}
    plans = {root: schedule(step.ratio, rounds) for root, step in steps.items()}
    for i in range(rounds):
        wanted = {root: kept_entries(first.groups[root], plan[i], multiple) for root, plan in plans.items()}
        counts = {root: n for root, n in wanted.items() if n < coupling.groups[root].channels}
        if counts:
            keep = choose(variant.network, coupling, counts, criteria, batches=batches, seed=seed + i)
            variant = removed(variant, keep, coupling=coupling, batches=batches, compensate=compensate)
            coupling = coupling.after(keep)
        if tune is not None and variant is not start:
            variant = _tuned(variant, tune)
    return variant


def _tuned(variant: Variant, tune: Callable[[nn.Module], None]) -> Variant:
    network = variant.network
    trained = {id(p) for p in network.module.parameters()}
    for parameter in network.module.parameters():
        parameter.requires_grad_(parameter.is_floating_point())
    with torch.enable_grad():
        tune(network.module)
    if {id(p) for p in network.module.parameters()} != trained:
        raise ConfigError("prune_channels: tune replaced parameters; train those that the module has, in place")
    for parameter in network.module.parameters():
        parameter.requires_grad_(False)
        parameter.grad = None
    network.module.eval()
    return replace(variant, network=replace(network, folds={}))
