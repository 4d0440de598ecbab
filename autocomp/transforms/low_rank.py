"""Low-rank factorisation: a layer replaced by a chain of smaller ones that computes nearly the same."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor, nn

from autocomp.core.edits import LayerSpec, Replace
from autocomp.core.network import Layer, Network
from autocomp.core.steps import StepConfig
from autocomp.core.variant import Origin, Variant
from autocomp.errors import ConfigError, DataError, UnknownNameError, UnsupportedError
from autocomp.graph import ops
from autocomp.graph.edit import edited
from autocomp.transforms._evbmf import suggested_rank
from autocomp.transforms._factors import carriers, decompose, dense, factor_shapes, full_ranks, share_ranks
from autocomp.transforms.compensate import Hessian

__all__ = [
    "Factorise",
    "approximation",
    "factor_parameters",
    "factor_specs",
    "factor_weights",
    "factorise",
    "legal_factorise",
    "suggested_rank",
]

_LABELS = {"svd": "svd", "whitened_svd": "wsvd", "tucker2": "tk", "cp": "cp", "spatial": "sp"}
_NEEDS_KERNEL = ("tucker2", "cp", "spatial")
_CALLED = (nn.Linear, nn.Conv1d, nn.Conv2d)
_READERS = (nn.MultiheadAttention, nn.TransformerEncoderLayer)


@dataclass(frozen=True, kw_only=True)
class Factorise(StepConfig):
    """A layer of [out, in, *kernel] as a chain of layers of lower rank.

    Attributes:
        method: what the chain is, and what its full rank is:
            "svd": kernel in → k, pointwise k → out (Denton et al. 2014; Zhang et al. 2015);
            full rank min(out, in * kernel).
            "whitened_svd": the same chain, best for the layer's calibration inputs (SVD-LLM, Wang et al. 2024).
            "tucker2": pointwise in → r_in, kernel r_in → r_out, pointwise r_out → out (Kim et al. 2016);
            full ranks min(in, out * kernel) and min(out, in * kernel).
            "cp": pointwise in → k, depthwise along each spatial axis, pointwise k → out (Lebedev et al.
            2015); the full rank is that at which the chain has as many weights as the layer.
            "spatial": kernel (h, 1) in → k, then (1, w) k → out (Jaderberg et al. 2014); full rank
            min(in * h, out * w).
        rank: share of the full rank, in (0, 1); the rank is rounded to the nearest integer.
    """

    kind: ClassVar[str] = "factorise"
    axis: ClassVar[str] = "rank"
    order: ClassVar[int] = 20

    method: str = "svd"
    rank: float

    def __post_init__(self) -> None:
        if self.method not in _LABELS:
            raise ConfigError(f"factorise.method = {self.method!r}; allowed {', '.join(_LABELS)}")
        if not 0 < self.rank < 1:
            raise ConfigError(f"factorise.rank = {self.rank}; allowed (0, 1), a share of the full rank")

    def label(self) -> str:
        return f"{_LABELS[self.method]}{self.rank:g}"


def legal_factorise(layer: Layer, step: Factorise, network: Network | None = None) -> str | None:
    """Why a layer cannot be factorised like this (one line), or None where it can. Computes nothing.

    Args:
        layer: any layer.
        step: what is asked for.
        network: the layer's; with it, what only the module tells is checked as well (its class, its padding,
            who reads its weight).
    """
    shape = layer.weight_shape
    if layer.kind not in ("conv1d", "conv2d", "linear"):
        return f"{layer.kind} layers are not factorised, only conv1d, conv2d and linear"
    if not layer.name:
        return "the model is one layer; there is no module to replace it in"
    if layer.groups != 1:
        return f"its convolution has {layer.groups} groups; only ungrouped ones are factorised"
    if layer.aliases or layer.calls > 1:
        why = f"shared with {', '.join(layer.aliases)}" if layer.aliases else f"used {layer.calls} times"
        return f"its weight is {why}; only weights used once are factorised"
    if step.method in _NEEDS_KERNEL and max(shape[2:], default=1) == 1:
        return f"{step.method} needs a kernel larger than 1; take svd or whitened_svd"
    if step.method == "spatial" and (len(shape) != 4 or min(shape[2:]) == 1):
        return "spatial needs a kernel larger than 1 on two axes; take svd or whitened_svd"
    ranks, full = share_ranks(step.method, shape, step.rank), full_ranks(step.method, shape)
    if min(ranks) < 1:
        return f"{step.rank:g} of the full rank {min(full)} is below 1; ask for more"
    if any(rank >= most for rank, most in zip(ranks, full, strict=True)):
        return f"{step.rank:g} of the full rank {min(full)} is all of it; ask for less"
    count, before = factor_parameters(layer, step), torch.Size(shape).numel()
    if count >= before:
        return f"a rank that would enlarge the layer is illegal: {count} weights in place of {before}; ask for less"
    return None if network is None else _illegal_module(network, layer)


def _illegal_module(network: Network, layer: Layer) -> str | None:
    module, name = network.module.get_submodule(layer.name), layer.name
    if type(module) not in _CALLED:
        return f"{type(module).__name__} is more than a plain layer"
    if isinstance(network.module.get_submodule(name.rpartition(".")[0]), _READERS) or not _called(network, layer):
        return "the module around it reads its weight without calling it"
    padding = () if isinstance(module, nn.Linear) else _padding(module)
    return padding if isinstance(padding, str) else None


def _called(network: Network, layer: Layer) -> bool:
    """Whether the layer's module itself runs, rather than other code that takes its weight (torchvision's Swin)."""
    if network.graph is None:
        return True  # such layers were found by watching their modules run
    weights = ((node, ops.weight_of(node)) for node in network.graph.graph.nodes)
    return all(n.meta.get("path") == layer.name for n, w in weights if w is not None and w.target == layer.weight)


def _padding(module: nn.Module) -> tuple[int, ...] | str:
    """Zeros on both sides of each axis, or why the layer pads otherwise."""
    assert isinstance(module, nn.Conv1d | nn.Conv2d)
    if module.padding == "same":
        totals = [d * (k - 1) for d, k in zip(module.dilation, module.kernel_size, strict=True)]
        if any(total % 2 for total in totals):
            return "its padding differs between the two sides; a chain of layers pads both alike"
        padding = tuple(total // 2 for total in totals)
    elif isinstance(module.padding, str):
        padding = (0,) * len(module.kernel_size)
    else:
        padding = tuple(module.padding)
    if module.padding_mode != "zeros" and any(padding):
        return f"its padding is {module.padding_mode!r}; only zeros are kept by a chain of layers"
    return padding


def factor_parameters(layer: Layer, step: Factorise) -> int:
    """Weights of the chain, biases not counted, to compare with those of the layer's weight."""
    shapes = factor_shapes(step.method, layer.weight_shape, share_ranks(step.method, layer.weight_shape, step.rank))
    return sum(torch.Size(shape).numel() for shape in shapes)


