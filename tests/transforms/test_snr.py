"""Step sizes from a signal-to-noise ratio."""

from __future__ import annotations

import json
import math

import pytest
import torch

from autocomp.core.encodings import QuantizedTensor
from autocomp.core.steps import StepConfig
from autocomp.errors import ConfigError, DataError
from autocomp.transforms.problem import LayerProblem
from autocomp.transforms.quantize import QuantizeWeights, quantize_weight
from autocomp.transforms.snr import QuantizeSnr, target_snr


def problem() -> LayerProblem:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(16, 8, 3, 3, generator=generator) * (torch.rand(16, 1, 1, 1, generator=generator) + 0.1)
    return LayerProblem(name="layer", weight=weight)


def ratio_db(weight: torch.Tensor, decoded: torch.Tensor) -> float:
    return 10 * math.log10(float(weight.square().sum() / (decoded - weight).square().sum()))


@pytest.mark.parametrize("granularity", ["channel", "tensor"])
@pytest.mark.parametrize("snr_db", [3.0, 10.0, 20.0, 30.0])
def test_the_ratio_is_met_and_hardly_exceeded(snr_db: float, granularity: str) -> None:
    case = problem()
    encoding = QuantizeSnr(snr_db=snr_db, granularity=granularity, rounding="nearest").encode(case)
    got = ratio_db(case.weight, encoding.decode())
    assert snr_db - 1e-6 <= got <= snr_db + 0.3
    step = target_snr(case, snr_db, granularity=granularity).step
    assert step is not None
    coarser = quantize_weight(
        case.weight, QuantizeWeights(step=1.1 * step, granularity=granularity, rounding="nearest")
    )
    assert ratio_db(case.weight, coarser.decode()) < snr_db + 0.1


def test_it_is_the_step_grid_of_that_step() -> None:
    case = problem()
    step = QuantizeSnr(snr_db=15)
    assert step.resolve(case) == QuantizeWeights(step=target_snr(case, 15).step)
    made = step.encode(case)
    expected = quantize_weight(case.weight, step.resolve(case))
    assert isinstance(made, QuantizedTensor)
    assert isinstance(expected, QuantizedTensor)
    assert torch.equal(made.symbols, expected.symbols)


def test_out_of_reach_is_the_nearest_step_allowed() -> None:
    tail = LayerProblem(name="x", weight=torch.cat([torch.randn(1, 4000), torch.full((1, 1), 500.0)], dim=1))
    assert target_snr(tail, 60.0).step == 0.01
    assert target_snr(LayerProblem(name="x", weight=torch.zeros(2, 3)), 20).step == 8.0


def test_masked_weights_stay_zero_and_do_not_count() -> None:
    case = problem()
    mask = case.weight.abs() > 0.4
    decoded = QuantizeSnr(snr_db=20, rounding="nearest").encode(case.replace(mask=mask)).decode()
    assert not bool(decoded[~mask].any())
    assert ratio_db(case.weight * mask, decoded) >= 20 - 1e-6


def test_settings() -> None:
    steps = [QuantizeSnr(), QuantizeSnr(snr_db=12.5, granularity="tensor", rounding="nearest")]
    for step in steps:
        assert StepConfig.from_json(json.loads(json.dumps(step.to_json()))) == step
    assert steps[0].label() != steps[1].label()
    for bad in ({"snr_db": 0.0}, {"snr_db": 41.0}, {"snr_db": float("nan")}, {"rounding": "up"}):
        with pytest.raises(ConfigError, match=next(iter(bad))):
            QuantizeSnr(**bad)  # type: ignore[arg-type]
    with pytest.raises(DataError, match="layer x"):
        QuantizeSnr().encode(LayerProblem(name="x", weight=torch.tensor([[float("nan")]])))
