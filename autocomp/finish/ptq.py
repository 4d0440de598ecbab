"""``--finish ptq``: every layer rounded anew, in order of execution, on the inputs it will really get.

For each layer: inputs x from the network that is already compressed up to it, targets from the float
network (plus the error that a skip connection brings to the same sum); a ridge least-squares fit of the
weight toward the target; error-compensated rounding of the fitted weight on the candidate's grid with the
centred Hessian; then the exact bias. Statistics are not restored once more behind it: least squares shrinks
what it cannot predict, and scaling that up again amplifies the error (measured on ResNet-20 at 2 to 3 bits:
KL 0.122 with, 0.112 without). Sources: GPTQ (Frantar et al. 2022) for the rounding; fitting toward
float targets on compressed inputs as in AdaRound's "asymmetric reconstruction" (Nagel et al. 2020) and
OBC (Frantar and Alistarh 2022).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from autocomp.core.compressed import CompressedModel
from autocomp.core.encodings import Encoding, FloatTensor, QuantizedTensor
from autocomp.core.network import Layer, Network
from autocomp.core.progress import Progress, Silent
from autocomp.errors import DataError
from autocomp.finish import Finished, LayerFit
from autocomp.finish._fit import Problem
from autocomp.finish._walk import GraphWalk, HookWalk, Walk, live_bytes
from autocomp.transforms.compensate import Hessian, compensated
from autocomp.transforms.grids import Grid
from autocomp.transforms.patches import by_rows, channel_axis, weight_from_rows, weight_rows
from autocomp.transforms.problem import LayerProblem
from autocomp.transforms.quantize import QuantizeWeights, column_importance, make_grid
from autocomp.transforms.rate import rate_aware
from autocomp.transforms.statistics import FloatStatistics
from autocomp.transforms.weights import compress_layer

SAMPLES = 1 << 15
"""Input vectors a layer is fitted on: far more than its columns, far fewer than all positions of all images."""

_WALK_BYTES = 3 << 29  # 1.5 GiB of activations


def finish(
    network: Network,
    compressed: CompressedModel,
    batches: Sequence[Tensor],
    *,
    float_statistics: FloatStatistics | None = None,
    progress: Progress | None = None,
    step_factor: float = 1.0,
    seed: int = 0,
) -> Finished:
    """Sequential compensated rounding; see the module's text and :class:`autocomp.finish.Finish`.

    Step grids keep the absolute scales that the candidate's settings give, so bytes stay close to the
    candidate's (times ``step_factor``); grids of nominal bits choose their scale for the fitted weight.

    Raises:
        DataError: no images, or values that are not finite.
    """
    if not batches or not sum(len(b) for b in batches):
        raise DataError("--finish ptq needs calibration images; give at least one")
    progress = progress or Silent()
    images = torch.cat(list(batches))
    notes = []
    with torch.inference_mode():
        fit = max(2, _WALK_BYTES // live_bytes(network, images[:2]))
    if fit < len(images):
        notes.append(f"fitted on {fit} of {len(images)} calibration images, which is what fits in memory")
    layers = [la for la in network.layers.values() if _why_not(la) is None]
    notes += [f"{la.name} stays as it was: {_why_not(la)}" for la in network.layers.values() if _why_not(la)]
    tensors, fits = dict(compressed.tensors), []
    progress.stage("finish", total=len(layers))
    with torch.inference_mode():
        walk: Walk = (HookWalk if network.graph is None else GraphWalk)(network, compressed, images[:fit])
        for layer in layers:
            inputs, target = walk.at(layer)
            made, layer_fit = _refit(network, compressed, layer, inputs, target, step_factor, seed)
            del inputs, target
            tensors.update(made)
            walk.put(layer, {key: encoding.decode() for key, encoding in made.items()})
            fits.append(layer_fit)
            progress.advance(layer=layer.name)
    result = compressed.replace(tensors=tensors, steps=(*compressed.steps, "finish_ptq"))
    return Finished(compressed=result, layers=tuple(fits), notes=tuple(notes))


def _why_not(layer: Layer) -> str | None:
    """Why a layer is not refitted, None where it is."""
    if layer.kind == "embedding":
        return "an embedding has no inputs to compensate on"
    if layer.aliases or layer.calls > 1:
        return "its weight is used in several places"
    return None


def _refit(
    network: Network,
    compressed: CompressedModel,
    layer: Layer,
    inputs: Tensor,
    target: Tensor,
    step_factor: float,
    seed: int,
) -> tuple[dict[str, Encoding], LayerFit]:
    """New encodings of a layer's weight and bias."""
    module = network.module.get_submodule(layer.name)
    axis = channel_axis(module)
    weight = network.module.get_parameter(layer.weight).detach()
    try:
        problem = Problem.of(module, inputs, target, samples=SAMPLES, seed=seed)
    except DataError as error:
        raise DataError(f"layer {layer.name}: {error}") from None
    float_rows = weight_rows(weight, layer.groups, axis)
    wanted = float_rows + problem.change()
    encoding = _encode(network, compressed, layer, module, wanted, problem, step_factor)
    change = weight_rows(encoding.decode(), layer.groups, axis) - float_rows
    before = weight_rows(compressed.tensors[layer.weight].decode(), layer.groups, axis) - float_rows
    made: dict[str, Encoding] = {layer.weight: encoding}
    if layer.bias is not None:
        values = network.module.get_parameter(layer.bias).detach() + problem.bias(change)
        made[layer.bias] = FloatTensor.half(values)
    return made, LayerFit(layer=layer.name, before=problem.error(before), after=problem.error(change))


