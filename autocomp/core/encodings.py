"""How a tensor is stored: integer symbols and the few numbers that turn them back into floats.

``decode`` uses elementwise IEEE float32 operations in a fixed order (one multiplication for most), so the
result is bit-identical on any machine.
Per-channel numbers are kept to what the file holds (``round_half``), so what is scored is what is
stored.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    import torch

MAX_KERNEL = 16
"""Longest side of a kernel that :class:`DctTensor` holds."""

_BASIS_UNIT = 1 << 20


def half_exponent(values: torch.Tensor) -> int:
    """The power of two that brings the largest magnitude of ``values`` into [2**14, 2**15).

    Stored once a tensor, so that float16 keeps 11 significant bits whatever the magnitude.
    """
    top = float(values.detach().abs().max()) if values.numel() else 0.0
    if not math.isfinite(top) or top == 0.0:
        return 0
    return max(-126, min(126, math.frexp(top)[1] - 15))


def round_half(values: torch.Tensor) -> torch.Tensor:
    """``values`` (float32, any shape) rounded to float16 with a shared exponent, as float32."""
    import torch

    unit = 2.0 ** half_exponent(values)
    return (values / unit).to(torch.float16).to(torch.float32) * unit


SCALE_BITS = 8
"""Significant bits of scales: a relative error of at most 2**-8, below what rounding to 8 bits does to the weights
themselves. Biases keep all 11: theirs counts against the deviation of the output, which may be much smaller."""


def round_scale(values: torch.Tensor) -> torch.Tensor:
    """``values`` (float32, any shape) rounded to :data:`SCALE_BITS` significant bits, then as :func:`round_half`."""
    import torch

    mantissa, exponent = torch.frexp(values)
    return round_half(torch.ldexp((mantissa * 2.0**SCALE_BITS).round() / 2.0**SCALE_BITS, exponent))


E4M3_MAX = 448.0
"""Largest number of the E4M3 format: 4 bits of exponent, 3 of mantissa, no infinities (Micikevicius et al. 2022,
"FP8 Formats for Deep Learning", table 1; ONNX: FLOAT8E4M3FN)."""
E4M3_SYMBOLS = 126
"""Magnitudes above zero that it has; in ascending order they are its bit patterns 1 to 126."""


def round_e4m3(values: torch.Tensor) -> torch.Tensor:
    """``values`` (float32, any shape) rounded to the nearest E4M3 number, ties to even, saturating, as float32."""
    import torch

    return values.clamp(-E4M3_MAX, E4M3_MAX).to(torch.float8_e4m3fn).to(torch.float32)


def _along(values: torch.Tensor, dimensions: int, axis: int) -> torch.Tensor:
    """``values`` [channels] or [1] shaped to broadcast along ``axis``."""
    return values.reshape([-1 if d == axis else 1 for d in range(dimensions)])


class _Stored:
    """What all encodings have in common."""

    @property
    def memory_bytes(self) -> int:
        """Bytes that the encoding's tensors take in memory (not in a file)."""
        tensors = (value for value in vars(self).values() if hasattr(value, "untyped_storage"))
        return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


@dataclass(frozen=True, kw_only=True, eq=False)
class _Scaled(_Stored):
    """What encodings have in common that are multiplied by a scale at the end."""

    scale: torch.Tensor

    def with_gain(self, gain: torch.Tensor) -> Self:
        """The same symbols and tables with each channel's scale multiplied by ``gain`` (the shape of ``scale``)."""
        return replace(self, scale=round_scale(self.scale * gain))


@dataclass(frozen=True, kw_only=True, eq=False)
class QuantizedTensor(_Scaled):
    """Integers on a uniform grid.

    Attributes:
        symbols: integer tensor (int16), the shape of the weight.
        scale: float32, [channels] or [1]; representable by :func:`round_scale`.
        zero_point: int16, the shape of ``scale``, or None for a symmetric grid.
        axis: the channel axis of ``symbols`` (0; 1 for transposed convolutions).
        bits: nominal width when the grid has one (symbols fit ``bits`` bits), else None.
    """

    symbols: torch.Tensor
    zero_point: torch.Tensor | None = None
    axis: int = 0
    bits: int | None = None

    def decode(self) -> torch.Tensor:
        """float32 weight: ``(symbols - zero_point) * scale``."""
        symbols = self.symbols.float()
        if self.zero_point is not None:
            symbols = symbols - _along(self.zero_point.float(), symbols.dim(), self.axis)
        return symbols * _along(self.scale, symbols.dim(), self.axis)


