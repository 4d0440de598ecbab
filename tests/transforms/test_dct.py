"""Kernels in the frequency domain: smooth kernels pay, the error is the coefficients'."""

from __future__ import annotations

import json

import pytest
import torch
from torch import Tensor, nn

from autocomp.coding.tensors import decode_tensor, encode_tensor
from autocomp.core.network import Layer
from autocomp.core.steps import StepConfig
from autocomp.errors import ConfigError, DataError, UnsupportedError
from autocomp.transforms.compensate import Hessian
from autocomp.transforms.dct import DctKernels
from autocomp.transforms.patches import weight_rows
from autocomp.transforms.problem import LayerProblem
from autocomp.transforms.quantize import QuantizeWeights, quantize_weight

LAYERS = [
    (nn.Conv2d(8, 12, 3, padding=1), (8, 6, 6), 0),
    (nn.Conv2d(8, 12, 3, groups=4), (8, 6, 6), 0),
    (nn.Conv1d(4, 6, 5), (4, 20), 0),
    (nn.Conv2d(4, 6, (1, 7)), (4, 9, 9), 0),
    (nn.ConvTranspose2d(4, 6, 3, stride=2), (4, 5, 5), 1),
]


def problem(layer: nn.Module, shape: tuple[int, ...], axis: int) -> LayerProblem:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(layer.weight.shape, generator=generator)
    inputs = torch.randn(40, *shape, generator=generator)
    inputs = (inputs + inputs.roll(1, -1)).relu()
    return LayerProblem(name="layer", weight=weight, axis=axis, hessian=Hessian.of(layer, [inputs]))


def output_error(case: LayerProblem, weight: Tensor) -> float:
    assert case.hessian is not None
    rows = weight_rows(weight - case.weight, case.hessian.groups, case.axis)[:, :, case.hessian.columns]
    return float(((rows @ case.hessian.second[0]) * rows).sum())


@pytest.mark.parametrize(("layer", "shape", "axis"), LAYERS, ids=str)
def test_fine_steps_give_the_weight_back(layer: nn.Module, shape: tuple[int, ...], axis: int) -> None:
    case = problem(layer, shape, axis)
    before = case.weight.clone()
    for rounding in ("nearest", "compensated"):
        encoding = DctKernels(step=0.04, rounding=rounding).encode(case)
        # rounding errors of a step of 0.04 deviations are 0.04 / sqrt(12); compensation may double it
        assert float((encoding.decode() - case.weight).square().mean().sqrt()) < 0.025 * float(case.weight.std())
        assert torch.equal(decode_tensor(encode_tensor(encoding)).decode(), encoding.decode())
    assert torch.equal(case.weight, before)


@pytest.mark.parametrize(("layer", "shape", "axis"), LAYERS, ids=str)
def test_compensation_works_in_the_frequency_domain(layer: nn.Module, shape: tuple[int, ...], axis: int) -> None:
    case = problem(layer, shape, axis)
    errors = [
        output_error(case, DctKernels(step=1.0, rounding=r).encode(case).decode()) for r in ("compensated", "nearest")
    ]
    assert errors[0] < 0.95 * errors[1]


def test_smooth_kernels_cost_less_than_their_weights() -> None:
    generator = torch.Generator().manual_seed(1)
    x = torch.linspace(-1, 1, 7)
    bump = torch.exp(-(x[:, None] ** 2 + x[None] ** 2))
    slope = x[None].expand(7, 7)
    mix = torch.randn(32, 16, 2, generator=generator)
    weight = mix[..., :1, None] * bump + mix[..., 1:, None] * slope
    weight = weight + 0.02 * torch.randn(weight.shape, generator=generator)
    case = LayerProblem(name="x", weight=weight)
    dct = DctKernels(step=0.2, granularity="tensor").encode(case)
    plain = quantize_weight(weight, QuantizeWeights(step=0.2, granularity="tensor", rounding="nearest"))
    assert len(encode_tensor(dct)) < 0.6 * len(encode_tensor(plain))
    assert float((dct.decode() - weight).square().sum()) < 1.05 * float((plain.decode() - weight).square().sum())


def test_a_constant_kernel_is_one_coefficient() -> None:
    encoding = DctKernels(step=0.5).encode(
        LayerProblem(name="x", weight=torch.tensor([1.0, -2.0]).reshape(2, 1, 1, 1).expand(2, 3, 4, 4).contiguous())
    )
    assert int((encoding.symbols != 0).flatten(2).sum(2).max()) == 1
    assert bool((encoding.symbols[:, :, 0, 0] != 0).all())


def test_blocks_and_dead_columns_fall_back_to_nearest() -> None:
    layer = nn.Conv2d(2, 3, 3, padding=1)
    hessian = Hessian.of(layer, [torch.randn(20, 2, 1, 1)])  # only the centre tap ever meets an input
    case = LayerProblem(
        name="x", weight=torch.randn(3, 2, 3, 3, generator=torch.Generator().manual_seed(0)), hessian=hessian
    )
    first, second = (DctKernels(rounding=r).encode(case) for r in ("compensated", "nearest"))
    assert torch.equal(first.symbols, second.symbols)


def test_what_has_no_kernel_is_refused() -> None:
    def reason(*shape: int) -> str | None:
        return DctKernels().legal(Layer(name="x", kind="conv2d", weight="w", bias=None, weight_shape=shape))

    assert reason(8, 4, 3, 3) is None
    assert reason(8, 4, 1, 3) is None
    assert "no kernel" in (reason(8, 4, 1, 1) or "")
    assert "no kernel" in (reason(8, 4) or "")
    assert "at most 16" in (reason(8, 4, 17) or "")
    with pytest.raises(UnsupportedError, match="layer x"):
        DctKernels().encode(LayerProblem(name="x", weight=torch.ones(3, 4)))
    with pytest.raises(UnsupportedError, match="keeps no zeros"):
        DctKernels().encode(
            LayerProblem(name="x", weight=torch.ones(1, 1, 3), mask=torch.ones(1, 1, 3, dtype=torch.bool))
        )
    with pytest.raises(DataError, match="layer x"):
        DctKernels().encode(LayerProblem(name="x", weight=torch.full((1, 1, 3), float("nan"))))


def test_settings() -> None:
    steps = [DctKernels(), DctKernels(step=1.5, granularity="tensor", rounding="nearest")]
    for step in steps:
        assert StepConfig.from_json(json.loads(json.dumps(step.to_json()))) == step
    assert steps[0].label() != steps[1].label()
    assert DctKernels(granularity="tensor").encode(problem(*LAYERS[0]).replace(channel_scales=True)).scale.shape == (
        12,
    )
    for bad in ({"step": 0.0}, {"step": 9.0}, {"granularity": "row"}, {"rounding": "up"}):
        with pytest.raises(ConfigError, match=next(iter(bad))):
            DctKernels(**bad)  # type: ignore[arg-type]
