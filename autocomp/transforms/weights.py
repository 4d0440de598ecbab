"""One entry point for every weight transform: a layer's weight under each of several choices."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from autocomp.core.encodings import Encoding, FloatTensor
from autocomp.core.network import Layer
from autocomp.core.steps import Choice, StepConfig
from autocomp.errors import DataError, UnsupportedError
from autocomp.transforms.problem import LayerProblem
from autocomp.transforms.quantize import QuantizeWeights, quantize_many
from autocomp.transforms.snr import QuantizeSnr
from autocomp.transforms.sparsify import Sparsify, legal_sparsify, sparsify
from autocomp.transforms.weight_step import WeightStep


def compress_layer(problem: LayerProblem, choices: Sequence[Choice]) -> list[Encoding]:
    """The problem's weight as each choice wants it: made sparse, then stored by its step on the "weights" axis.

    Each sparsity is computed once, and all uniform grids on it share one column loop. A choice's encoding does not
    depend on the other choices: those that :func:`rounds_to_nearest` never see the inputs.

    Args:
        problem: the layer; a mask that it already has holds for all choices.
        choices: only their steps on the axes "sparsity" and "weights" count. Without either: float32.

    Returns:
        One encoding a choice, in order.

    Raises:
        DataError: the weight is not finite.
        UnsupportedError: a step that is no weight transform, or that keeps no zeros after sparsity.
    """
    if not bool(torch.isfinite(problem.weight).all()):
        raise DataError(f"layer {problem.name}: weights are not finite (NaN or infinity); mend the checkpoint")
    by_sparsity: dict[tuple[StepConfig | None, bool], list[int]] = {}
    for i, choice in enumerate(choices):
        by_sparsity.setdefault((choice.get("sparsity"), rounds_to_nearest(choice)), []).append(i)
    made: dict[int, Encoding] = {}
    for (step, plain), places in by_sparsity.items():
        sparse = problem.replace(hessian=None) if plain else problem
        sparse = sparse if step is None else sparsify(sparse, _sparsify_step(step))
        steps = [choices[i].get("weights") for i in places]
        made.update(zip(places, _encodings(sparse, steps), strict=True))
    return [made[i] for i in range(len(choices))]


def _sparsify_step(step: StepConfig) -> Sparsify:
    if not isinstance(step, Sparsify):
        raise UnsupportedError(f"{step.kind} is no way to make a weight sparse; use sparsify")
    return step


def _encodings(problem: LayerProblem, steps: Sequence[StepConfig | None]) -> list[Encoding]:
    """One encoding a step of one (sparse) weight."""
    made: list[Encoding | None] = [None] * len(steps)
    grids: dict[int, QuantizeWeights] = {}
    for i, step in enumerate(steps):
        if step is None:
            mask = problem.mask
            made[i] = FloatTensor(values=problem.weight if mask is None else torch.where(mask, problem.weight, 0.0))
        elif isinstance(step, QuantizeWeights):
            grids[i] = step
        elif isinstance(step, QuantizeSnr):
            grids[i] = step.resolve(problem)
        elif callable(encode := getattr(step, "encode", None)):
            made[i] = encode(problem)
        else:
            raise UnsupportedError(f"layer {problem.name}: {step.kind} is no weight transform")
    if grids:
        quantized = quantize_many(
            problem.weight,
            list(grids.values()),
            hessian=problem.hessian,
            axis=problem.axis,
            channel_scales=problem.channel_scales,
            mask=problem.mask,
        )
        for i, encoding in zip(grids, quantized, strict=True):
            made[i] = encoding
    return [encoding for encoding in made if encoding is not None]


def legal_weights(layer: Layer, choice: Choice) -> str | None:
    """Why the choice's "sparsity" and "weights" steps cannot be applied to ``layer``; None where they can."""
    sparsity, step = choice.get("sparsity"), choice.get("weights")
    if sparsity is not None:
        if not isinstance(sparsity, Sparsify):
            return f"{sparsity.kind} is no way to make a weight sparse"
        reason = legal_sparsify(layer, sparsity)
        if reason is not None:
            return reason
    if step is None or isinstance(step, QuantizeWeights):
        return None
    if not callable(getattr(step, "encode", None)):
        return f"{step.kind} is no weight transform"
    if sparsity is not None and not getattr(step, "keeps_zeros", False):
        return f"{step.kind} keeps no zeros, so it does not go with {sparsity.kind}"
    return step.legal(layer) if isinstance(step, WeightStep) else None


def rounds_to_nearest(choice: Choice) -> bool:
    """Whether the choice's weights follow from the layer's weight alone, so that no inputs need be collected."""
    return not any(getattr(step, "uses_inputs", True) for step in choice.only("sparsity", "weights").steps)
