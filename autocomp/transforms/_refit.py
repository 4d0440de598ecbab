"""Least-squares compensation: what the remaining inputs of a layer can do for those that were removed.

With H = E[xxᵀ] of the layer's inputs and K the columns that stay, W' = W H[:, K] H[K, K]⁻¹ minimises
E‖Wx − W'x_K‖²; with a bias, H is the covariance and the bias takes up the means. He et al. 2017 ("Channel
Pruning for Accelerating Very Deep Neural Networks", section 3.1) refit weights so; ours does it in closed
form and on the inputs of the network as it was.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, MutableMapping, Sequence

import torch
from torch import Tensor, fx

from autocomp.core.network import Network
from autocomp.errors import DataError
from autocomp.graph.program import Program
from autocomp.transforms.compensate import DAMPING, Hessian, Moments
from autocomp.transforms.observe import image_chunks
from autocomp.transforms.patches import Patches, has_patches, weight_from_rows, weight_rows

_CHUNK = 16  # images whose patches are made at a time
_HESSIAN_VALUES = 1 << 28  # floats of second moments measured together, and as many that are known (1 GiB each)


def refitted(
    network: Network,
    removals: Sequence[Mapping[str, Tensor]],
    batches: Sequence[Tensor],
    known: MutableMapping[str, Hessian] | None = None,
) -> list[dict[str, Tensor]]:
    """Weights and biases of layers that lose inputs, fitted so that their outputs change least.

    Args:
        network: before anything is removed; read only.
        removals: alternatives, which share the passes over the data; each is layer → bool [inputs of one
            convolution group], which input channels stay.
        batches: calibration inputs [n, ...].
        known: layer → second moments of its inputs in this network on these inputs, from earlier calls; what is
            measured here is added while it fits. None: nothing is kept.

    Returns:
        For each removal, state-dict key → float32 tensor of the old shape; its removed columns mean nothing.
        Layers that are no linear map of their input are left out.

    Raises:
        DataError: no calibration inputs, or activations that are not finite.
    """
    names = [
        n
        for n in dict.fromkeys(n for inputs in removals for n in inputs)
        if has_patches(network.module.get_submodule(n)) and network.layers[n].input_value is not None
    ]
    found: list[dict[str, Tensor]] = [{} for _ in removals]

    def fit(name: str, hessian: Hessian) -> None:
        for fitted, inputs in zip(found, removals, strict=True):
            if name in inputs:
                fitted.update(_fit(network, name, inputs[name], hessian))

    earlier = {name: known[name] for name in names if name in known} if known is not None else {}
    for name, hessian in earlier.items():
        fit(name, hessian)
    for part in _parts(network, [name for name in names if name not in earlier]):
        for name, hessian in _hessians(network, part, batches).items():
            fit(name, hessian)
            if known is not None and sum(map(_values, (*known.values(), hessian))) <= _HESSIAN_VALUES:
                known[name] = hessian
    return found


def _values(hessian: Hessian) -> int:
    return sum(block.numel() for block in hessian.second)


def _parts(network: Network, names: Sequence[str]) -> Iterator[list[str]]:
    """Layers whose second moments fit into memory together."""
    part: list[str] = []
    held = 0
    for name in names:
        layer = network.layers[name]
        inputs = layer.weight_shape[1 - layer.channel_axis] // (layer.groups if layer.channel_axis else 1)
        size = layer.groups * (inputs * math.prod(layer.weight_shape[2:])) ** 2
        if part and held + size > _HESSIAN_VALUES:
            yield part
            part, held = [], 0
        part.append(name)
        held += size
    if part:
        yield part


def _hessians(network: Network, names: Sequence[str], batches: Sequence[Tensor]) -> dict[str, Hessian]:
    """Of each layer's inputs, all in one pass."""
    assert network.graph is not None
    program = Program(network.graph)
    by_name = {node.name: node for node in program.nodes}
    sums: dict[str, Moments] = {}
    readers: dict[fx.Node, list[str]] = {}
    for name in names:
        node = by_name[network.values[network.layers[name].input_value or ""].node]
        readers.setdefault(node, []).append(name)

    def observer(layers: Sequence[str]) -> Callable[[fx.Node, Tensor], None]:
        def see(_node: fx.Node, values: Tensor) -> None:
            for name in layers:
                if name not in sums:
                    sums[name] = Moments(Patches.of(network.module.get_submodule(name), values.shape))
                for image in torch.split(values, _CHUNK):
                    sums[name].add(sums[name].patches.rows(image))

        return see

    with torch.inference_mode():
        for chunk in image_chunks(network, batches):
            program.watch(chunk, {node: observer(layers) for node, layers in readers.items()})
        return {name: total.hessian() for name, total in sums.items()}


def _fit(network: Network, name: str, keep: Tensor, hessian: Hessian) -> dict[str, Tensor]:
    layer = network.layers[name]
    weight = network.module.get_parameter(layer.weight).detach()
    rows = weight_rows(weight, layer.groups, layer.channel_axis)
    stays = keep.repeat_interleave(rows.shape[2] // len(keep))
    moments = hessian if layer.bias is None else hessian.centred()
    fitted = rows.clone()
    start = 0
    for block in moments.second:
        columns = hessian.columns[start : start + block.shape[-1]]
        start += block.shape[-1]
        here = stays[columns]
        kept = columns[here]
        if not len(kept) or bool(here.all()):
            continue
        inner = block[:, here][:, :, here].double()
        lost = columns[~here]
        across = block[:, ~here][:, :, here].double()
        factor = _damped_factor(inner)
        change = torch.cholesky_solve(across.transpose(1, 2), factor).transpose(1, 2)
        fitted[:, :, kept] += (rows[:, :, lost].double() @ change).float()
    found = {layer.weight: weight_from_rows(fitted, weight.shape, layer.channel_axis)}
    if layer.bias is not None:
        mean = hessian.mean.new_zeros(hessian.groups, hessian.width)
        mean[:, hessian.columns] = hessian.mean
        shift = rows @ mean[:, :, None] - fitted[:, :, stays] @ mean[:, stays, None]
        found[layer.bias] = network.module.get_parameter(layer.bias).detach() + shift.flatten()
    return found


def _damped_factor(inner: Tensor) -> Tensor:
    """Cholesky factor of ``inner`` [groups, k, k], damped; changed in place.

    Damping pulls towards the old weights, not towards zero: nothing changes where nothing is to be gained. It is
    raised tenfold until the decomposition holds: inputs that hardly vary around a large mean leave a covariance
    that is mostly rounding.
    """
    if not bool(torch.isfinite(inner).all()):
        raise DataError("a layer's calibration inputs are not finite (NaN or infinity); mend the data or the weights")
    index = torch.arange(inner.shape[-1])
    size = inner.diagonal(dim1=1, dim2=2).mean(dim=1, keepdim=True).clamp_min(1e-30)
    damping = added = DAMPING
    while True:
        inner[:, index, index] += added * size
        factor, info = torch.linalg.cholesky_ex(inner)
        if not bool(info.any()):
            return torch.as_tensor(factor)
        damping, added = 10 * damping, 9 * damping
