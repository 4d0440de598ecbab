"""Hashed weights: least squares values, sizes that count buckets only."""

from __future__ import annotations

import json

import pytest
import torch

from autocomp.coding.tensors import decode_tensor, encode_tensor
from autocomp.core.encodings import hash_buckets
from autocomp.core.network import Layer
from autocomp.core.steps import StepConfig
from autocomp.errors import ConfigError, DataError, UnsupportedError
from autocomp.transforms.hashing import HashWeights
from autocomp.transforms.problem import LayerProblem


def problem(axis: int = 0) -> LayerProblem:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(6, 4, 3, 3, generator=generator) * torch.linspace(0.2, 2, 6).reshape(6, 1, 1, 1)
    return LayerProblem(name="layer", weight=weight, axis=axis, seed=5)


@pytest.mark.parametrize(("granularity", "axis"), [("channel", 0), ("channel", 1), ("tensor", 0)])
def test_values_are_the_least_squares_fit(granularity: str, axis: int) -> None:
    case = problem(axis)
    encoding = HashWeights(buckets=0.2, granularity=granularity).encode(case)
    bucket, sign = hash_buckets(case.weight.numel(), 43, 5)
    shape = [-1 if d == axis else 1 for d in range(4)]
    along = (
        encoding.scale.reshape(shape).expand_as(case.weight).flatten() if granularity == "channel" else torch.ones(216)
    )
    design = torch.zeros(216, 43)
    design[torch.arange(216), bucket] = sign * along
    expected = torch.linalg.lstsq(design, case.weight.flatten()[:, None], driver="gelsd").solution[:, 0]
    assert torch.allclose(encoding.values, expected, atol=2e-3)
    assert encoding.scale.numel() == (1 if granularity == "tensor" else case.weight.shape[axis])


def test_as_many_buckets_as_weights_nearly_give_the_weights_back_where_none_collide() -> None:
    case = problem()
    encoding = HashWeights(buckets=0.999).encode(case)
    alone = (
        torch.bincount(hash_buckets(216, len(encoding.values), 5)[0])[hash_buckets(216, len(encoding.values), 5)[0]]
        == 1
    )
    assert int(alone.sum()) > 50
    assert torch.allclose(encoding.decode().flatten()[alone], case.weight.flatten()[alone], rtol=2e-3)


def test_only_buckets_cost_bytes() -> None:
    case = LayerProblem(name="layer", weight=torch.randn(64, 64, generator=torch.Generator().manual_seed(1)))
    for share in (0.01, 0.1, 0.5):
        record = encode_tensor(HashWeights(buckets=share, granularity="tensor").encode(case))
        assert len(record) <= 2 * round(share * 4096) + 40
        assert torch.equal(
            decode_tensor(record).decode(), HashWeights(buckets=share, granularity="tensor").encode(case).decode()
        )


def test_the_seed_is_the_problems() -> None:
    case, step = problem(), HashWeights()
    assert encode_tensor(step.encode(case)) == encode_tensor(step.encode(case))
    assert not torch.equal(step.encode(case).decode(), step.encode(case.replace(seed=6)).decode())
    assert step.encode(case.replace(seed=2**40 + 3)).seed == 3


def test_what_cannot_be_hashed() -> None:
    case = problem()
    with pytest.raises(UnsupportedError, match="keeps no zeros"):
        HashWeights().encode(case.replace(mask=torch.ones_like(case.weight, dtype=torch.bool)))
    with pytest.raises(DataError, match="layer x"):
        HashWeights().encode(LayerProblem(name="x", weight=torch.tensor([[float("inf"), 0.0]])))
    layer = Layer(name="x", kind="linear", weight="w", bias=None, weight_shape=(2, 2))
    assert "no bucket" in (HashWeights(buckets=0.1).legal(layer) or "")
    assert HashWeights(buckets=0.5).legal(layer) is None
    assert not bool(HashWeights().encode(LayerProblem(name="x", weight=torch.zeros(1, 5))).decode().any())


def test_settings() -> None:
    for bad in ({"buckets": 0.0}, {"buckets": 1.0}, {"granularity": "row"}):
        with pytest.raises(ConfigError, match=next(iter(bad))):
            HashWeights(**bad)  # type: ignore[arg-type]
    steps = [HashWeights(), HashWeights(buckets=0.5, granularity="tensor", weighted=False)]
    for step in steps:
        assert StepConfig.from_json(json.loads(json.dumps(step.to_json()))) == step
    assert steps[0].label() != steps[1].label()
