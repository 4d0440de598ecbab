"""Shared weights: k-means as it should be, zeros that stay, vectors that follow the inputs."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import autocomp.transforms._kmeans as _kmeans
from autocomp.coding.tensors import decode_tensor, encode_tensor
from autocomp.core.encodings import CodebookTensor
from autocomp.core.network import Layer
from autocomp.core.steps import StepConfig
from autocomp.errors import ConfigError, DataError, UnsupportedError
from autocomp.transforms._kmeans import first_centres, kmeans_vectors, lloyd_numbers, nearest_vectors
from autocomp.transforms.compensate import Hessian
from autocomp.transforms.problem import LayerProblem
from autocomp.transforms.share import ClusterWeights, VectorQuantize


def inertia(values: Tensor, centres: Tensor) -> float:
    return float((values[:, None] - centres[None]).square().amin(dim=1).double().sum())


def problem(seed: int = 0, *, axis: int = 0) -> LayerProblem:
    generator = torch.Generator().manual_seed(seed)
    layer = nn.ConvTranspose2d(8, 12, 3) if axis else nn.Conv2d(8, 12, 3, padding=1)
    spread = torch.rand(12, generator=generator) + 0.1
    weight = torch.randn(layer.weight.shape, generator=generator) * spread.reshape(
        (1, 12, 1, 1) if axis else (12, 1, 1, 1)
    )
    inputs = torch.randn(16, 8, 6, 6, generator=generator).relu() * torch.linspace(0.05, 2, 8).reshape(8, 1, 1)
    return LayerProblem(name="layer", weight=weight, axis=axis, hessian=Hessian.of(layer, [inputs]))


@pytest.mark.parametrize("initial", ["linear", "density", "random"])
@pytest.mark.parametrize("entries", [2, 8, 32])
def test_kmeans_is_as_good_as_scikit_learns(initial: str, entries: int) -> None:
    from sklearn.cluster import KMeans

    values = torch.randn(3000, generator=torch.Generator().manual_seed(entries))
    first = first_centres(values, entries, initial, torch.Generator().manual_seed(1))
    ours = lloyd_numbers(values, torch.ones(3000), first)
    theirs = KMeans(entries, init=first.numpy()[:, None], n_init=1, max_iter=300, tol=0).fit(values.numpy()[:, None])
    assert inertia(values, ours) <= 1.05 * float(theirs.inertia_)
    assert torch.equal(ours, ours.sort().values)


def test_weighted_kmeans_is_kmeans_of_repeated_values() -> None:
    generator = torch.Generator().manual_seed(0)
    values, counts = torch.randn(60, generator=generator), torch.randint(1, 6, (60,), generator=generator)
    first = first_centres(values, 5, "linear", generator)
    weighted = lloyd_numbers(values, counts.float(), first)
    repeated = values.repeat_interleave(counts)
    assert torch.allclose(weighted, lloyd_numbers(repeated, torch.ones(len(repeated)), first), atol=1e-6)


def test_first_centres() -> None:
    values, generator = torch.tensor([0.0, 1.0, 2.0, 3.0, 100.0]), torch.Generator().manual_seed(0)
    assert first_centres(values, 5, "linear", generator).tolist() == [0, 25, 50, 75, 100]
    assert first_centres(values, 5, "density", generator).tolist() == [0, 1, 2, 3, 100]
    assert set(first_centres(values, 4, "random", generator).tolist()) < set(values.tolist())
    assert len(first_centres(values, 12, "random", generator)) == 12


def test_vector_assignment_is_the_nearest_of_all() -> None:
    generator = torch.Generator().manual_seed(2)
    points, weights = torch.randn(50, 3, generator=generator), torch.rand(50, 3, generator=generator)
    centres = torch.randn(7, 3, generator=generator)
    every = (weights[:, None] * (points[:, None] - centres[None]).square()).sum(2)
    index, distance = nearest_vectors(points, weights, centres)
    assert torch.equal(index, every.argmin(1))
    assert torch.allclose(distance, every.amin(1), atol=1e-5)


def test_vector_kmeans_is_as_good_as_scikit_learns() -> None:
    from sklearn.cluster import KMeans

    points = torch.randn(800, 4, generator=torch.Generator().manual_seed(5))
    generator = torch.Generator().manual_seed(6)
    start = points[torch.randperm(800, generator=torch.Generator().manual_seed(6))[:16]]
    _, distance = nearest_vectors(points, torch.ones(800, 4), kmeans_vectors(points, torch.ones(800, 4), 16, generator))
    theirs = KMeans(16, init=start.numpy(), n_init=1, max_iter=40).fit(points.numpy())
    assert float(distance.sum()) <= 1.05 * float(theirs.inertia_)


def test_vector_kmeans_leaves_no_centre_unused() -> None:
    points = torch.cat([torch.zeros(50, 2), torch.eye(2) * 5])
    centres = kmeans_vectors(points, torch.ones_like(points), 3, torch.Generator().manual_seed(0))
    assert float(nearest_vectors(points, torch.ones_like(points), centres)[1].sum()) == pytest.approx(0, abs=1e-6)


def test_a_part_of_very_many_weights_gives_nearly_the_same_centres(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(8)
    values, points = torch.randn(60_000, generator=generator), torch.randn(30_000, 2, generator=generator)
    ones, first = torch.ones(60_000), first_centres(values, 8, "linear", generator)

    def costs() -> tuple[float, float]:
        centres = kmeans_vectors(points, torch.ones_like(points), 8, torch.Generator().manual_seed(0))
        distance = nearest_vectors(points, torch.ones_like(points), centres)[1]
        return inertia(values, lloyd_numbers(values, ones, first)), float(distance.sum())

    every = costs()
    monkeypatch.setattr(_kmeans, "_NUMBERS", 6_000)
    monkeypatch.setattr(_kmeans, "_VECTORS", 6_000)
    assert costs() == pytest.approx(every, rel=0.02)
    assert costs() != every


def test_entries_are_the_best_for_their_weights() -> None:
    case = problem()
    encoding = ClusterWeights(entries=8, granularity="tensor", weighted=False).encode(case)
    values = case.weight.flatten()
    assert inertia(values, encoding.codebook.flatten()) == pytest.approx(
        float((encoding.decode() - case.weight).square().sum()), rel=1e-4
    )
    for entry in range(8):
        mine = values[encoding.symbols.flatten() == entry]
        assert float(encoding.codebook[0, entry, 0]) == pytest.approx(float(mine.mean()), abs=2e-3)


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize(
    "step",
    [
        ClusterWeights(),
        ClusterWeights(entries=4, initial="density", granularity="tensor"),
        ClusterWeights(entries=5, group=4),
        VectorQuantize(dim=9, entries=16),
        VectorQuantize(dim=4, entries=16, granularity="tensor"),
    ],
    ids=lambda s: s.label(),
)
def test_what_is_decoded_is_near_and_comes_back_from_the_file(step: ClusterWeights | VectorQuantize, axis: int) -> None:
    case = problem(axis=axis)
    before = case.weight.clone()
    encoding = step.encode(case)
    assert encoding.decode().shape == case.weight.shape
    assert float((encoding.decode() - case.weight).square().sum()) < 0.6 * float(case.weight.square().sum())
    assert torch.equal(case.weight, before)
    assert torch.equal(decode_tensor(encode_tensor(encoding)).decode(), encoding.decode())
    assert encode_tensor(step.encode(case)) == encode_tensor(encoding)
    scales = 12 if step.granularity == "channel" else 1
    assert encoding.scale.numel() == scales
    assert step.encode(case.replace(channel_scales=True)).scale.numel() == 12


def test_more_entries_are_nearer_and_larger() -> None:
    case = problem()
    made = [ClusterWeights(entries=n).encode(case) for n in (2, 4, 16, 64)]
    errors = [float((e.decode() - case.weight).square().sum()) for e in made]
    sizes = [len(encode_tensor(e)) for e in made]
    assert errors == sorted(errors, reverse=True)
    assert sizes == sorted(sizes)


def test_a_codebook_a_group_is_nearer_than_one_for_all() -> None:
    case = problem()
    errors = [
        float(
            (ClusterWeights(entries=4, group=g, granularity="tensor").encode(case).decode() - case.weight)
            .square()
            .sum()
        )
        for g in (None, 1)
    ]
    assert errors[1] < 0.9 * errors[0]


@pytest.mark.parametrize("initial", ["linear", "density", "random"])
def test_removed_weights_stay_exactly_zero(initial: str) -> None:
    case = problem()
    mask = torch.rand(case.weight.shape, generator=torch.Generator().manual_seed(1)) > 0.7
    mask[3] = False  # a channel with nothing left
    encoding = ClusterWeights(entries=8, initial=initial, group=1).encode(case.replace(mask=mask))
    decoded = encoding.decode()
    assert not bool(decoded[~mask].any())
    assert bool((encoding.codebook == 0).any(dim=1).all())
    assert encoding.codebook.shape == (12, 8, 1)
    assert float((decoded - case.weight)[mask].square().sum()) < 0.1 * float(case.weight[mask].square().sum())


def output_error(case: LayerProblem, encoding: CodebookTensor) -> float:
    assert case.hessian is not None
    costs = case.hessian.diagonal().reshape(1, 8, 3, 3)
    return float((costs * (encoding.decode() - case.weight).square()).sum())


def test_errors_count_by_the_inputs_they_meet() -> None:
    case = problem()
    for weighted, plain in (
        (ClusterWeights(entries=4).encode(case), ClusterWeights(entries=4, weighted=False).encode(case)),
        (
            VectorQuantize(dim=4, entries=16).encode(case),
            VectorQuantize(dim=4, entries=16).encode(case.replace(hessian=None)),
        ),
    ):
        assert output_error(case, weighted) < output_error(case, plain)


def test_vectors_take_no_mask() -> None:
    case = problem()
    with pytest.raises(UnsupportedError, match="keeps no zeros"):
        VectorQuantize(entries=4).encode(case.replace(mask=torch.ones_like(case.weight, dtype=torch.bool)))


def test_odd_weights() -> None:
    one = LayerProblem(name="x", weight=torch.tensor([[0.3]]))
    assert float(ClusterWeights(entries=4).encode(one).decode()) == pytest.approx(0.3, rel=1e-3)
    zeros = LayerProblem(name="x", weight=torch.zeros(3, 4))
    assert not bool(ClusterWeights().encode(zeros).decode().any())
    assert not bool(VectorQuantize(dim=2, entries=2).encode(zeros).decode().any())
    two = LayerProblem(name="x", weight=torch.tensor([[1.0, -1.0], [1.0, -1.0]]))
    assert torch.allclose(ClusterWeights(entries=2).encode(two).decode(), two.weight)
    for step in (ClusterWeights(), VectorQuantize(dim=2, entries=2)):
        with pytest.raises(DataError, match="layer x"):
            step.encode(LayerProblem(name="x", weight=torch.tensor([[1.0, float("nan")]] * 2)))


def test_legality() -> None:
    layer = Layer(name="x", kind="conv2d", weight="w", bias=None, weight_shape=(12, 8, 3, 3))
    assert ClusterWeights(group=4).legal(layer) is None
    assert "multiple" in (ClusterWeights(group=5).legal(layer) or "")
    assert VectorQuantize(dim=9, entries=64).legal(layer) is None
    assert "multiple" in (VectorQuantize(dim=7).legal(layer) or "")
    assert "need no codebook" in (VectorQuantize(dim=9, entries=96).legal(layer) or "")
    with pytest.raises(ConfigError, match="multiple"):
        ClusterWeights(group=5).encode(problem())
    with pytest.raises(ConfigError, match="divide"):
        VectorQuantize(dim=7).encode(problem())


@pytest.mark.parametrize(
    ("cls", "fields"),
    [
        (ClusterWeights, {"entries": 1}),
        (ClusterWeights, {"entries": 257}),
        (ClusterWeights, {"initial": "best"}),
        (ClusterWeights, {"granularity": "row"}),
        (ClusterWeights, {"group": 0}),
        (VectorQuantize, {"dim": 1}),
        (VectorQuantize, {"entries": 5000}),
    ],
)
def test_settings_are_checked(cls: type[StepConfig], fields: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match=next(iter(fields))):
        cls(**fields)


def test_settings_round_trip() -> None:
    steps = [
        ClusterWeights(),
        ClusterWeights(entries=4, initial="random", granularity="tensor", group=2, weighted=False),
        VectorQuantize(),
        VectorQuantize(dim=9, entries=64, granularity="tensor"),
    ]
    for step in steps:
        assert StepConfig.from_json(json.loads(json.dumps(step.to_json()))) == step
    assert len({s.label() for s in steps}) == 4
    assert np.all([s.axis == "weights" and s.order == 40 for s in steps])
