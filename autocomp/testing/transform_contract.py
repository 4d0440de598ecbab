"""What every weight transform promises; a new transform's tests inherit it and name its settings."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import nn

from autocomp.coding.tensors import decode_tensor, encode_tensor, with_scale
from autocomp.core.encodings import Encoding, ScaledEncoding
from autocomp.core.steps import Choice, StepConfig
from autocomp.transforms.compensate import Hessian
from autocomp.transforms.problem import LayerProblem
from autocomp.transforms.weights import compress_layer


class WeightTransformContract(ABC):
    """Inherit, and define :meth:`settings`.

    Class attributes:
        finest: largest error of the first setting, in standard deviations of the weight. A step of 0.03
            deviations leaves 0.03 / sqrt(12) = 0.009; compensation may double it.

    Input untouched; shape kept; the finest setting is (nearly) the identity; coarser settings cost fewer bytes and
    more error; the record decodes to the same bits; the same seed gives the same result; settings round-trip.
    """

    finest: ClassVar[float] = 0.018

    @abstractmethod
    def settings(self) -> Sequence[StepConfig]:
        """Settings from the finest to the coarsest."""

    def encode(self, weight: torch.Tensor, config: StepConfig, hessian: Hessian) -> Encoding:
        """The transform on a weight [out, in, 3, 3] whose inputs gave ``hessian``, as a search applies it."""
        problem = LayerProblem(name="layer", weight=weight, hessian=hessian, channel_scales=True)
        return compress_layer(problem, [Choice((config,))])[0]

    def _case(self) -> tuple[torch.Tensor, Hessian]:
        generator = torch.Generator().manual_seed(7)
        layer = nn.Conv2d(8, 12, 3, padding=1)
        weight = torch.randn(12, 8, 3, 3, generator=generator) * torch.rand(12, 1, 1, 1, generator=generator)
        inputs = torch.randn(32, 8, 6, 6, generator=generator).relu()
        return weight, Hessian.of(layer, [inputs])

    def test_input_is_untouched_and_the_shape_kept(self) -> None:
        weight, hessian = self._case()
        before = weight.clone()
        for config in self.settings():
            assert self.encode(weight, config, hessian).decode().shape == weight.shape
            assert torch.equal(weight, before)

    def test_the_finest_setting_changes_almost_nothing(self) -> None:
        weight, hessian = self._case()
        change = self.encode(weight, self.settings()[0], hessian).decode() - weight
        assert float(change.square().mean().sqrt()) <= self.finest * float(weight.std())

    def test_coarser_is_smaller_and_further_away(self) -> None:
        weight, hessian = self._case()
        made = [self.encode(weight, config, hessian) for config in self.settings()]
        sizes = [len(encode_tensor(e)) for e in made]
        errors = [float((e.decode() - weight).square().mean()) for e in made]
        assert sizes == sorted(sizes, reverse=True)
        assert errors == sorted(errors)

    def test_the_record_holds_the_same_bits_also_under_other_scales(self) -> None:
        weight, hessian = self._case()
        for config in self.settings():
            encoding = self.encode(weight, config, hessian)
            record = encode_tensor(encoding)
            assert torch.equal(decode_tensor(record).decode(), encoding.decode())
            if isinstance(encoding, ScaledEncoding) and encoding.scale is not None:
                other = encoding.with_gain(torch.linspace(0.5, 1.5, len(encoding.scale)))
                assert with_scale(record, other) == encode_tensor(other)

    def test_the_same_input_gives_the_same_result(self) -> None:
        weight, hessian = self._case()
        for config in self.settings():
            first, second = (encode_tensor(self.encode(weight, config, hessian)) for _ in range(2))
            assert first == second

    def test_settings_round_trip(self) -> None:
        for config in self.settings():
            assert StepConfig.from_json(json.loads(json.dumps(config.to_json()))) == config
        labels = [config.label() for config in self.settings()]
        assert len(set(labels)) == len(labels)
