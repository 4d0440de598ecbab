"""Restoring each layer's output mean and deviation after its weights were rounded.

Rounding shifts and shrinks what a layer puts out, and the layers behind it were trained for the old
statistics. One forward pass over the calibration images gives every channel a gain (folded into the
weight's scale) and a bias that bring its mean and deviation back, each layer seeing inputs that are
already restored. It is BatchNorm re-estimation (as in OBC, Frantar and Alistarh 2022) done on the folded
network, and bias correction (Nagel et al. 2019) where there was no BatchNorm.

Targets are the float network's own statistics on the same images where :class:`FloatStatistics` is given:
the sampling noise of few images cancels, and an uncompressed network stays exactly as it is. Without it
they are the BatchNorm's learned mean and deviation.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from autocomp.core.compressed import CompressedModel
from autocomp.core.encodings import Encoding, FloatTensor
from autocomp.core.network import Layer, Network
from autocomp.transforms.observe import Pool, decoded_module, image_chunks, moments

GAIN_LIMITS = (0.25, 4.0)
"""A channel whose deviation changed by more than this is not trusted beyond it."""


_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)


@dataclass(frozen=True, kw_only=True, eq=False)
class FloatStatistics:
    """What the float network puts out on the calibration images; measured once, used for every candidate.

    Attributes:
        mean, std: [channels] by module path: outputs of layers, inputs of BatchNorms that stayed unfolded.
        images: how many were looked at.
    """

    mean: Mapping[str, Tensor]
    std: Mapping[str, Tensor]
    images: int

    @staticmethod
    def of(network: Network, batches: Sequence[Tensor]) -> FloatStatistics:
        """Of ``network.module`` on ``batches`` of inputs [n, ...].

        Raises:
            DataError: no images, or a layer's output is not finite (named).
        """
        module = decoded_module(network.module, {})
        chunks = image_chunks(network, batches)
        pools: dict[str, Pool] = {}
        for name, layer in _linear_layers(network).items():
            pool = pools[name] = Pool()
            axis = _output_axis(layer)
            module.get_submodule(name).register_forward_hook(
                lambda _m, _a, out, pool=pool, axis=axis: pool.add(*moments(out, axis))
            )
        for name, norm in _unfolded_norms(module).items():
            pool = pools[name] = Pool()
            norm.register_forward_pre_hook(lambda _m, args, pool=pool: pool.add(*moments(args[0], 1)))
        with torch.inference_mode():
            for chunk in chunks:
                module(chunk)
        seen = {name: pool.result(name) for name, pool in pools.items() if pool.count}
        return FloatStatistics(
            mean={n: m for n, (m, _) in seen.items()},
            std={n: v.sqrt() for n, (_, v) in seen.items()},
            images=sum(len(c) for c in chunks),
        )


def restore_statistics(
    network: Network,
    compressed: CompressedModel,
    batches: Sequence[Tensor],
    float_statistics: FloatStatistics | None = None,
) -> CompressedModel:
    """New gains and biases such that each layer's output has its old mean and deviation again.

    - Layers with a folded BatchNorm: gain and bias a channel. A scale shared by several channels (one a
      tensor) gets their mean gain; it stays one scale, so predicted bytes hold.
    - Other layers with a bias: the bias only, and only where ``float_statistics`` says what the mean was.
    - BatchNorms that stayed in the network: running mean and variance.

    All images go through in one batch where the activations fit 1 GiB; else in equal chunks, each restored
    by its own statistics on the way, the stored values coming from the pooled ones. Activation quantizers
    are ignored here: ranges are calibrated afterwards.

    Args:
        network: folded network.
        compressed: what to restore; untouched.
        batches: calibration inputs [n, ...].
        float_statistics: of the same images.

    Raises:
        DataError: no images, or an output is not finite.
    """
    module = decoded_module(network.module, {k: e.decode() for k, e in compressed.tensors.items()})
    chunks = image_chunks(network, batches)
    sites: list[_LayerSite | _NormSite] = []
    for name, layer in _linear_layers(network).items():
        site = _layer_site(network, layer, compressed, float_statistics)
        if site is not None:
            module.get_submodule(name).register_forward_hook(site)
            sites.append(site)
    for name, norm in _unfolded_norms(module).items():
        target = None
        if float_statistics is not None and name in float_statistics.mean:
            target = (float_statistics.mean[name], float_statistics.std[name])
        norm_site = _NormSite(name, norm, target)
        norm.register_forward_pre_hook(norm_site)
        sites.append(norm_site)
    if not sites:
        return compressed
    with torch.inference_mode():
        for chunk in chunks:
            module(chunk)
        tensors = dict(compressed.tensors)
        for done in sites:
            tensors.update(done.result(tensors))
    return compressed.replace(tensors=tensors, steps=(*compressed.steps, "restore_statistics"))


def restore_layer(
    network: Network, layer: Layer, weight: Encoding, bias: FloatTensor, target: Tensor, output: Tensor
) -> tuple[Encoding, FloatTensor]:
    """What :func:`restore_statistics` does to one layer, from outputs that were computed already.

    Args:
        network: folded network.
        layer: one of its layers, with a bias.
        weight, bias: its encodings, not yet restored.
        target: the float layer's output on some images.
        output: the output with ``weight`` and ``bias`` decoded, on the same images.

    Returns:
        New weight and bias encodings.
    """
    axis = _output_axis(layer)
    mean, variance, _ = moments(target, axis)
    gains = layer.name in network.folds and layer.calls == 1
    site = _LayerSite(layer, weight, bias, mean, variance.sqrt() if gains else None, in_pass=True)
    now_mean, now_variance, _ = moments(output, axis)
    new_weight, new_bias, _ = site.correction(now_mean, now_variance)
    return new_weight, new_bias


class _LayerSite:
    """Forward hook that restores a layer's output, and what it learnt."""

    def __init__(
        self, layer: Layer, weight: Encoding, bias: FloatTensor, mean: Tensor, std: Tensor | None, *, in_pass: bool
    ) -> None:
        self._layer, self._weight, self._bias = layer, weight, bias
        self._mean, self._std, self._in_pass = mean, std, in_pass
        self._pool = Pool()

    def __call__(self, _module: nn.Module, _args: object, output: Tensor) -> Tensor:
        axis = _output_axis(self._layer)
        mean, variance, count = moments(output, axis)
        self._pool.add(mean, variance, count)
        if not self._in_pass:
            return output
        _, bias, gain = self.correction(mean, variance)
        shift = bias.decode() - gain * self._bias.decode()
        return output.mul_(_along(gain, output, axis)).add_(_along(shift, output, axis))

    def correction(self, mean: Tensor, variance: Tensor) -> tuple[Encoding, FloatTensor, Tensor]:
        """New weight, new bias and the gain that the stored scales really make, [channels]."""
        weight, gain = self._weight, torch.ones_like(mean)
        if self._std is not None:
            weight, gain = with_gain(weight, _gain(self._std, variance.sqrt()), self._layer.channel_axis)
        bias = self._mean - gain * (mean - self._bias.decode())
        half = self._bias.width == 16
        return weight, FloatTensor.half(bias) if half else FloatTensor(values=bias), gain

    def result(self, _tensors: Mapping[str, Encoding]) -> dict[str, Encoding]:
        """The layer's new encodings."""
        if not self._pool.count:
            return {}
        weight, bias, _ = self.correction(*self._pool.result(self._layer.name))
        assert self._layer.bias is not None
        return {self._layer.weight: weight, self._layer.bias: bias}


