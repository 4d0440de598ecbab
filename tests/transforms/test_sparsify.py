"""Sparsity: exact shares and patterns, and what refitting buys."""

from __future__ import annotations

import dataclasses
import itertools
import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from autocomp.core.network import Layer
from autocomp.core.steps import StepConfig
from autocomp.errors import ConfigError, DataError
from autocomp.transforms.compensate import Hessian
from autocomp.transforms.patches import weight_rows
from autocomp.transforms.problem import LayerProblem
from autocomp.transforms.sparsify import CRITERIA, Sparsify, _largest, global_ratios, legal_sparsify, sparsify


def problem_of(layer: nn.Module, shape: tuple[int, ...], axis: int = 0, seed: int = 0) -> LayerProblem:
    """A layer with inputs whose neighbours are alike."""
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(layer.weight.shape, generator=generator)
    inputs = torch.randn(24, *shape, generator=generator)
    inputs = (inputs + inputs.roll(1, 1) + 0.5 * inputs.roll(1, -1)).relu()
    return LayerProblem(name="layer", weight=weight, axis=axis, hessian=Hessian.of(layer, [inputs]))


def convolution(seed: int = 0) -> LayerProblem:
    return problem_of(nn.Conv2d(8, 12, 3, padding=1), (8, 6, 6), seed=seed)


def output_error(problem: LayerProblem, weight: Tensor) -> float:
    hessian = problem.hessian
    assert hessian is not None
    difference = weight_rows(weight - problem.weight, hessian.groups, problem.axis)[:, :, hessian.columns]
    return float(((difference @ hessian.second[0]) * difference).sum())


def applied(problem: LayerProblem) -> Tensor:
    assert problem.mask is not None
    return torch.where(problem.mask, problem.weight, 0.0)


@pytest.mark.parametrize("criterion", CRITERIA)
@pytest.mark.parametrize("ratio", [0.1, 0.5, 0.9, 0.999])
def test_the_share_is_exact(criterion: str, ratio: float) -> None:
    problem = convolution()
    sparse = sparsify(problem, Sparsify(ratio=ratio, criterion=criterion))
    assert sparse.mask is not None
    assert int((~sparse.mask).sum()) == round(ratio * 864)
    by_row = sparsify(problem, Sparsify(ratio=ratio, criterion=criterion, scope="row")).mask
    assert by_row is not None
    assert (~by_row).flatten(1).sum(1).tolist() == [min(71, round(ratio * 72))] * 12


def test_ties_do_not_change_the_share() -> None:
    problem = LayerProblem(name="layer", weight=torch.ones(4, 5))
    mask = sparsify(problem, Sparsify(ratio=0.5, criterion="magnitude")).mask
    assert mask is not None
    assert mask.flatten().tolist() == [True] * 10 + [False] * 10


