"""Weights on grids: widths, scales, storage, and what compensation buys."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from autocomp.core.encodings import FloatTensor, QuantizedTensor, round_half
from autocomp.core.steps import Choice, StepConfig
from autocomp.errors import ConfigError, DataError
from autocomp.graph.trace import build_network
from autocomp.transforms.compensate import Hessian
from autocomp.transforms.problem import LayerProblem
from autocomp.transforms.quantize import QuantizeWeights, quantize_many, quantize_weight
from autocomp.transforms.weights import compress_layer

SETTINGS = [
    QuantizeWeights(bits=b, granularity=g, symmetric=s, scale=c, rounding="nearest")
    for b in (2, 3, 4, 8)
    for g in ("channel", "tensor")
    for s in (True, False)
    for c in ("mse", "max")
] + [
    QuantizeWeights(step=k, granularity=g, symmetric=s, rounding="nearest")
    for k in (0.01, 0.5, 3.0)
    for g in ("channel", "tensor")
    for s in (True, False)
]


def quantized(weight: Tensor, config: QuantizeWeights, **more: object) -> QuantizedTensor:
    encoding = quantize_weight(weight, config, **more)  # type: ignore[arg-type]
    assert isinstance(encoding, QuantizedTensor)
    return encoding


def squared(encoding: QuantizedTensor, weight: Tensor) -> float:
    return float((encoding.decode() - weight).square().sum())


@pytest.mark.parametrize("config", SETTINGS, ids=lambda c: c.label())
@settings(max_examples=5, deadline=None)
@given(seed=st.integers(0, 10_000), scale=st.sampled_from([1e-20, 1e-3, 1.0, 1e6]))
def test_symbols_fit_and_scales_are_storable(config: QuantizeWeights, seed: int, scale: float) -> None:
    rng = np.random.default_rng(seed)
    weight = torch.from_numpy(rng.standard_normal((5, 3, 2, 2)).astype(np.float32)) * scale
    weight[1] = 0  # a dead channel
    weight[2] = 0.3 * scale  # a constant one
    weight[3] *= 1e-4
    encoding = quantized(weight, config)
    top = 127 if config.bits is None else 2 ** (config.bits - 1) - 1
    bottom = -top - (0 if config.symmetric or config.bits is None else 1)
    assert bottom <= int(encoding.symbols.min())
    assert int(encoding.symbols.max()) <= top
    assert torch.equal(round_half(encoding.scale), encoding.scale)
    assert bool((encoding.scale > 0).all())
    assert encoding.scale.shape == ((5,) if config.granularity == "channel" else (1,))
    assert not bool(encoding.decode()[1].any())
    assert bool(torch.isfinite(encoding.decode()).all())
    if config.bits is None:  # nothing is clipped: within half a step everywhere
        step = encoding.scale.expand(5).reshape(5, 1, 1, 1)
        assert bool(((encoding.decode() - weight).abs() <= 0.5001 * step).all())


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("granularity", ["channel", "tensor"])
def test_mse_scale_is_never_worse_than_max(symmetric: bool, granularity: str) -> None:
    weight = torch.randn(16, 200, generator=torch.Generator().manual_seed(0)) ** 3 + 0.2
    for bits in (2, 3, 4, 6):
        errors = {
            scale: squared(
                quantized(
                    weight,
                    QuantizeWeights(
                        bits=bits, symmetric=symmetric, granularity=granularity, scale=scale, rounding="nearest"
                    ),
                ),
                weight,
            )
            for scale in ("mse", "max")
        }
        assert errors["mse"] <= errors["max"]
    assert errors["mse"] < errors["max"]


def test_mse_scale_is_near_the_best_of_an_exhaustive_search() -> None:
    weight = torch.randn(4, 500, generator=torch.Generator().manual_seed(1))
    got = quantized(weight, QuantizeWeights(bits=3, rounding="nearest"))
    scales = weight.abs().amax(1)[:, None] * torch.linspace(0.05, 1, 2000)[None] / 3
    best = torch.stack(
        [((weight / s[:, None]).round().clamp(-3, 3) * s[:, None] - weight).square().sum(1) for s in scales.unbind(1)]
    ).amin(0)
    assert bool(((got.decode() - weight).square().sum(1) <= 1.02 * best).all())


def test_max_scale_keeps_the_extremes() -> None:
    weight = torch.randn(6, 50, generator=torch.Generator().manual_seed(2))
    encoding = quantized(weight, QuantizeWeights(bits=4, scale="max", rounding="nearest"))
    assert torch.equal(encoding.symbols.abs().amax(1), torch.full((6,), 7, dtype=torch.int16))
    assert torch.allclose(encoding.scale, weight.abs().amax(1) / 7, rtol=2**-8)


def test_asymmetric_uses_its_range() -> None:
    weight = torch.rand(6, 400, generator=torch.Generator().manual_seed(2)) + 0.5
    errors = [
        squared(quantized(weight, QuantizeWeights(bits=4, symmetric=s, scale="max", rounding="nearest")), weight)
        for s in (True, False)
    ]
    assert errors[1] < 0.4 * errors[0]


def test_step_is_in_deviations() -> None:
    weight = torch.randn(3, 400) * torch.tensor([[1.0], [2.0], [5.0]])
    by_channel = quantized(weight, QuantizeWeights(step=0.5))
    assert torch.allclose(by_channel.scale, 0.5 * weight.std(1, correction=0), rtol=2**-8)
    by_tensor = quantized(weight, QuantizeWeights(step=0.5, granularity="tensor"))
    assert torch.allclose(by_tensor.scale, 0.5 * weight.std(correction=0), rtol=2**-8)


def test_sixteen_bits_are_float_values() -> None:
    weight = torch.randn(4, 5)
    encoding = quantize_weight(weight, QuantizeWeights(bits=16))
    assert isinstance(encoding, FloatTensor)
    assert encoding.width == 16
    assert torch.allclose(encoding.decode(), weight, rtol=2**-11)


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (nn.Conv2d(6, 8, 3, padding=1), (6, 6, 6)),
        (nn.Conv2d(6, 8, 3, groups=2), (6, 6, 6)),
        (nn.Conv2d(6, 6, 3, groups=6), (6, 9, 9)),
        (nn.Conv1d(4, 6, 5), (4, 20)),
        (nn.Conv3d(2, 4, 3), (2, 6, 6, 6)),
        (nn.ConvTranspose2d(4, 6, 3, stride=2), (4, 5, 5)),
        (nn.ConvTranspose2d(4, 6, 3, groups=2), (4, 6, 6)),
        (nn.Linear(12, 5), (9, 12)),
    ],
    ids=str,
)
def test_compensated_output_error_is_below_nearest(layer: nn.Module, shape: tuple[int, ...]) -> None:
    axis = 1 if isinstance(layer, nn.ConvTranspose2d) else 0
    configs = [QuantizeWeights(bits=3), QuantizeWeights(step=0.9), QuantizeWeights(bits=4, symmetric=False)]
    better, worse = [0.0] * len(configs), [0.0] * len(configs)

    def output_error(encoding: QuantizedTensor, inputs: torch.Tensor) -> float:
        with torch.no_grad():
            expected = layer(inputs)
            found = torch.func.functional_call(layer, {"weight": encoding.decode()}, (inputs,))
        return float((found - expected).square().mean())

    # column by column is greedy: on one layer of a few columns it may lose, on a few draws together it must not
    for seed in range(4):
        torch.manual_seed(seed)
        layer.reset_parameters()
        inputs = torch.randn(16, *shape)
        inputs = inputs + inputs.roll(1, dims=-1) + 0.5  # neighbours are alike, as in images
        hessian = Hessian.of(layer, [inputs])
        weight = layer.weight.detach()
        for i, config in enumerate(configs):
            nearest = dataclasses.replace(config, rounding="nearest")
            made = quantized(weight, config, hessian=hessian, axis=axis)
            assert made.symbols.shape == weight.shape
            assert made.scale.shape == (weight.shape[axis],)
            better[i] += output_error(made, inputs)
            worse[i] += output_error(quantized(weight, nearest, hessian=hessian, axis=axis), inputs)
    assert all(b < w for b, w in zip(better, worse, strict=True))


def test_many_equals_one_by_one() -> None:
    torch.manual_seed(5)
    layer = nn.Conv2d(6, 8, 3, groups=2)
    hessian = Hessian.of(layer, [torch.randn(9, 6, 8, 8)])
    configs = [
        QuantizeWeights(step=0.5),
        QuantizeWeights(bits=16),
        QuantizeWeights(bits=4, symmetric=False),
        QuantizeWeights(bits=4, rounding="nearest"),
        QuantizeWeights(bits=2, granularity="tensor"),
        QuantizeWeights(step=1.5, granularity="tensor", symmetric=False),
    ]
    many = quantize_many(layer.weight, configs, hessian=hessian)
    for config, got in zip(configs, many, strict=True):
        alone = quantize_weight(layer.weight, config, hessian=hessian)
        assert torch.equal(got.decode(), alone.decode())
        assert got.decode().shape == layer.weight.shape


def test_taps_that_meet_only_padding_become_zero() -> None:
    layer = nn.Conv2d(4, 4, 3, padding=1)
    hessian = Hessian.of(layer, [torch.randn(30, 4, 1, 1)])
    made = quantized(layer.weight.detach(), QuantizeWeights(bits=4), hessian=hessian)
    outside = torch.ones(3, 3, dtype=torch.bool)
    outside[1, 1] = False
    assert not bool(made.decode()[:, :, outside].any())
    assert bool(made.decode()[:, :, 1, 1].any())


def test_without_hessian_compensated_is_nearest() -> None:
    weight = torch.randn(20, 6)
    one = quantized(weight, QuantizeWeights(bits=4))
    two = quantized(weight, QuantizeWeights(bits=4, rounding="nearest"))
    assert torch.equal(one.symbols, two.symbols)


def test_layers_with_a_fold_store_channel_scales() -> None:
    model = nn.Sequential(nn.Conv2d(3, 5, 3), nn.BatchNorm2d(5), nn.ReLU(), nn.Flatten(), nn.Linear(5 * 36, 4)).eval()
    network = build_network(model, torch.randn(2, 3, 8, 8))
    config = QuantizeWeights(step=0.5, granularity="tensor")
    shapes = {}
    for name in network.layers:
        encoding = compress_layer(LayerProblem.of(network, name), [Choice((config,))])[0]
        assert isinstance(encoding, QuantizedTensor)
        shapes[name] = tuple(encoding.scale.shape)
    assert shapes == {"0": (5,), "4": (1,)}


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_weights_that_are_not_finite(bad: float) -> None:
    weight = torch.randn(3, 3)
    weight[1, 1] = bad
    with pytest.raises(DataError, match="not finite"):
        quantize_weight(weight, QuantizeWeights(bits=4))


@pytest.mark.parametrize("config", [*SETTINGS, QuantizeWeights(bits=16)], ids=lambda c: c.label())
def test_settings_round_trip(config: QuantizeWeights) -> None:
    assert StepConfig.from_json(config.to_json()) == config


@pytest.mark.parametrize(
    "fields", [{}, {"bits": 4, "step": 1.0}, {"bits": 9}, {"step": 0.0}, {"bits": 4, "scale": "l1"}]
)
def test_settings_out_of_range(fields: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match="quantize_weights"):
        QuantizeWeights(**fields)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "config",
    [
        QuantizeWeights(step=0.5),
        QuantizeWeights(bits=4),
        QuantizeWeights(bits=3, symmetric=False),
        QuantizeWeights(step=0.5, symmetric=False, rounding="nearest"),
        QuantizeWeights(bits=16),
    ],
    ids=lambda c: c.label(),
)
@pytest.mark.parametrize("axis", [0, 1])
def test_masked_weights_stay_exactly_zero(config: QuantizeWeights, axis: int) -> None:
    layer = nn.ConvTranspose2d(4, 6, 3) if axis else nn.Conv2d(4, 6, 3)
    generator = torch.Generator().manual_seed(5)
    weight = torch.randn(layer.weight.shape, generator=generator) + 0.5
    mask = torch.rand(weight.shape, generator=generator) > 0.6
    mask[0] = False
    hessian = Hessian.of(layer, [torch.randn(10, 4, 6, 6, generator=generator)])
    [encoding] = quantize_many(weight, [config], hessian=hessian, axis=axis, mask=mask)
    decoded = encoding.decode()
    assert not bool(decoded[~mask].any())
    assert bool(decoded[mask].any())