@dataclass(frozen=True, kw_only=True, eq=False)
class FloatTensor(_Stored):
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


@dataclass(frozen=True, kw_only=True, eq=False)
class CodebookTensor(_Scaled):
    """Indices into tables of values (weight sharing, Han et al. 2016) or of short vectors (product quantization).

    Attributes:
        symbols: int16, 0 to entries − 1: one index a weight, in the weight's shape; for vectors (dim > 1)
            [channels, n / dim], n the weights of one channel in row-major order.
        codebook: float32 [books, entries, dim]; channel c reads book c // (channels / books).
        scale: float32, [channels] or [1], by which the entries are multiplied.
        shape: of the weight, one axis or more.
        axis: the channel axis of ``shape``.
    """

    symbols: torch.Tensor
    codebook: torch.Tensor
    shape: tuple[int, ...]
    axis: int = 0

    def decode(self) -> torch.Tensor:
        """float32 weight: ``codebook[book, symbol] * scale``."""
        import torch

        if not math.prod(self.shape):
            return torch.zeros(self.shape)
        channels = self.shape[self.axis]
        books, _, dim = self.codebook.shape
        symbols = self.symbols.movedim(self.axis, 0) if dim == 1 else self.symbols
        book = torch.arange(channels) // (channels // books)
        values = self.codebook[book[:, None], symbols.reshape(channels, -1).long()].reshape(channels, -1)
        values = values * self.scale.reshape(-1, 1)
        rest = self.shape[: self.axis] + self.shape[self.axis + 1 :]
        return values.reshape(channels, *rest).movedim(0, self.axis).contiguous()


