"""How much each channel matters: the criteria of structured pruning, summed over coupled layers."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial

import torch
from torch import Tensor, fx, nn

from autocomp.core.network import Network
from autocomp.errors import ConfigError
from autocomp.graph.coupling import ChannelGroup, Coupling
from autocomp.graph.program import Program
from autocomp.transforms.observe import image_chunks
from autocomp.transforms.patches import weight_rows

CRITERIA = {"l1": "", "l2": "l2", "bn_scale": "bn", "activation": "a", "taylor": "t", "hessian": "h", "random": "r"}
"""Criterion → what it adds to a setting's label."""

FROM_DATA = frozenset({"activation", "taylor", "hessian"})
"""Criteria that need calibration inputs."""

FISHER_SAMPLES = 64
"""Inputs of which "hessian" takes gradients, one by one."""

_GRADIENT_CHUNK = 16  # inputs of one pass with gradients: every activation is held


def importance(
    network: Network,
    groups: Iterable[ChannelGroup],
    criterion: str,
    *,
    batches: Sequence[Tensor] | None = None,
    seed: int = 0,
) -> dict[str, Tensor]:
    """Importance of every entry of ``groups``: root → float32 [entries], the sum over coupled layers.

    Args:
        network: folded; read only.
        groups: of :func:`~autocomp.graph.coupling.coupled_groups`.
        criterion: "l1", "l2": norm of the filters that make the channel (Li et al. 2017).
            "bn_scale": |gamma| of the norm behind it (network slimming, Liu et al. 2017).
            "activation": mean |output| behind the activation function (after APoZ, Hu et al. 2016, which
            counts zeros instead).
            "taylor": mean over inputs of |sum over positions of activation · gradient| (Molchanov et al. 2017).
            The loss is the cross-entropy of the label that the network itself predicts: no labels are
            needed, and the KL to its own outputs would have no gradient.
            "hessian": Σ ½ h w² over the filter (Optimal Brain Damage, LeCun et al. 1990), h being the
            diagonal of the Fisher information: squared gradients of single inputs, their labels drawn from
            the network's own softmax.
            "random": uniform (a control).
        batches: calibration inputs [n, ...], for "activation", "taylor" and "hessian".
        seed: of what is random.

    Raises:
        ConfigError: no calibration inputs where they are needed, no norm where its scale is, one output
            where classes are.
        DataError: no images.
    """
    groups = list(groups)
    if criterion in FROM_DATA and batches is None:
        raise ConfigError(f"prune_channels.criterion = {criterion!r} needs calibration inputs; pass batches, or use l1")
    if criterion == "random":
        return {group.root: _random(group, seed) for group in groups}
    layers = list(dict.fromkeys(name for group in groups for name in group.layers))
    scores: Mapping[str, Tensor]
    if criterion in ("l1", "l2"):
        power = 1 if criterion == "l1" else 2
        scores = {name: filters(network, name).abs().pow(power).sum(dim=1) for name in layers}
    elif criterion == "bn_scale":
        return {group.root: _norm_scale(network, group) for group in groups}
    elif criterion == "activation":
        scores = _activations(network, layers, batches or ())
    elif criterion == "taylor":
        scores = _taylor(network, layers, batches or ())
    else:
        scores = _fisher(network, layers, batches or (), seed)
    found = {g.root: _summed(g.channels, ((g.outputs(n), scores[n]) for n in g.layers)) for g in groups}
    return {root: s.sqrt() for root, s in found.items()} if criterion == "l2" else found


def choose(
    network: Network,
    coupling: Coupling,
    counts: Mapping[str, int],
    criteria: Mapping[str, str],
    *,
    batches: Sequence[Tensor] | None = None,
    seed: int = 0,
) -> dict[str, Tensor]:
    """The most important entries of each group: root → bool [entries], ``counts[root]`` of them true.

    Args and errors as for :func:`importance`; of equal entries the first stay.
    """
    scores = measured(network, coupling, [(root, criteria[root]) for root in counts], batches=batches, seed=seed)
    return {root: largest(scores[root, criteria[root]], count) for root, count in counts.items()}


def measured(
    network: Network,
    coupling: Coupling,
    wanted: Sequence[tuple[str, str]],
    *,
    batches: Sequence[Tensor] | None = None,
    seed: int = 0,
) -> dict[tuple[str, str], Tensor]:
    """(root, criterion) → :func:`importance` of the group's entries, one measurement a criterion."""
    found: dict[tuple[str, str], Tensor] = {}
    for criterion in dict.fromkeys(c for _, c in wanted):
        groups = [coupling.groups[root] for root in dict.fromkeys(r for r, c in wanted if c == criterion)]
        scores = importance(network, groups, criterion, batches=batches, seed=seed)
        found |= {(root, criterion): s for root, s in scores.items()}
    return found


def largest(scores: Tensor, count: int) -> Tensor:
    """bool [entries]: the ``count`` largest, of equal ones the first."""
    keep = torch.zeros(len(scores), dtype=torch.bool)
    keep[scores.argsort(descending=True, stable=True)[:count]] = True
    return keep


def filters(network: Network, name: str, weight: Tensor | None = None) -> Tensor:
    """A layer's weight (or a tensor of its shape) as [output channels, n]."""
    layer = network.layers[name]
    weight = network.module.get_parameter(layer.weight).detach() if weight is None else weight
    if layer.kind == "embedding":
        return weight.T
    return weight_rows(weight, layer.groups, layer.channel_axis).flatten(0, 1)


def _summed(channels: int, parts: Iterable[tuple[Tensor, Tensor]]) -> Tensor:
    """[channels] sums of (entry of each index, its score)."""
    total = torch.zeros(channels)
    for entries, scores in parts:
        inside = entries >= 0
        total.index_add_(0, entries[inside], scores.float()[inside])
    return total