@pytest.mark.parametrize(("rows", "columns"), [(1, 900), (7, 130), (50, 4)])
@pytest.mark.parametrize("levels", [1, 3, 1000])
def test_long_and_short_rows_keep_the_first_of_equal_weights(rows: int, columns: int, levels: int) -> None:
    generator = torch.Generator().manual_seed(levels)
    pools = torch.randint(levels, (rows, columns), generator=generator).float()
    for count in (1, columns // 3 + 1, columns):
        expected = pools.argsort(dim=1, descending=True, stable=True)[:, :count].sort(dim=1).values
        found = _largest(pools, count)
        assert torch.equal(found.nonzero()[:, 1].reshape(rows, count), expected)


@pytest.mark.parametrize("criterion", CRITERIA)
@pytest.mark.parametrize(
    ("layer", "shape", "axis"),
    [
        (nn.Conv2d(8, 6, 3, padding=1), (8, 6, 6), 0),
        (nn.Conv2d(16, 6, 3, groups=2), (16, 6, 6), 0),
        (nn.Linear(24, 5), (3, 24), 0),
        (nn.ConvTranspose2d(8, 6, 2, stride=2), (8, 4, 4), 1),
        (nn.ConvTranspose2d(16, 6, 3, groups=2), (16, 4, 4), 1),
    ],
    ids=str,
)
def test_patterns_hold_along_input_channels(
    layer: nn.Module, shape: tuple[int, ...], axis: int, criterion: str
) -> None:
    for keep, size in ((2, 4), (4, 8), (1, 4)):
        problem = problem_of(layer, shape, axis)
        sparse = sparsify(problem, Sparsify(pattern=f"{keep}:{size}", criterion=criterion))
        assert sparse.mask is not None
        inputs_first = sparse.mask if axis else sparse.mask.transpose(0, 1)
        for at in range(0, inputs_first.shape[0], size):
            assert bool((inputs_first[at : at + size].sum(dim=0) == keep).all())


def test_magnitude_removes_the_smallest_and_changes_no_other() -> None:
    problem = convolution()
    before = problem.weight.clone()
    sparse = sparsify(problem, Sparsify(ratio=0.6, criterion="magnitude"))
    assert sparse.mask is not None
    assert float(before[~sparse.mask].abs().max()) <= float(before[sparse.mask].abs().min())
    assert torch.equal(sparse.weight, before)
    assert torch.equal(problem.weight, before)
    assert problem.mask is None


def test_wanda_is_weight_times_input_norm() -> None:
    problem = convolution()
    assert problem.hessian is not None
    score = problem.weight.abs() * problem.hessian.diagonal().sqrt().reshape(1, 8, 3, 3)
    sparse = sparsify(problem, Sparsify(ratio=0.5, criterion="wanda", scope="row"))
    assert sparse.mask is not None
    for row, mask in zip(score, sparse.mask, strict=True):
        assert float(row[~mask].max()) <= float(row[mask].min())


@pytest.mark.parametrize("step", [{"ratio": 0.5}, {"ratio": 0.8, "scope": "row"}, {"pattern": "2:4"}], ids=str)
def test_obc_beats_every_other_criterion_on_the_outputs(step: dict[str, object]) -> None:
    for seed in range(3):
        problem = convolution(seed)
        errors = {
            c: output_error(problem, applied(sparsify(problem, Sparsify(criterion=c, **step))))  # type: ignore[arg-type]
            for c in CRITERIA
        }
        assert errors["obc"] < 0.7 * min(errors[c] for c in ("magnitude", "wanda"))
        assert errors["random"] > max(errors[c] for c in ("magnitude", "wanda"))


def test_obc_is_near_the_exact_greedy_removal() -> None:
    """Against optimal brain compression itself (Frantar and Alistarh 2022): one weight at a time, exact updates."""
    layer = nn.Linear(10, 4)
    problem = problem_of(layer, (3, 10))
    assert problem.hessian is not None
    second = problem.hessian.second[0][0].double()
    damped = second + 0.01 * second.diagonal().mean() * torch.eye(10)
    exact = problem.weight.double().clone()
    for row in exact:
        inverse, left = torch.linalg.inv(damped), list(range(10))
        for _ in range(5):
            j = min(left, key=lambda k: float(row[k] ** 2 / inverse[k, k]))
            row -= row[j] / inverse[j, j] * inverse[:, j]
            inverse -= inverse[:, j : j + 1] @ inverse[j : j + 1] / inverse[j, j]
            left.remove(j)
        row[[k for k in range(10) if k not in left]] = 0
    ours = sparsify(problem, Sparsify(ratio=0.5, scope="row"))
    assert output_error(problem, applied(ours)) <= 1.25 * output_error(problem, exact.float())


def test_without_inputs_all_but_random_are_magnitude() -> None:
    problem = LayerProblem(name="layer", weight=torch.randn(6, 8, generator=torch.Generator().manual_seed(1)))
    masks = [sparsify(problem, Sparsify(ratio=0.5, criterion=c)).mask for c in CRITERIA]
    assert all(m is not None and torch.equal(m, masks[0]) for m in masks[:3])  # type: ignore[arg-type]
    assert not torch.equal(masks[3], masks[0])  # type: ignore[arg-type]


def test_random_follows_the_seed() -> None:
    problem, step = convolution(), Sparsify(ratio=0.5, criterion="random")
    first, again = sparsify(problem, step).mask, sparsify(problem, step).mask
    other = sparsify(problem.replace(seed=1), step).mask
    assert first is not None
    assert again is not None
    assert other is not None
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


@pytest.mark.parametrize("criterion", CRITERIA)
def test_an_earlier_mask_holds(criterion: str) -> None:
    problem = convolution()
    earlier = torch.rand(problem.weight.shape, generator=torch.Generator().manual_seed(4)) > 0.3
    sparse = sparsify(problem.replace(mask=earlier), Sparsify(ratio=0.5, criterion=criterion))
    assert sparse.mask is not None
    assert not bool((sparse.mask & ~earlier).any())
    assert int((~sparse.mask).sum()) == 432


def test_one_channel_and_columns_that_no_input_reaches() -> None:
    problem = problem_of(nn.Conv2d(1, 1, 3, padding=1), (1, 1, 1))
    sparse = sparsify(problem, Sparsify(ratio=0.5))
    assert sparse.mask is not None
    assert bool(sparse.mask[0, 0, 1, 1])
    assert int(sparse.mask.sum()) == 5
    assert bool(torch.isfinite(sparse.weight).all())


def test_weights_that_are_not_finite_are_refused() -> None:
    with pytest.raises(DataError, match="layer x"):
        sparsify(LayerProblem(name="x", weight=torch.tensor([[1.0, float("nan")]])), Sparsify(ratio=0.5))


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"ratio": 0.5, "pattern": "2:4"},
        {"ratio": 0.0},
        {"ratio": 1.0},
        {"ratio": float("nan")},
        {"pattern": "4:4"},
        {"pattern": "0:4"},
        {"pattern": "2-4"},
        {"pattern": "2:400"},
        {"ratio": 0.5, "criterion": "best"},
        {"ratio": 0.5, "scope": "filter"},
        {"pattern": "2:4", "scope": "row"},
    ],
    ids=str,
)
def test_settings_are_checked(fields: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match=r"sparsify"):
        Sparsify(**fields)  # type: ignore[arg-type]