class _NormSite:
    """Forward pre-hook that gives a BatchNorm the statistics of what it now receives."""

    def __init__(self, name: str, norm: nn.Module, target: tuple[Tensor, Tensor] | None) -> None:
        self._name, self._norm, self._target = name, norm, target
        assert isinstance(norm.running_mean, Tensor)
        assert isinstance(norm.running_var, Tensor)
        self._old = (norm.running_mean, norm.running_var)
        self._pool = Pool()

    def __call__(self, _module: nn.Module, args: tuple[Tensor, ...]) -> None:
        mean, variance, count = moments(args[0], 1)
        self._pool.add(mean, variance, count)
        self._norm.running_mean, self._norm.running_var = self._running(mean, variance)

    def _running(self, mean: Tensor, variance: Tensor) -> tuple[Tensor, Tensor]:
        if self._target is None:
            return mean, variance
        low, high = GAIN_LIMITS
        target_mean, target_std = self._target
        ratio = torch.where(target_std > 0, variance / target_std.square(), torch.ones_like(variance))
        return self._old[0] + mean - target_mean, self._old[1] * ratio.clamp(low**2, high**2)

    def result(self, tensors: Mapping[str, Encoding]) -> dict[str, Encoding]:
        """The new running statistics, as wide as the old ones were stored."""
        if not self._pool.count:
            return {}
        made: dict[str, Encoding] = {}
        for key, values in zip(
            ("running_mean", "running_var"), self._running(*self._pool.result(self._name)), strict=True
        ):
            old = tensors.get(f"{self._name}.{key}")
            if isinstance(old, FloatTensor):
                made[f"{self._name}.{key}"] = (
                    FloatTensor.half(values) if old.width == 16 else FloatTensor(values=values)
                )
        return made