def _random(group: ChannelGroup, seed: int) -> Tensor:
    # crc32 and not hash(): the same on every machine and in every process
    generator = torch.Generator().manual_seed((seed << 32) + zlib.crc32(group.root.encode()))
    return torch.rand(group.channels, generator=generator)


def _norm_scale(network: Network, group: ChannelGroup) -> Tensor:
    parts = [(group.outputs(n), network.folds[n].std) for n in group.layers if n in network.folds]
    for cut in group.cuts:
        module = network.module.get_submodule(cut.path)
        if cut.name == "weight" and isinstance(module, nn.modules.batchnorm._BatchNorm):
            parts.append((cut.entries, module.weight.detach().abs()))
    if not parts:
        raise ConfigError(
            f"prune_channels.criterion = 'bn_scale': no BatchNorm scales the channels of {group.root}; use l1"
        )
    return _summed(group.channels, parts)


def _channels(values: Tensor, kind: str) -> Tensor:
    """A layer's output as [n, positions, channels]."""
    if kind in ("linear", "embedding"):
        return values.reshape(values.shape[0], -1, values.shape[-1])
    return values.flatten(2).transpose(1, 2)


def _nodes(network: Network, layers: Iterable[str]) -> dict[str, str]:
    """Layer → fx node name of its output, behind the activation function where one follows at once."""
    return {name: network.values[network.layers[name].output_value or ""].node for name in layers}


def _activations(network: Network, layers: Sequence[str], batches: Sequence[Tensor]) -> dict[str, Tensor]:
    assert network.graph is not None
    program = Program(network.graph)
    names = _nodes(network, layers)
    nodes = program.named(set(names.values()))
    totals: dict[str, Tensor] = {}
    count = 0

    def observer(name: str) -> Callable[[fx.Node, Tensor], None]:
        def see(_node: fx.Node, values: Tensor) -> None:
            mean = _channels(values.abs(), network.layers[name].kind).mean(dim=1).double().sum(dim=0)
            totals[name] = totals[name] + mean if name in totals else mean

        return see

    observers = {nodes[names[name]]: observer(name) for name in layers}
    with torch.inference_mode():
        for chunk in image_chunks(network, batches):
            program.watch(chunk, observers)
            count += len(chunk)
    return {name: (total / count).float() for name, total in totals.items()}


def _taylor(network: Network, layers: Sequence[str], batches: Sequence[Tensor]) -> dict[str, Tensor]:
    assert network.graph is not None
    program = Program(network.graph)
    names = _nodes(network, layers)
    nodes = program.named(set(names.values()))
    tensors = _trainable(network)
    totals: dict[str, Tensor] = {}
    images = torch.cat(image_chunks(network, batches))
    for chunk in torch.split(images, _GRADIENT_CHUNK):
        seen: dict[str, Tensor] = {}
        observers = {nodes[names[name]]: partial(_remember, seen, name) for name in layers}
        with torch.enable_grad():
            logits = _logits(program.run(chunk, tensors=tensors, observe=observers))
            loss = nn.functional.cross_entropy(logits, logits.detach().argmax(dim=1), reduction="sum")
            gradients = torch.autograd.grad(loss, [seen[n] for n in layers], allow_unused=True)
        for name, gradient in zip(layers, gradients, strict=True):
            values = seen[name].detach()
            product = torch.zeros_like(values) if gradient is None else values * gradient
            score = _channels(product, network.layers[name].kind).sum(dim=1).abs().double().sum(dim=0)
            totals[name] = totals[name] + score if name in totals else score
    return {name: (total / len(images)).float() for name, total in totals.items()}


def _remember(seen: dict[str, Tensor], name: str, _node: fx.Node, values: Tensor) -> None:
    seen[name] = values


def _fisher(network: Network, layers: Sequence[str], batches: Sequence[Tensor], seed: int) -> dict[str, Tensor]:
    assert network.graph is not None
    program = Program(network.graph)
    tensors = _trainable(network)
    keys = [network.layers[name].weight for name in layers]
    weights = [tensors[key] for key in keys]
    squares = [torch.zeros_like(w) for w in weights]
    generator = torch.Generator().manual_seed(seed)
    images = torch.cat(image_chunks(network, batches))[:FISHER_SAMPLES]
    for image in torch.split(images, 1):
        with torch.enable_grad():
            logits = _logits(program.run(image, tensors=tensors))
            labels = torch.multinomial(logits.detach().softmax(dim=1), 1, generator=generator)[:, 0]
            loss = nn.functional.cross_entropy(logits, labels, reduction="sum")
            gradients = torch.autograd.grad(loss, weights, allow_unused=True)
        for total, gradient in zip(squares, gradients, strict=True):
            if gradient is not None:
                total += gradient.square()
    saliency = [0.5 * s / len(images) * w.detach().square() for s, w in zip(squares, weights, strict=True)]
    return {name: filters(network, name, s).sum(dim=1) for name, s in zip(layers, saliency, strict=True)}


def _trainable(network: Network) -> dict[str, Tensor]:
    """Copies of all parameters that take gradients; the network itself stays as it is."""
    return {
        key: p.detach().clone().requires_grad_(p.is_floating_point()) for key, p in network.module.named_parameters()
    }


def _logits(outputs: Tensor) -> Tensor:
    """Outputs as [samples, classes]: classes on axis 1 of images, on the last axis of anything else."""
    logits = outputs.movedim(1, -1) if outputs.dim() > 3 else outputs
    logits = logits.reshape(-1, logits.shape[-1])
    if logits.shape[-1] < 2:
        raise ConfigError(
            "prune_channels.criterion: the network has one output, so there is no predicted class; use activation or l1"
        )
    return logits
