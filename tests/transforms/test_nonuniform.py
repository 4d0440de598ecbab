"""Powers of two and density grids: entries by the book."""

from __future__ import annotations

import json
import math

import pytest
import torch

from autocomp.coding.tensors import decode_tensor, encode_tensor
from autocomp.core.steps import StepConfig
from autocomp.errors import ConfigError, DataError
from autocomp.transforms.nonuniform import DensityGrid, PowerOfTwo
from autocomp.transforms.problem import LayerProblem


def problem(*shape: int) -> LayerProblem:
    generator = torch.Generator().manual_seed(1)
    weight = torch.randn(shape or (12, 8, 3, 3), generator=generator) * 0.1
    return LayerProblem(name="layer", weight=weight)


@pytest.mark.parametrize("bits", [2, 3, 4, 5, 6])
@pytest.mark.parametrize("granularity", ["tensor", "channel"])
def test_values_are_powers_of_two_or_zero_and_the_nearest(bits: int, granularity: str) -> None:
    case = problem()
    decoded = PowerOfTwo(bits=bits, granularity=granularity).encode(case).decode()
    for weight, made in zip(case.weight, decoded, strict=True):
        largest = float((weight if granularity == "channel" else case.weight).abs().max())
        top = math.floor(math.log2(4 / 3 * largest))
        magnitudes = [2.0 ** (top - i) for i in range(2 ** (bits - 2))]
        grid = torch.tensor([0.0, *magnitudes, *(-m for m in magnitudes)])
        nearest = grid[(weight.flatten()[:, None] - grid[None]).abs().argmin(1)]
        assert torch.equal(made.flatten(), nearest)


@pytest.mark.parametrize("placement", ["quantile", "lloyd"])
def test_density_grids_are_nearer_with_more_entries(placement: str) -> None:
    case = problem()
    errors = [
        float((DensityGrid(entries=n, placement=placement).encode(case).decode() - case.weight).square().sum())
        for n in (2, 4, 16, 64)
    ]
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 0.01 * float(case.weight.square().sum())


def test_lloyd_is_at_the_known_optimum_of_a_normal_distribution() -> None:
    """Max 1960, table I: the 8 level quantizer of a normal distribution has a distortion of 0.03454."""
    weight = torch.randn(1, 200_000, generator=torch.Generator().manual_seed(0))
    encoding = DensityGrid(entries=8, granularity="tensor").encode(LayerProblem(name="x", weight=weight))
    assert float((encoding.decode() - weight).square().mean()) == pytest.approx(0.03454, rel=0.02)
    # and its outputs are ±0.2451, ±0.7560, ±1.344, ±2.152
    expected = torch.tensor([0.2451, 0.7560, 1.344, 2.152])
    assert torch.allclose(encoding.codebook.flatten()[4:], expected, atol=0.05)


def test_quantile_entries_have_equal_shares() -> None:
    weight = torch.randn(1, 1000, generator=torch.Generator().manual_seed(2))
    codebook = (
        DensityGrid(entries=4, placement="quantile", granularity="tensor")
        .encode(LayerProblem(name="x", weight=weight))
        .codebook.flatten()
    )
    assert torch.allclose(codebook, weight.sort().values.reshape(4, 250).mean(1), atol=1e-3)


@pytest.mark.parametrize(
    "step", [PowerOfTwo(), PowerOfTwo(granularity="channel"), DensityGrid(), DensityGrid(placement="quantile")]
)
def test_masks_hold_records_round_trip_and_scales_are_there(step: PowerOfTwo | DensityGrid) -> None:
    case = problem()
    mask = torch.rand(case.weight.shape, generator=torch.Generator().manual_seed(1)) > 0.5
    mask[2] = False
    encoding = step.encode(case.replace(mask=mask, channel_scales=True))
    assert not bool(encoding.decode()[~mask].any())
    assert encoding.scale.shape == (12,)
    assert torch.equal(decode_tensor(encode_tensor(encoding)).decode(), encoding.decode())


@pytest.mark.parametrize("step", [PowerOfTwo(), DensityGrid(), DensityGrid(placement="quantile")])
def test_odd_weights(step: PowerOfTwo | DensityGrid) -> None:
    assert not bool(step.encode(LayerProblem(name="x", weight=torch.zeros(2, 3))).decode().any())
    one = step.encode(LayerProblem(name="x", weight=torch.tensor([[0.25]]))).decode()
    assert float(one) == pytest.approx(0.25, rel=1e-3)
    two = LayerProblem(name="x", weight=torch.tensor([[0.5, -0.25]]), mask=torch.tensor([[True, False]]))
    assert torch.allclose(step.encode(two).decode(), torch.tensor([[0.5, 0.0]]), rtol=1e-3)
    with pytest.raises(DataError, match="layer x"):
        step.encode(LayerProblem(name="x", weight=torch.tensor([[float("nan")]])))


def test_settings() -> None:
    steps = [
        PowerOfTwo(),
        PowerOfTwo(bits=3, granularity="channel"),
        DensityGrid(),
        DensityGrid(entries=4, placement="quantile", granularity="tensor"),
    ]
    for step in steps:
        assert StepConfig.from_json(json.loads(json.dumps(step.to_json()))) == step
    assert len({s.label() for s in steps}) == 4
    for cls, bad in (
        (PowerOfTwo, {"bits": 7}),
        (PowerOfTwo, {"bits": 1}),
        (DensityGrid, {"entries": 1}),
        (DensityGrid, {"placement": "best"}),
    ):
        with pytest.raises(ConfigError, match=next(iter(bad))):
            cls(**bad)  # type: ignore[arg-type]
