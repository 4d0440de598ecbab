"""Binary and ternary weights: the papers' formulas, exact zeros, and what compensation buys."""

from __future__ import annotations

import json

import pytest
import torch
from torch import Tensor, nn

from autocomp.coding.tensors import decode_tensor, encode_tensor
from autocomp.core.encodings import QuantizedTensor
from autocomp.core.steps import StepConfig
from autocomp.errors import ConfigError, DataError
from autocomp.transforms.binarize import BinarizeWeights, TernarizeWeights
from autocomp.transforms.compensate import Hessian
from autocomp.transforms.patches import weight_rows
from autocomp.transforms.problem import LayerProblem


def problem(layer: nn.Module | None = None, axis: int = 0) -> LayerProblem:
    layer = nn.Conv2d(8, 12, 3, padding=1) if layer is None else layer
    generator = torch.Generator().manual_seed(3)
    weight = torch.randn(layer.weight.shape, generator=generator)
    inputs = torch.randn(24, 8, 6, 6, generator=generator).relu()
    inputs = inputs + inputs.roll(1, 3) + inputs.roll(1, 2)
    return LayerProblem(name="layer", weight=weight, axis=axis, hessian=Hessian.of(layer, [inputs]))


def output_error(case: LayerProblem, encoding: QuantizedTensor) -> float:
    assert case.hessian is not None
    rows = weight_rows(encoding.decode() - case.weight, case.hessian.groups, case.axis)
    return float(((rows @ case.hessian.second[0]) * rows).sum())


def test_binary_is_sign_times_mean_magnitude() -> None:
    case = problem()
    encoding = BinarizeWeights(rounding="nearest").encode(case)
    alpha = case.weight.abs().mean(dim=(1, 2, 3), keepdim=True)
    assert torch.allclose(encoding.decode(), case.weight.sign() * alpha, rtol=2**-8)
    assert encoding.bits == 1
    whole = BinarizeWeights(rounding="nearest", granularity="tensor").encode(case)
    assert torch.allclose(whole.decode(), case.weight.sign() * case.weight.abs().mean(), rtol=2**-8)
    assert whole.scale.shape == (1,)


def test_ternary_is_the_papers_threshold_and_scale() -> None:
    case = problem()
    encoding = TernarizeWeights(rounding="nearest").encode(case)
    for channel, decoded in zip(case.weight, encoding.decode(), strict=True):
        large = channel.abs() > 0.7 * channel.abs().mean()
        assert torch.allclose(
            decoded, torch.where(large, channel.sign() * channel.abs()[large].mean(), 0.0), rtol=2**-8
        )


@pytest.mark.parametrize("cls", [BinarizeWeights, TernarizeWeights])
@pytest.mark.parametrize("granularity", ["channel", "tensor"])
@pytest.mark.parametrize(
    ("layer", "axis"), [(nn.Conv2d(8, 12, 3, padding=1), 0), (nn.ConvTranspose2d(8, 6, 3, groups=2), 1)], ids=str
)
def test_compensation_lowers_the_output_error(
    cls: type[BinarizeWeights] | type[TernarizeWeights], granularity: str, layer: nn.Module, axis: int
) -> None:
    case = problem(layer, axis)
    better, plain = (cls(granularity=granularity, rounding=r).encode(case) for r in ("compensated", "nearest"))
    assert output_error(case, better) < 0.9 * output_error(case, plain)
    assert torch.equal(better.scale, plain.scale)
    assert torch.equal(decode_tensor(encode_tensor(better)).decode(), better.decode())
    values = {-1, 1} if cls is BinarizeWeights else {-1, 0, 1}
    assert set(better.symbols.unique().tolist()) == values
    assert set(plain.symbols.unique().tolist()) == values


@pytest.mark.parametrize("rounding", ["nearest", "compensated"])
@pytest.mark.parametrize("cls", [BinarizeWeights, TernarizeWeights])
def test_removed_weights_are_zero_and_do_not_count_in_the_scale(
    cls: type[BinarizeWeights] | type[TernarizeWeights], rounding: str
) -> None:
    case = problem()
    mask = case.weight.abs() > 0.8
    encoding = cls(rounding=rounding).encode(case.replace(mask=mask))
    assert not bool(encoding.symbols[~mask].any())
    assert float(encoding.scale.min()) > 0.8
    if cls is BinarizeWeights:
        assert bool((encoding.symbols[mask].abs() == 1).all())


def test_columns_that_no_input_reaches_are_still_binary() -> None:
    layer = nn.Conv2d(2, 3, 3, padding=1)
    hessian = Hessian.of(layer, [torch.randn(20, 2, 1, 1, generator=torch.Generator().manual_seed(0))])
    weight: Tensor = layer.weight.detach()
    encoding = BinarizeWeights().encode(LayerProblem(name="x", weight=weight, hessian=hessian))
    assert set(encoding.symbols.unique().tolist()) == {-1, 1}


def test_odd_weights_and_channel_scales() -> None:
    zeros = LayerProblem(name="x", weight=torch.zeros(2, 3))
    assert not bool(TernarizeWeights().encode(zeros).decode().any())
    assert bool(torch.isfinite(BinarizeWeights().encode(zeros).decode()).all())
    one = BinarizeWeights().encode(LayerProblem(name="x", weight=torch.tensor([[-0.5]])))
    assert one.decode().tolist() == [[-0.5]]
    case = problem().replace(channel_scales=True)
    assert BinarizeWeights(granularity="tensor").encode(case).scale.shape == (12,)
    for step in (BinarizeWeights(), TernarizeWeights()):
        with pytest.raises(DataError, match="layer x"):
            step.encode(LayerProblem(name="x", weight=torch.tensor([[float("nan")]])))


def test_settings() -> None:
    steps = [
        cls(granularity=g, rounding=r)
        for cls in (BinarizeWeights, TernarizeWeights)
        for g in ("channel", "tensor")
        for r in ("nearest", "compensated")
    ]
    for step in steps:
        assert StepConfig.from_json(json.loads(json.dumps(step.to_json()))) == step
    assert len({s.label() for s in steps}) == 8
    with pytest.raises(ConfigError, match="rounding"):
        TernarizeWeights(rounding="down")
    with pytest.raises(ConfigError, match="granularity"):
        BinarizeWeights(granularity="row")