def factor_specs(layer: Layer, step: Factorise, module: nn.Module) -> tuple[LayerSpec, ...]:
    """The chain, in order of execution; only its last layer has the bias.

    Args:
        layer: to be replaced; :func:`legal_factorise` holds.
        step: how.
        module: the layer's module.

    Raises:
        UnsupportedError: the module pads in a way that a chain of layers cannot.
    """
    shape = layer.weight_shape
    shapes = factor_shapes(step.method, shape, share_ranks(step.method, shape, step.rank))
    bias = getattr(module, "bias", None) is not None
    last = len(shapes) - 1
    if isinstance(module, nn.Linear):
        return tuple(
            LayerSpec(kind="linear", inputs=s[1], outputs=s[0], bias=bias and i == last) for i, s in enumerate(shapes)
        )
    assert isinstance(module, nn.Conv1d | nn.Conv2d)
    padding = _padding(module)
    if isinstance(padding, str):
        raise UnsupportedError(f"layer {layer.name}: {padding}; leave it as it is")
    carrier = carriers(step.method, shape)
    specs = []
    for i, s in enumerate(shapes):
        own = [axis == i for axis in carrier]
        groups = s[0] if step.method == "cp" and 0 < i < last else 1
        specs.append(
            LayerSpec(
                kind=layer.kind,
                inputs=s[1] * groups,
                outputs=s[0],
                kernel=s[2:],
                stride=tuple(v if on else 1 for v, on in zip(module.stride, own, strict=True)),
                padding=tuple(v if on else 0 for v, on in zip(padding, own, strict=True)),
                dilation=tuple(v if on else 1 for v, on in zip(module.dilation, own, strict=True)),
                groups=groups,
                bias=bias and i == last,
            )
        )
    return tuple(specs)


