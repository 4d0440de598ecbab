"""How a tensor is stored: integer symbols and the few numbers that turn them back into floats.

``decode`` uses one IEEE multiplication an element, so the result is bit-identical on any machine.
Per-channel numbers are kept to what the file holds (``round_half``), so what is scored is what is
stored.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def half_exponent(values: torch.Tensor) -> int:
    """The power of two that brings the largest magnitude of ``values`` into [2**14, 2**15).

    Stored once a tensor, so that float16 keeps 11 significant bits whatever the magnitude.
    """
    import math

    top = float(values.detach().abs().max()) if values.numel() else 0.0
    if not math.isfinite(top) or top == 0.0:
        return 0
    return max(-126, min(126, math.frexp(top)[1] - 15))


def round_half(values: torch.Tensor) -> torch.Tensor:
    """``values`` (float32, any shape) rounded to float16 with a shared exponent, as float32."""
    import torch

    unit = 2.0 ** half_exponent(values)
    return (values / unit).to(torch.float16).to(torch.float32) * unit


@dataclass(frozen=True, kw_only=True, eq=False)
class QuantizedTensor:
    """Integers on a uniform grid.

    Attributes:
        symbols: integer tensor (int16), the shape of the weight.
        scale: float32, [channels] or [1]; representable by :func:`round_half`.
        zero_point: int16, the shape of ``scale``, or None for a symmetric grid.
        axis: the channel axis of ``symbols`` (0; 1 for transposed convolutions).
        bits: nominal width when the grid has one (symbols fit ``bits`` bits), else None.
    """

    symbols: torch.Tensor
    scale: torch.Tensor
    zero_point: torch.Tensor | None = None
    axis: int = 0
    bits: int | None = None

    def _along(self, values: torch.Tensor) -> torch.Tensor:
        shape = [1] * self.symbols.dim()
        shape[self.axis] = -1
        return values.reshape(shape)

    def decode(self) -> torch.Tensor:
        """float32 weight: ``(symbols - zero_point) * scale``."""
        symbols = self.symbols.float()
        if self.zero_point is not None:
            symbols = symbols - self._along(self.zero_point.float())
        return symbols * self._along(self.scale)

    def with_gain(self, gain: torch.Tensor) -> QuantizedTensor:
        """The same integers with each channel's scale multiplied by ``gain`` [channels]."""
        return replace(self, scale=round_half(self.scale * gain))


@dataclass(frozen=True, kw_only=True, eq=False)
class FloatTensor:
    """Values stored as they are.

    Attributes:
        values: float32 tensor.
        width: 32 (raw), or 16: float16 with a shared exponent (``values`` already rounded).
    """

    values: torch.Tensor
    width: int = 32

    @staticmethod
    def half(values: torch.Tensor) -> FloatTensor:
        """``values`` rounded to 16 bit storage."""
        return FloatTensor(values=round_half(values), width=16)

    def decode(self) -> torch.Tensor:
        """float32 values."""
        return self.values


Encoding = QuantizedTensor | FloatTensor
