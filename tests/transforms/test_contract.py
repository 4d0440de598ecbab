"""The contract of weight transforms, held by quantization in its forms."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from autocomp.core.encodings import Encoding
from autocomp.core.steps import StepConfig
from autocomp.testing.transform_contract import WeightTransformContract
from autocomp.transforms.compensate import Hessian
from autocomp.transforms.quantize import QuantizeWeights, quantize_weight


class _Quantization(WeightTransformContract):
    def encode(self, weight: torch.Tensor, config: StepConfig, hessian: Hessian) -> Encoding:
        assert isinstance(config, QuantizeWeights)
        return quantize_weight(weight, config, hessian=hessian)


class TestCompensatedSteps(_Quantization):
    def settings(self) -> Sequence[StepConfig]:
        return [QuantizeWeights(step=step) for step in (0.03, 0.2, 0.5, 1.0, 2.0)]


class TestNearestSteps(_Quantization):
    def settings(self) -> Sequence[StepConfig]:
        return [QuantizeWeights(step=step, rounding="nearest") for step in (0.03, 0.2, 0.5, 1.0, 2.0)]


class TestNominalBits(_Quantization):
    def settings(self) -> Sequence[StepConfig]:
        return [QuantizeWeights(bits=bits, scale="max", rounding="nearest") for bits in (8, 6, 4, 3, 2)]


class TestAsymmetricBits(_Quantization):
    def settings(self) -> Sequence[StepConfig]:
        return [QuantizeWeights(bits=bits, symmetric=False, rounding="nearest") for bits in (8, 6, 4, 3, 2)]
