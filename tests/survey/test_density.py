"""Coded bytes a weight of what a structure leaves."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from autocomp.coding.container import stored_bytes
from autocomp.coding.tensors import encode_tensor
from autocomp.core.candidate import Candidate
from autocomp.core.prices import Prices
from autocomp.core.steps import Choice
from autocomp.survey.density import DensityCoder, interpolated
from autocomp.transforms.quantize import QuantizeWeights, quantize_weight
from tests.survey.conftest import Case


def test_a_layer_as_it_is_has_density_one(case: Case) -> None:
    weight = case.network.module.get_parameter("conv1.weight")
    found = DensityCoder(network=case.network, space=case.space())(Candidate({}), {"conv1": (weight,)})
    assert list(found) == ["conv1"]
    assert len(found["conv1"]) >= 3
    assert all(density == pytest.approx(1) for density in found["conv1"].values())


def test_factors_are_coded_as_their_records_are(case: Case) -> None:
    weight = case.network.module.get_parameter("conv2.weight").detach()
    parts = (weight[:4].contiguous(), torch.randn(12, 4, 1, 1, generator=torch.Generator().manual_seed(0)))
    found = DensityCoder(network=case.network, space=case.space())(Candidate({}), {"conv2": parts})["conv2"]
    step = QuantizeWeights(step=1.6, rounding="nearest")
    coded = [stored_bytes(len(encode_tensor(quantize_weight(w, step)))) for w in (weight, *parts)]
    count = sum(w.numel() for w in parts)
    expected = (sum(coded[1:]) / count) / (coded[0] / weight.numel())
    assert found[Choice((QuantizeWeights(step=1.6),)).key()] == pytest.approx(expected)


def test_between_coded_choices_densities_follow_the_log_of_the_bytes() -> None:
    choices = tuple(Choice((QuantizeWeights(step=s),)) for s in (0.1, 0.3, 1.0))
    prices = Prices(choices=choices, bytes=np.array([4000, 2000, 1000]), kl=np.zeros(3), delta=np.zeros((3, 1)))
    coded = {choices[0].key(): 1.0, choices[2].key(): 1.2, "another": 3.0}
    np.testing.assert_allclose(interpolated(prices, coded), [1.0, 1.1, 1.2])
    np.testing.assert_array_equal(interpolated(prices, {}), np.ones(3))
