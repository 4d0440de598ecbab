"""Sparsity: which weights of a layer become zero, and how the others make good for them."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from autocomp.core.network import Layer
from autocomp.core.steps import StepConfig
from autocomp.errors import ConfigError, DataError
from autocomp.transforms._masked import inverse_diagonal, refit, schedule
from autocomp.transforms.patches import weight_from_rows, weight_rows
from autocomp.transforms.problem import LayerProblem

CRITERIA = ("magnitude", "wanda", "obc", "random")

_LARGEST_GROUP = 64


@dataclass(frozen=True, kw_only=True)
class Sparsify(StepConfig):
    """Zeros in a weight: a share of it, or N of every M weights.

    Attributes:
        ratio: share of weights that become zero, in (0, 1). Exclusive with ``pattern``.
        pattern: "N:M": at most N weights of M consecutive input channels stay, at each output channel and kernel
            position (what NVIDIA's sparse tensor cores want of 2:4; Mishra et al. 2021).
        criterion: what goes first. "magnitude": small |w| (Han et al. 2015). "wanda": small |w| · ‖x‖ (Sun et al.
            2023). "obc": small w² / [H⁻¹]_jj, the others refitted to the layer's output on its inputs (optimal brain
            surgeon; Frantar and Alistarh 2022). "random": a control. Without inputs (an embedding) the middle two
            are "magnitude".
        scope: weights compete within the whole "layer", or within each output channel ("row"). Not for patterns.
    """

    kind: ClassVar[str] = "sparsify"
    axis: ClassVar[str] = "sparsity"
    order: ClassVar[int] = 30

    ratio: float | None = None
    pattern: str | None = None
    criterion: str = "obc"
    scope: str = "layer"

    def __post_init__(self) -> None:
        if (self.ratio is None) == (self.pattern is None):
            raise ConfigError("sparsify: give either ratio or pattern")
        if self.ratio is not None and not 0 < self.ratio < 1:
            raise ConfigError(f"sparsify.ratio = {self.ratio}; allowed above 0 and below 1")
        if self.pattern is not None:
            found = re.fullmatch(r"([1-9]\d?):([1-9]\d?)", self.pattern)
            if not found or not int(found[1]) < int(found[2]) <= _LARGEST_GROUP:
                raise ConfigError(
                    f'sparsify.pattern = {self.pattern!r}; allowed "N:M" with N < M <= {_LARGEST_GROUP} ("2:4")'
                )
        for name, allowed in (("criterion", CRITERIA), ("scope", ("layer", "row"))):
            if getattr(self, name) not in allowed:
                raise ConfigError(f"sparsify.{name} = {getattr(self, name)!r}; allowed {', '.join(allowed)}")
        if self.pattern is not None and self.scope != "layer":
            raise ConfigError("sparsify.scope: a pattern has its own groups; leave scope out")

    def keep_of(self) -> tuple[int, int] | None:
        """(N, M) of the pattern."""
        if self.pattern is None:
            return None
        keep, size = self.pattern.split(":")
        return int(keep), int(size)

    @property
    def uses_inputs(self) -> bool:
        """Whether the result depends on the layer's inputs where they are known."""
        return self.criterion in ("wanda", "obc")

    def label(self) -> str:
        text = f"s{self.ratio:g}" if self.ratio is not None else f"s{self.pattern}"
        text += {"obc": "", "magnitude": "m", "wanda": "w", "random": "r"}[self.criterion]
        return text + ("" if self.scope == "layer" else "row")


