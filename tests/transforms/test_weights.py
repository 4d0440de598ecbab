"""One layer under many choices: the same as one by one, in any combination that is legal."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch
from torch import nn

from autocomp.coding.tensors import decode_tensor, encode_tensor
from autocomp.core.encodings import FloatTensor
from autocomp.core.network import Layer
from autocomp.core.steps import FLOAT, Choice, StepConfig
from autocomp.errors import DataError, UnsupportedError
from autocomp.transforms.binarize import BinarizeWeights, TernarizeWeights
from autocomp.transforms.compensate import Hessian
from autocomp.transforms.dct import DctKernels
from autocomp.transforms.hashing import HashWeights
from autocomp.transforms.nonuniform import DensityGrid, PowerOfTwo
from autocomp.transforms.problem import LayerProblem
from autocomp.transforms.quantize import QuantizeActivations, QuantizeWeights, quantize_weight
from autocomp.transforms.share import ClusterWeights, VectorQuantize
from autocomp.transforms.snr import QuantizeSnr
from autocomp.transforms.sparsify import Sparsify
from autocomp.transforms.weights import compress_layer, legal_weights, rounds_to_nearest

STEPS: list[StepConfig] = [
    QuantizeWeights(step=0.5),
    QuantizeWeights(bits=3, rounding="nearest"),
    QuantizeWeights(bits=16),
    QuantizeSnr(snr_db=12),
    ClusterWeights(entries=8),
    VectorQuantize(dim=9, entries=16),
    HashWeights(),
    BinarizeWeights(),
    TernarizeWeights(),
    PowerOfTwo(),
    DensityGrid(),
    DctKernels(step=0.5),
]
SPARSITIES: list[StepConfig] = [Sparsify(ratio=0.5), Sparsify(pattern="2:4", criterion="magnitude")]
LAYER = Layer(name="x", kind="conv2d", weight="w", bias=None, weight_shape=(12, 8, 3, 3))


def problem() -> LayerProblem:
    generator = torch.Generator().manual_seed(0)
    layer = nn.Conv2d(8, 12, 3, padding=1)
    weight = torch.randn(12, 8, 3, 3, generator=generator)
    return LayerProblem(
        name="x", weight=weight, hessian=Hessian.of(layer, [torch.randn(20, 8, 6, 6, generator=generator).relu()])
    )


def every_choice() -> list[Choice]:
    parts = itertools.product([None, *SPARSITIES], [None, *STEPS])
    return [Choice(tuple(s for s in pair if s is not None)) for pair in parts]


def test_a_choice_does_not_depend_on_the_others() -> None:
    case = problem()
    choices = [c for c in every_choice() if legal_weights(LAYER, c) is None]
    together = compress_layer(case, choices)
    assert len(together) == len(choices) > 25
    for choice, encoding in zip(choices, together, strict=True):
        [alone] = compress_layer(case, [choice])
        assert type(alone) is type(encoding), choice.label()
        assert encode_tensor(alone) == encode_tensor(encoding), choice.label()
        assert torch.equal(decode_tensor(encode_tensor(encoding)).decode(), encoding.decode())
        if choice.get("sparsity") is not None:
            assert float((encoding.decode() == 0).float().mean()) >= 0.5, choice.label()


def test_what_is_legal_is_what_can_be_done() -> None:
    case = problem()
    refused = [c for c in every_choice() if legal_weights(LAYER, c) is not None]
    assert {c.get("weights").kind for c in refused} == {"vector_quantize", "hash_weights", "dct_kernels"}  # type: ignore[union-attr]
    for choice in refused:
        with pytest.raises(UnsupportedError, match="keeps no zeros"):
            compress_layer(case, [choice])


def test_neither_is_the_weight_and_sparsity_alone_is_float() -> None:
    case = problem()
    plain, sparse = compress_layer(case, [FLOAT, Choice((Sparsify(ratio=0.9, criterion="magnitude"),))])
    assert isinstance(plain, FloatTensor)
    assert isinstance(sparse, FloatTensor)
    assert torch.equal(plain.values, case.weight)
    assert int((sparse.values == 0).sum()) == round(0.9 * case.weight.numel())
    kept = sparse.values != 0
    assert torch.equal(sparse.values[kept], case.weight[kept])
    assert compress_layer(case, []) == []


def test_grids_are_those_of_quantize_weights() -> None:
    case = problem()
    config = QuantizeWeights(step=0.7)
    [encoding] = compress_layer(case, [Choice((config,))])
    assert encode_tensor(encoding) == encode_tensor(quantize_weight(case.weight, config, hessian=case.hessian))


def test_zeros_pay() -> None:
    case = problem().replace(weight=torch.randn(64, 32, 3, 3, generator=torch.Generator().manual_seed(3)), hessian=None)
    for step in (None, QuantizeWeights(step=0.5), ClusterWeights(entries=16), TernarizeWeights()):
        sizes = []
        for ratio in (0.3, 0.6, 0.9, 0.98):
            parts = (Sparsify(ratio=ratio, criterion="magnitude"),) + (() if step is None else (step,))
            [encoding] = compress_layer(case, [Choice(parts)])
            sizes.append(len(encode_tensor(encoding)))
        if step is None:
            [encoding] = compress_layer(case, [FLOAT])
            sizes.insert(0, len(encode_tensor(encoding)))
        # ternary weights have zeros of their own: sparsity first spends a bit on which are left, then saves
        assert (
            sizes[1:] == sorted(sizes[1:], reverse=True)
            if isinstance(step, TernarizeWeights)
            else sizes == sorted(sizes, reverse=True)
        )
        assert sizes[-1] < 0.3 * sizes[0]


def test_obc_then_grid_beats_magnitude_then_grid_on_the_outputs() -> None:
    case = problem()
    assert case.hessian is not None
    errors = []
    for criterion in ("obc", "magnitude"):
        [encoding] = compress_layer(
            case, [Choice((Sparsify(ratio=0.7, criterion=criterion), QuantizeWeights(step=0.5)))]
        )
        rows = (encoding.decode() - case.weight).reshape(1, 12, -1)
        errors.append(float(((rows @ case.hessian.second[0]) * rows).sum()))
    assert errors[0] < 0.9 * errors[1]


def test_activations_do_not_count() -> None:
    choice = Choice((QuantizeWeights(step=0.5), QuantizeActivations()))
    [one], [other] = compress_layer(problem(), [choice]), compress_layer(problem(), [choice.without("activations")])
    assert encode_tensor(one) == encode_tensor(other)


def test_whose_inputs_need_be_collected() -> None:
    for step, plain in (
        (QuantizeWeights(step=0.5), False),
        (QuantizeWeights(step=0.5, rounding="nearest"), True),
        (QuantizeWeights(bits=16), True),
        (ClusterWeights(), False),
        (ClusterWeights(weighted=False), True),
        (VectorQuantize(), False),
        (PowerOfTwo(), True),
        (Sparsify(ratio=0.5), False),
        (Sparsify(ratio=0.5, criterion="magnitude"), True),
        (QuantizeActivations(), True),
    ):
        assert rounds_to_nearest(Choice((step,))) == plain, step
    assert rounds_to_nearest(FLOAT)


def test_legality_asks_every_step() -> None:
    linear = Layer(name="x", kind="linear", weight="w", bias=None, weight_shape=(10, 6))
    assert legal_weights(linear, FLOAT) is None
    assert "no kernel" in (legal_weights(linear, Choice((DctKernels(),))) or "")
    assert "multiple of 4" in (legal_weights(linear, Choice((Sparsify(pattern="2:4"),))) or "")
    assert "multiple" in (legal_weights(linear, Choice((ClusterWeights(group=3),))) or "")


@dataclass(frozen=True, kw_only=True)
class Strange(StepConfig):
    """A step on an axis that it knows nothing of."""

    axis: ClassVar[str] = "weights"


@dataclass(frozen=True, kw_only=True)
class StrangeSparsity(StepConfig):
    """Likewise."""

    axis: ClassVar[str] = "sparsity"


@pytest.mark.parametrize("step", [Strange(), StrangeSparsity()])
def test_steps_of_other_kinds_are_refused(step: StepConfig) -> None:
    assert legal_weights(LAYER, Choice((step,))) is not None
    with pytest.raises(UnsupportedError, match="is no"):
        compress_layer(problem(), [Choice((step,))])


def test_weights_that_are_not_finite_are_refused() -> None:
    case = problem().replace(weight=torch.full((12, 8, 3, 3), float("nan")))
    with pytest.raises(DataError, match="layer x"):
        compress_layer(case, [FLOAT])