def approximation(
    weight: Tensor, layer: Layer, step: Factorise, hessian: Hessian | None = None, seed: int = 0, *, refit: bool = True
) -> Tensor:
    """The weight that the layer's chain computes with: for pricing without building modules.

    Args:
        weight: [out, in, *kernel] float32; read only.
        layer: its layer.
        step: how it is factorised.
        hessian: of the layer's inputs; None: the plain weight error counts.
        seed: of random starts ("cp").
        refit: with a Hessian, fit the last factor by least squares on the inputs.

    Returns:
        float32, the shape of ``weight``.

    Raises:
        ConfigError: the step is illegal for this layer.
        DataError: the weight is not finite.
        UnsupportedError: no decomposition of this rank is stable ("cp").
    """
    return dense(step.method, factor_weights(weight, layer, step, hessian, seed, refit=refit), layer.weight_shape)


def factorise(
    variant: Variant,
    steps: Mapping[str, Factorise],
    *,
    hessians: Callable[[str], Hessian | None],
    seed: int = 0,
    refit: bool = True,
) -> Variant:
    """``variant`` with layers replaced by their chains: "conv" becomes "conv.0", "conv.1", ...

    Args:
        variant: what is changed; left as it is.
        steps: layer of ``variant.network`` → how.
        hessians: of a layer's inputs, None where there is none; asked for one layer at a time.
        seed: of random starts ("cp").
        refit: with a Hessian, fit the last factor by least squares on the inputs.

    Returns:
        A new variant. A layer without a stable decomposition ("cp") stays as it is and is named in its notes.

    Raises:
        ConfigError: no such layer, or the step is illegal for it.
        DataError: a weight is not finite, or the model does not run with the chain in its place.
    """
    network = variant.network
    edits: list[Replace] = []
    tensors: dict[str, Tensor] = {}
    origins: dict[str, Origin] = {}
    notes: list[str] = []
    for name, step in steps.items():
        if name not in network.layers:
            raise UnknownNameError("layer", name, network.layers)
        layer, module = network.layers[name], network.module.get_submodule(name)
        _require_legal(legal_factorise(layer, step, network), layer, step)
        weight = network.module.get_parameter(layer.weight)
        try:
            factors = factor_weights(weight, layer, step, hessians(name), seed, refit=refit)
        except UnsupportedError as error:
            notes.append(f"{error}; the layer stays whole")
            continue
        edits.append(Replace(path=name, layers=factor_specs(layer, step, module)))
        tensors |= {f"{name}.{i}.weight": factor for i, factor in enumerate(factors)}
        last = len(factors) - 1
        if isinstance(module.bias, Tensor):
            tensors[f"{name}.{last}.bias"] = module.bias.detach()
        origins |= {f"{name}.{i}": Origin(layer=name, inner=i < last) for i in range(len(factors))}
    changed = edited(variant, edits, tensors, origins) if edits else variant
    return replace(changed, notes=(*variant.notes, *notes))


def factor_weights(
    weight: Tensor, layer: Layer, step: Factorise, hessian: Hessian | None = None, seed: int = 0, *, refit: bool = True
) -> tuple[Tensor, ...]:
    """The weights of a layer's chain, in order of execution; arguments and errors as for :func:`approximation`."""
    _require_legal(legal_factorise(layer, step), layer, step)
    if not bool(torch.isfinite(weight).all()):
        raise DataError(f"layer {layer.name}: weights are not finite (NaN or infinity); mend the checkpoint")
    ranks = share_ranks(step.method, layer.weight_shape, step.rank)
    try:
        return decompose(step.method, weight, ranks, hessian=hessian, refit_last=refit, seed=seed)
    except UnsupportedError as error:
        raise UnsupportedError(f"layer {layer.name}: {error}") from None


def _require_legal(reason: str | None, layer: Layer, step: Factorise) -> None:
    if reason is not None:
        raise ConfigError(f"layer {layer.name}: {step.label()} is not possible: {reason}")