def hash_buckets(count: int, buckets: int, seed: int, first: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """(bucket int64 [count], sign float32 [count]) of the flat indices from ``first`` on.

    Index i has output i of SplitMix64 started at ``seed``. The top bit gives the sign, the other 63 modulo
    ``buckets`` the bucket. Sources: the hashing trick, Chen et al. 2015; the generator, Steele et al. 2014.
    """
    import numpy as np
    import torch

    index = np.arange(first + 1, first + count + 1, dtype=np.uint64)
    state = np.uint64(seed) + index * np.uint64(0x9E3779B97F4A7C15)
    state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    state ^= state >> np.uint64(31)
    bucket = (state & np.uint64((1 << 63) - 1)) % np.uint64(buckets)
    sign = 1 - 2 * (state >> np.uint64(63)).astype(np.float32)
    return torch.from_numpy(bucket.astype(np.int64)), torch.from_numpy(sign)


_HASHED_AT_ONCE = 1 << 22


def hashed_parts(count: int, buckets: int, seed: int) -> Iterator[tuple[slice, torch.Tensor, torch.Tensor]]:
    """(indices, bucket, sign) of :func:`hash_buckets`, a part of the indices at a time: hashes take 30 bytes each."""
    for first in range(0, count, _HASHED_AT_ONCE):
        some = min(_HASHED_AT_ONCE, count - first)
        yield slice(first, first + some), *hash_buckets(some, buckets, seed, first)


@dataclass(frozen=True, kw_only=True, eq=False)
class HashedTensor(_Scaled):
    """Weights that share values by a hash of their place, so that no index is stored (Chen et al. 2015).

    Attributes:
        values: float32 [buckets].
        scale: float32, [channels] or [1].
        shape: of the weight, one axis or more.
        seed: of the hash, 0 to 2**32 − 1.
        axis: the channel axis of ``shape``.
    """

    values: torch.Tensor
    shape: tuple[int, ...]
    seed: int = 0
    axis: int = 0

    def decode(self) -> torch.Tensor:
        """float32 weight: ``values[bucket] * sign * scale``; the sign changes no other bit."""
        import torch

        flat = torch.empty(math.prod(self.shape))
        for places, bucket, sign in hashed_parts(len(flat), len(self.values), self.seed):
            flat[places] = self.values[bucket] * sign
        return flat.reshape(self.shape) * _along(self.scale, len(self.shape), self.axis)


@cache
def cosine_basis(size: int) -> tuple[tuple[float, ...], ...]:
    """Row j: the j-th vector of the orthonormal DCT-II of ``size`` points, in multiples of 2**−20.

    So coarse that no last bit of a machine's cosine decides, and exact in float32.
    """

    def entry(j: int, i: int) -> float:
        norm = math.sqrt((1 if j == 0 else 2) / size)
        return round(norm * math.cos(math.pi * (2 * i + 1) * j / (2 * size)) * _BASIS_UNIT) / _BASIS_UNIT

    return tuple(tuple(entry(j, i) for i in range(size)) for j in range(size))


@dataclass(frozen=True, kw_only=True, eq=False)
class DctTensor(_Scaled):
    """Quantized DCT coefficients of convolution kernels (CNNpack, Wang et al. 2016).

    Attributes:
        symbols: int16 coefficients, the shape of the weight; the axes from 2 on are the kernel's.
        scale: float32, [channels] or [1].
        axis: the channel axis of ``symbols``.
    """

    symbols: torch.Tensor
    axis: int = 0

    def decode(self) -> torch.Tensor:
        """float32 weight: along each kernel axis Σ_j basis[j, i] * x_j, j ascending, then ``* scale``."""
        import torch

        values = self.symbols.float()
        for axis in range(2, values.dim()):
            parts = values.unbind(axis)
            basis = cosine_basis(len(parts))
            sums = []
            for i in range(len(parts)):
                total = parts[0] * basis[0][i]
                for j in range(1, len(parts)):
                    total = total + parts[j] * basis[j][i]
                sums.append(total)
            values = torch.stack(sums, dim=axis)
        return values * _along(self.scale, values.dim(), self.axis)


@dataclass(frozen=True, kw_only=True, eq=False)
class Float8Tensor(_Scaled):
    """E4M3 numbers times a scale.

    Attributes:
        symbols: int16, −126 to 126, the shape of the weight: sign times the magnitude's bit pattern, so that symbols
            are in the order of the numbers.
        scale: float32, [channels] or [1].
        axis: the channel axis of ``symbols``.
    """

    symbols: torch.Tensor
    axis: int = 0

    @staticmethod
    def nearest(values: torch.Tensor, scale: torch.Tensor, axis: int = 0) -> Float8Tensor:
        """``values`` (float32) divided by ``scale`` and rounded as :func:`round_e4m3` does."""
        import torch

        numbers = round_e4m3(values / _along(scale, values.dim(), axis))
        patterns = numbers.abs().to(torch.float8_e4m3fn).view(torch.uint8).to(torch.int16)
        return Float8Tensor(symbols=(patterns * numbers.sign()).to(torch.int16), scale=scale, axis=axis)

    def numbers(self) -> torch.Tensor:
        """The E4M3 numbers, float32; zero is +0."""
        import torch

        patterns = torch.arange(E4M3_SYMBOLS + 1, dtype=torch.uint8)
        magnitudes = patterns.view(torch.float8_e4m3fn).to(torch.float32)
        return magnitudes[self.symbols.abs().long()] * self.symbols.sign()

    def decode(self) -> torch.Tensor:
        """float32 weight: ``number * scale``."""
        return self.numbers() * _along(self.scale, self.symbols.dim(), self.axis)


ScaledEncoding = QuantizedTensor | CodebookTensor | HashedTensor | DctTensor | Float8Tensor
"""Encodings with a scale a channel or a tensor, which ``with_gain`` changes alone."""

Encoding = FloatTensor | ScaledEncoding
