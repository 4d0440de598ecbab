"""What settings on the "weights" axis share."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from autocomp.core.encodings import round_half
from autocomp.errors import DataError, UnsupportedError
from autocomp.transforms.compensate import Hessian
from autocomp.transforms.hashing import HashWeights
from autocomp.transforms.problem import LayerProblem
from autocomp.transforms.share import ClusterWeights
from autocomp.transforms.weight_step import channel_scale, checked, importance, kept_channels


def test_checked_sets_masked_weights_to_zero() -> None:
    weight = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    mask = torch.tensor([[True, False], [True, True]])
    problem = LayerProblem(name="x", weight=weight, mask=mask)
    assert checked(problem, ClusterWeights()).weight.tolist() == [[1.0, 0.0], [3.0, 4.0]]
    assert weight[0, 1] == 2
    with pytest.raises(UnsupportedError, match="layer x: hash_weights keeps no zeros"):
        checked(problem, HashWeights())
    with pytest.raises(DataError, match="layer x"):
        checked(problem.replace(weight=weight * float("inf")), ClusterWeights())


def test_channel_scale_is_the_root_mean_square_of_what_stays() -> None:
    weight = torch.tensor([[3.0, 4.0, 9.0], [0.0, 0.0, 0.0], [1.0, 1.0, 1.0]])
    mask = torch.tensor([[True, True, False]] * 3)
    problem = checked(LayerProblem(name="x", weight=weight, mask=mask), ClusterWeights())
    scale = channel_scale(problem, "channel")
    assert scale[0] == pytest.approx(12.5**0.5, rel=2**-8)
    assert scale[2] == 1
    assert float(scale[1]) > 0
    assert torch.equal(scale, round_half(scale))
    assert channel_scale(problem, "tensor").tolist() == [1.0]
    assert channel_scale(problem.replace(channel_scales=True), "tensor").tolist() == [1.0] * 3
    assert torch.equal(kept_channels(problem), mask)


def test_importance_is_the_mean_square_of_each_input() -> None:
    layer = nn.Conv2d(2, 3, 3, padding=1)
    inputs = torch.randn(10, 2, 1, 1, generator=torch.Generator().manual_seed(0))
    problem = LayerProblem(name="x", weight=layer.weight.detach(), hessian=Hessian.of(layer, [inputs]))
    found = importance(problem).reshape(3, 2, 3, 3)
    assert torch.allclose(found[0, :, 1, 1], inputs.square().mean(dim=(0, 2, 3)), rtol=1e-4)
    assert bool((found > 0).all())  # taps that only meet padding still have to be assigned to something
    assert float(found[0, 0, 0, 0]) < 1e-4 * float(found[0, 0, 1, 1])
    assert bool((importance(problem.replace(hessian=None)) == 1).all())