def test_settings_round_trip_and_have_labels_of_their_own() -> None:
    every = [
        Sparsify(criterion=c, **kind)  # type: ignore[arg-type]
        for c, kind in itertools.product(
            CRITERIA,
            ({"ratio": 0.5}, {"ratio": 0.25, "scope": "row"}, {"ratio": 0.5, "scope": "row"}, {"pattern": "2:4"}),
        )
    ]
    for step in every:
        assert StepConfig.from_json(json.loads(json.dumps(step.to_json()))) == step
    assert len({s.label() for s in every}) == len(every)


def layer_of(shape: tuple[int, ...], kind: str = "conv2d", groups: int = 1) -> Layer:
    return Layer(name="x", kind=kind, weight="x.weight", bias=None, weight_shape=shape, groups=groups)


def test_legality() -> None:
    half, pattern = Sparsify(ratio=0.5), Sparsify(pattern="2:4")
    assert legal_sparsify(layer_of((8, 4, 3, 3)), half) is None
    assert legal_sparsify(layer_of((8, 4, 3, 3)), pattern) is None
    assert legal_sparsify(layer_of((8, 4, 3, 3), "conv_transpose2d", groups=2), pattern) is None
    for layer, step, reason in (
        (layer_of((1, 1, 1, 1)), half, "single weight"),
        (layer_of((8, 3, 3, 3)), pattern, "3 input channels"),
        (layer_of((8, 1, 3, 3), groups=8), pattern, "1 input channels"),
        (layer_of((8, 4, 3, 3), "conv_transpose2d", groups=4), pattern, "2 input channels"),
        (layer_of((10, 8), "embedding"), pattern, "embedding"),
        (layer_of((4, 3), "linear"), Sparsify(ratio=0.01), "is none"),
    ):
        assert reason in (legal_sparsify(layer, step) or "")
    with pytest.raises(ConfigError, match="multiple of 4"):
        sparsify(LayerProblem(name="x", weight=torch.ones(8, 3)), pattern)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(1, 30), min_size=1, max_size=5), st.floats(0.01, 0.99), st.integers(0, 100))
def test_global_ratios_are_one_threshold(sizes: list[int], ratio: float, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    weights = {str(i): torch.randn(n, generator=generator) * (i + 1) for i, n in enumerate(sizes)}
    ratios = global_ratios(weights, ratio)
    every = torch.cat(list(weights.values())).abs().sort().values
    count = round(ratio * len(every))
    threshold = float(every[count - 1]) if count else -1.0
    for name, weight in weights.items():
        below = int((weight.abs() <= threshold).sum())
        assert round(ratios[name] * len(weight)) == min(below, len(weight) - 1)
        assert 0 <= ratios[name] < 1


def test_global_ratios_refuse_what_makes_no_sense() -> None:
    for ratio in (0.0, 1.0):
        with pytest.raises(ConfigError, match="allowed"):
            global_ratios({"a": torch.ones(3)}, ratio)
    with pytest.raises(DataError, match="finite"):
        global_ratios({"a": torch.tensor([float("inf")])}, 0.5)
    assert global_ratios({}, 0.5) == {}


def test_configs_are_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        Sparsify(ratio=0.5).ratio = 0.6  # type: ignore[misc]