def _layer_site(
    network: Network, layer: Layer, compressed: CompressedModel, known: FloatStatistics | None
) -> _LayerSite | None:
    """The hook for a layer, None where there is nothing to restore it with."""
    fold = network.folds.get(layer.name)
    if layer.bias is None or layer.aliases:
        return None
    if known is not None and layer.name in known.mean:
        mean, std = known.mean[layer.name], known.std[layer.name]
    elif fold is not None:
        mean, std = fold.mean, fold.std
    else:
        return None
    once = layer.calls == 1  # a reused layer is one weight with several outputs: only its mean over all is restored
    bias = compressed.tensors[layer.bias]
    assert isinstance(bias, FloatTensor)
    weight = compressed.tensors[layer.weight]
    gain = std if fold is not None and once else None
    return _LayerSite(layer, weight, bias, mean, gain, in_pass=once)


def _gain(target: Tensor, std: Tensor) -> Tensor:
    """Ratio of deviations, 1 for channels that are (or should be) constant."""
    floor = 1e-6 * max(float(target.max()), 1e-30)
    alive = (target > floor) & (std > floor)
    return torch.where(alive, target / std.clamp_min(floor), torch.ones_like(std)).clamp(*GAIN_LIMITS)


def with_gain(weight: Encoding, gain: Tensor, axis: int) -> tuple[Encoding, Tensor]:
    """``weight`` with ``gain`` [channels] folded in, and the gain [channels] that it now really has."""
    channels = gain.numel()
    if not isinstance(weight, FloatTensor):
        shared = gain.reshape(-1, weight.scale.numel()).mean(dim=0)
        made = weight.with_gain(shared)
        real = made.scale / weight.scale
        return made, real.repeat(channels // real.numel())
    shared = gain.reshape(-1, weight.values.shape[axis]).mean(dim=0)
    shape = [1] * weight.values.dim()
    shape[axis] = -1
    values = weight.values * shared.reshape(shape)
    changed: Encoding = FloatTensor.half(values) if weight.width == 16 else replace(weight, values=values)
    return changed, shared.repeat(channels // shared.numel())


def _linear_layers(network: Network) -> dict[str, Layer]:
    return {name: layer for name, layer in network.layers.items() if layer.kind != "embedding"}


def _unfolded_norms(module: nn.Module) -> dict[str, nn.Module]:
    return {n: m for n, m in module.named_modules() if isinstance(m, _NORMS) and isinstance(m.running_mean, Tensor)}


def _output_axis(layer: Layer) -> int:
    return -1 if layer.kind == "linear" else 1


def _along(values: Tensor, like: Tensor, axis: int) -> Tensor:
    shape = [1] * like.dim()
    shape[axis] = -1
    return values.reshape(shape)
