"""A compressed network: encodings of its tensors and quantizers of its activations."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from autocomp.core.candidate import Candidate
from autocomp.core.edits import Edit

if TYPE_CHECKING:
    from autocomp.core.encodings import Encoding


@dataclass(frozen=True, kw_only=True)
class ActivationQuantizer:
    """Affine quantizer of one value, for all its readers: q = clamp(round(x / scale) + zero_point).

    Rounding is to nearest, ties to even, as in ONNX QuantizeLinear; the division is done in float32.

    Attributes:
        scale: float32 value.
        zero_point: integer inside [low, high].
        low, high: range: (0, 255) for uint8, (-128, 127) for int8, (-448, 448) for float8.
        precision: "int8": q is an integer; "float8": an E4M3 number, and the zero point is 0.
    """

    scale: float
    zero_point: int
    low: int
    high: int
    precision: str = "int8"

    @staticmethod
    def float8(scale: float) -> ActivationQuantizer:
        """q = E4M3(x / scale), saturating."""
        return ActivationQuantizer(scale=scale, zero_point=0, low=-448, high=448, precision="float8")

    def to_json(self) -> list[Any]:
        digits, exponent = self.scale.hex().split("p")
        scale = f"{digits.rstrip('0').rstrip('.')}p{exponent}"
        return [scale, "float8"] if self.precision == "float8" else [scale, self.zero_point, self.low, self.high]

    @staticmethod
    def from_json(data: list[Any]) -> ActivationQuantizer:
        scale = float.fromhex(data[0])
        if data[1] == "float8":
            return ActivationQuantizer.float8(scale)
        return ActivationQuantizer(scale=scale, zero_point=data[1], low=data[2], high=data[3])


@dataclass(frozen=True, kw_only=True, eq=False)
class CompressedModel:
    """What a candidate is made of. Values; every transform returns a new one.

    Attributes:
        candidate: what was asked for.
        tensors: state-dict key (of the folded and edited module) → encoding, for every parameter and
            floating-point buffer.
        activations: value key → quantizer; empty where every layer computes in floating point of 16 or 32 bits.
        edits: how the structure differs from the folded network's, in order.
        steps: names of what was done, in order ("quantize_weights", "restore_statistics", ...).
    """

    candidate: Candidate
    tensors: dict[str, Encoding]
    activations: dict[str, ActivationQuantizer] = field(default_factory=dict)
    edits: tuple[Edit, ...] = ()
    steps: tuple[str, ...] = ()

    def replace(self, **changes: Any) -> CompressedModel:
        """A new value with some fields changed."""
        return dataclasses.replace(self, **changes)
