"""The contract of weight transforms, held by every technique that stores weights or removes some."""

from __future__ import annotations

from collections.abc import Sequence

from autocomp.core.steps import StepConfig, steps_on
from autocomp.testing.transform_contract import WeightTransformContract
from autocomp.transforms.binarize import BinarizeWeights, TernarizeWeights
from autocomp.transforms.dct import DctKernels
from autocomp.transforms.float8 import Float8Weights
from autocomp.transforms.hashing import HashWeights
from autocomp.transforms.nonuniform import DensityGrid, PowerOfTwo
from autocomp.transforms.quantize import QuantizeWeights
from autocomp.transforms.share import ClusterWeights, VectorQuantize
from autocomp.transforms.snr import QuantizeSnr
from autocomp.transforms.sparsify import Sparsify


class TestCompensatedSteps(WeightTransformContract):
    def settings(self) -> Sequence[StepConfig]:
        return [QuantizeWeights(step=step) for step in (0.03, 0.2, 0.5, 1.0, 2.0)]


class TestRateAwareSteps(WeightTransformContract):
    def settings(self) -> Sequence[StepConfig]:
        return [QuantizeWeights(step=step, rounding="rate") for step in (0.03, 0.2, 0.5, 1.0, 2.0)]


class TestNearestSteps(WeightTransformContract):
    def settings(self) -> Sequence[StepConfig]:
        return [QuantizeWeights(step=step, rounding="nearest") for step in (0.03, 0.2, 0.5, 1.0, 2.0)]


class TestNominalBits(WeightTransformContract):
    def settings(self) -> Sequence[StepConfig]:
        return [QuantizeWeights(bits=bits, scale="max", rounding="nearest") for bits in (8, 6, 4, 3, 2)]


class TestAsymmetricBits(WeightTransformContract):
    def settings(self) -> Sequence[StepConfig]:
        return [QuantizeWeights(bits=bits, symmetric=False, rounding="nearest") for bits in (8, 6, 4, 3, 2)]


class TestSignalToNoise(WeightTransformContract):
    def settings(self) -> Sequence[StepConfig]:
        return [QuantizeSnr(snr_db=db) for db in (40, 25, 15, 10, 5)]


class TestClusters(WeightTransformContract):
    finest = 0.02  # 256 entries for 864 weights

    def settings(self) -> Sequence[StepConfig]:
        return [ClusterWeights(entries=entries) for entries in (256, 32, 16, 8, 4)]


class TestVectors(WeightTransformContract):
    finest = 0.35  # 256 vectors for 432 pairs of weights

    def settings(self) -> Sequence[StepConfig]:
        return [VectorQuantize(dim=2, entries=256), VectorQuantize(dim=2, entries=32), VectorQuantize(dim=4, entries=8)]


class TestFloat8(WeightTransformContract):
    finest = 0.03  # 4 significant bits: errors to 2**-4 of a weight, 2**-4 / sqrt(3) of it at a bin's worst

    def settings(self) -> Sequence[StepConfig]:
        return [Float8Weights()]


class TestHashing(WeightTransformContract):
    finest = 1.0  # two weights that share a bucket have nothing in common

    def settings(self) -> Sequence[StepConfig]:
        return [HashWeights(buckets=buckets) for buckets in (0.9, 0.5, 0.125)]


class TestPowersOfTwo(WeightTransformContract):
    finest = 0.2  # neighbouring powers of two lie a factor of two apart however many there are

    def settings(self) -> Sequence[StepConfig]:
        return [PowerOfTwo(bits=bits) for bits in (5, 3, 2)]


class TestDensityGrids(WeightTransformContract):
    finest = 0.02

    def settings(self) -> Sequence[StepConfig]:
        return [DensityGrid(entries=entries) for entries in (256, 32, 16, 8, 4)]


class TestDct(WeightTransformContract):
    def settings(self) -> Sequence[StepConfig]:
        return [DctKernels(step=step) for step in (0.03, 0.2, 0.5, 1.0, 2.0)]


class TestBinary(WeightTransformContract):
    finest = 1.2

    def settings(self) -> Sequence[StepConfig]:
        return [TernarizeWeights(rounding="nearest"), BinarizeWeights(rounding="nearest")]


class TestSparsity(WeightTransformContract):
    finest = 0.1

    def settings(self) -> Sequence[StepConfig]:
        return [Sparsify(ratio=ratio, criterion="magnitude") for ratio in (0.05, 0.5, 0.7, 0.9)]


class TestCompensatedSparsity(WeightTransformContract):
    finest = 0.1

    def settings(self) -> Sequence[StepConfig]:
        return [Sparsify(ratio=ratio) for ratio in (0.05, 0.5, 0.7, 0.9)]


class TestPatterns(WeightTransformContract):
    finest = 0.2

    def settings(self) -> Sequence[StepConfig]:
        return [Sparsify(pattern=pattern, criterion="magnitude") for pattern in ("7:8", "4:8", "1:4")]


def test_every_technique_is_held_to_the_contract() -> None:
    cases = [c for c in globals().values() if isinstance(c, type) and issubclass(c, WeightTransformContract)]
    held = {s.kind for c in cases if c is not WeightTransformContract for s in c().settings()}
    assert held == set(steps_on("weights")) | set(steps_on("sparsity"))