def legal_sparsify(layer: Layer, step: Sparsify) -> str | None:
    """Why ``step`` cannot be applied to ``layer``; None where it can."""
    size = math.prod(layer.weight_shape)
    if size < 2:
        return "a single weight cannot be sparse"
    pattern = step.keep_of()
    if pattern is None:
        rows = layer.weight_shape[layer.channel_axis] if step.scope == "row" else 1
        assert step.ratio is not None
        # the same rounding as in sparsify; a setting that changes nothing is not worth a search's time
        return None if round(step.ratio * (size // rows)) else f"{step.ratio:g} of {size // rows} weights is none"
    if layer.kind == "embedding":
        return f"pattern {step.pattern} runs along input channels, and an embedding has none"
    inputs = layer.weight_shape[0] // layer.groups if layer.channel_axis else layer.weight_shape[1]
    if inputs % pattern[1]:
        return f"pattern {step.pattern}: {inputs} input channels a group are no multiple of {pattern[1]}"
    return None


def sparsify(problem: LayerProblem, step: Sparsify) -> LayerProblem:
    """The problem with ``mask`` set to what stays; weights that an earlier mask removed stay removed.

    For "obc" ``weight`` changes too: the weights that stay are refitted so that the layer's output on its inputs
    stays as near as it can, and the others are zero. Otherwise ``weight`` is as it was, so that compensated rounding
    can still make good for what was removed. At least one weight stays (in each row, for scope "row").

    Raises:
        DataError: weights that are not finite.
        ConfigError: a pattern that does not divide the input channels (:func:`legal_sparsify` says so before).
    """
    if not bool(torch.isfinite(problem.weight).all()):
        raise DataError(f"layer {problem.name}: weights are not finite (NaN or infinity); mend the checkpoint")
    hessian, axis = problem.hessian, problem.axis
    groups = 1 if hessian is None else hessian.groups
    original = weight_rows(problem.weight, groups, axis)
    removed = torch.zeros_like(original, dtype=torch.bool)
    if problem.mask is not None:
        removed = ~weight_rows(problem.mask, groups, axis)
    taps = math.prod(problem.weight.shape[2:])
    if step.criterion != "obc" or hessian is None:
        kept = _select(_saliency(original, problem, step.criterion), removed, step, taps, 1.0)
        return problem.replace(mask=weight_from_rows(kept, problem.weight.shape, axis))
    weights, inverse = original, inverse_diagonal(hessian)
    kept = ~removed
    # rounds of removing some and refitting the others: saliencies change as neighbours go
    rounds, steps, last = schedule(hessian, original.shape[1])
    for i in range(1, rounds + 1):
        saliency = weights.square() / inverse[:, None, :]
        kept = _select(saliency, ~kept, step, taps, i / rounds)
        weights = refit(original, weights, kept, hessian, steps=last if i == rounds else steps)
    return problem.replace(
        mask=weight_from_rows(kept, problem.weight.shape, axis),
        weight=weight_from_rows(weights, problem.weight.shape, axis),
    )


def _saliency(rows: Tensor, problem: LayerProblem, criterion: str) -> Tensor:
    """What removing each weight of [groups, rows, n] costs, by its criterion (not "obc")."""
    if criterion == "random":
        generator = torch.Generator().manual_seed(problem.seed)
        return torch.rand(rows.shape, generator=generator)
    if criterion == "wanda" and problem.hessian is not None:
        return rows.abs() * problem.hessian.diagonal().sqrt()[:, None, :]
    return rows.abs()


def _select(saliency: Tensor, removed: Tensor, step: Sparsify, taps: int, share: float) -> Tensor:
    """What stays of [groups, rows, n] after ``share`` of the way: the most salient; ties keep the first."""
    saliency = saliency.masked_fill(removed, -1.0)
    groups, rows, n = saliency.shape
    pattern = step.keep_of()
    if pattern is not None:
        keep, size = pattern
        if n // taps % size:
            raise ConfigError(
                f"sparsify.pattern = {step.pattern}: {n // taps} input channels are no multiple of {size}"
            )
        pools = saliency.reshape(groups, rows, n // taps, taps).transpose(2, 3).reshape(-1, size)
        count = size - math.ceil((size - keep) * share)
    else:
        assert step.ratio is not None
        pools = saliency.reshape(groups * rows if step.scope == "row" else 1, -1)
        count = pools.shape[1] - round(step.ratio * pools.shape[1] * share)
    kept = _largest(pools, max(1, count))
    if pattern is not None:
        kept = kept.reshape(groups, rows, taps, n // taps).transpose(2, 3)
    return kept.reshape(groups, rows, n) & ~removed


def _largest(pools: Tensor, count: int) -> Tensor:
    """Where the ``count`` largest of each row of [pools, n] are, the first of equal ones."""
    if pools.shape[1] <= _LARGEST_GROUP:
        order = pools.argsort(dim=1, descending=True, stable=True)[:, :count]
        return torch.zeros_like(pools, dtype=torch.bool).scatter_(1, order, True)
    # a long row is not sorted but cut at one value: an eighth of the time on millions of weights
    least = pools.kthvalue(pools.shape[1] - count + 1, dim=1, keepdim=True).values
    above, equal = pools > least, pools == least
    wanted = count - above.sum(dim=1, keepdim=True)
    if bool((equal.sum(dim=1, keepdim=True) > wanted).any()):
        equal &= equal.cumsum(dim=1) <= wanted
    return above | equal


def global_ratios(weights: Mapping[str, Tensor], ratio: float) -> dict[str, float]:
    """Each layer's share of weights below the one magnitude that ``ratio`` of all weights lie below.

    Args:
        weights: by layer, any shapes.
        ratio: of all layers together, in (0, 1).

    Returns:
        By layer, in [0, 1): where a whole layer lies below, one of its weights is spared.

    Raises:
        ConfigError: ``ratio`` outside (0, 1).
        DataError: weights that are not finite.
    """
    if not 0 < ratio < 1:
        raise ConfigError(f"ratio of all layers = {ratio}; allowed above 0 and below 1")
    sizes = {name: weight.detach().abs().flatten() for name, weight in weights.items() if weight.numel()}
    if not sizes:
        return {}
    every = torch.cat(list(sizes.values()))
    if not bool(torch.isfinite(every).all()):
        raise DataError("weights are not finite (NaN or infinity); mend the checkpoint")
    count = round(ratio * every.numel())
    below = torch.zeros(every.numel())
    below[every.argsort(stable=True)[:count]] = 1  # by rank: exact also where magnitudes are equal
    parts = torch.split(below, [len(v) for v in sizes.values()])
    return {name: min(int(part.sum()), len(part) - 1) / len(part) for name, part in zip(sizes, parts, strict=True)}