def _encode(
    network: Network,
    compressed: CompressedModel,
    layer: Layer,
    module: nn.Module,
    wanted: Tensor,
    problem: Problem,
    step_factor: float,
) -> Encoding:
    """``wanted`` [groups, rows, n] stored as the candidate says for this layer; grids are always compensated."""
    axis = channel_axis(module)
    old = compressed.tensors[layer.weight]
    values = weight_from_rows(wanted, layer.weight_shape, axis)
    choice = compressed.candidate[layer.name].storage()
    config, sparse = choice.get("weights"), choice.get("sparsity") is not None
    if isinstance(old, FloatTensor) and not sparse:
        return FloatTensor(values=values) if old.width == 32 else FloatTensor.half(values)
    hessian = problem.hessian if layer.bias is None else problem.hessian.centred()
    if isinstance(old, FloatTensor) or not isinstance(config, QuantizeWeights):
        fitted = LayerProblem(
            name=layer.name,
            weight=values,
            axis=axis,
            hessian=hessian,
            channel_scales=layer.name in network.folds,
        )
        return compress_layer(fitted, [choice])[0]
    grid = _grid(network, layer, config, values, problem.hessian, axis, step_factor)
    scale, zero = (by_rows(numbers, wanted, axis) for numbers in (grid.scale, grid.zeros()))
    low, high = torch.tensor([[float(grid.low)]]), torch.tensor([[float(grid.high)]])
    mask = weight_rows(old.decode() != 0, layer.groups, axis) if sparse else None
    method = rate_aware if config.rounding == "rate" else compensated
    symbols = method(wanted, hessian, scale, zero, low, high, mask=mask)
    stored = grid.expanded(layer.weight_shape[axis]) if layer.name in network.folds else grid
    return QuantizedTensor(
        symbols=weight_from_rows(symbols, layer.weight_shape, axis).to(torch.int16),
        scale=stored.scale,
        zero_point=None if stored.zero is None else stored.zero.to(torch.int16),
        axis=axis,
        bits=config.bits,
    )


def _grid(
    network: Network,
    layer: Layer,
    config: QuantizeWeights,
    wanted: Tensor,
    hessian: Hessian,
    axis: int,
    step_factor: float,
) -> Grid:
    """Step grids from the float weight, so that their scale is the candidate's; others for the fitted weight."""
    source = wanted
    if config.step is not None:
        source = network.module.get_parameter(layer.weight).detach()
        config = replace(config, step=min(8.0, max(0.01, config.step * step_factor)))
    channels = source.transpose(0, axis).reshape(source.shape[axis], -1)
    return make_grid(channels, config, column_importance(hessian, channels, axis))
