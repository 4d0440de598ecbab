"""A tensor as a record: bytes that hold one encoding exactly, independent of all other records.

``decode_tensor(encode_tensor(e))`` has the same symbols, scales and values bit for bit. The integers of
a record are coded by each coder that may be the smallest, and the smallest is kept (docs/format.md).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from autocomp.coding.arrays import (
    Floats,
    coder_name,
    decode_float16,
    decode_float32,
    decode_integers,
    encode_float16,
    encode_float32,
    encode_integers,
)
from autocomp.coding.contexts import Ints
from autocomp.coding.varint import Reader, put
from autocomp.errors import CorruptFileError

if TYPE_CHECKING:
    import torch

    from autocomp.core.encodings import Encoding, QuantizedTensor

MAX_DIMENSIONS = 16
MAX_ELEMENTS = 1 << 28
FREE_ELEMENTS = 1 << 22
ELEMENTS_PER_BYTE = 1 << 16

_FLOAT32, _FLOAT16, _QUANTIZED = 0, 1, 2
_HAS_ZERO_POINT, _HAS_AXIS, _HAS_BITS, _RAW_SCALE = 16, 32, 64, 128


def encode_tensor(encoding: Encoding) -> bytes:
    """The record of an encoding.

    Raises:
        ValueError: symbols that are no integers within int16, scales that are not [1] or [channels],
            16 bit values that were not rounded with ``round_half``.
    """
    from autocomp.core.encodings import FloatTensor

    if isinstance(encoding, FloatTensor):
        values = _floats(encoding.values)
        body = encode_float32(values) if encoding.width == 32 else encode_float16(values)
        if encoding.width not in (16, 32) or body is None:
            raise ValueError(f"FloatTensor: width {encoding.width}; allowed 32, or 16 with values made by round_half")
        return bytes([_FLOAT32 if encoding.width == 32 else _FLOAT16]) + _shape_bytes(values.shape) + body
    symbols, scale, zero_point = _quantized(encoding)
    if zero_point is not None:
        symbols = symbols - _along(zero_point, symbols.ndim, encoding.axis)
    body = encode_integers(np.moveaxis(symbols, encoding.axis, 0) if symbols.ndim else symbols)
    return _quantized_head(encoding, scale, zero_point) + body


def with_scale(record: bytes, encoding: QuantizedTensor) -> bytes:
    """The record of ``encoding``, whose symbols and zero points are those of ``record``: nothing is coded again.

    Equal to ``encode_tensor(encoding)``, in the time the scales take.

    Raises:
        ValueError: another shape, axis or zero point.
    """
    parts = _Parts.read(record)
    _, scale, zero_point = _quantized(encoding)
    known = None if parts.zero_point is None else decode_integers(parts.zero_point, (parts.channels,))
    same = known is zero_point if known is None or zero_point is None else np.array_equal(known, zero_point)
    same = same and parts.shape == tuple(encoding.symbols.shape) and parts.axis == encoding.axis
    if parts.kind != _QUANTIZED or not same:
        raise ValueError(f"record of {parts.shape} along axis {parts.axis} holds other symbols than the encoding")
    return _quantized_head(encoding, scale, zero_point) + parts.body


def _quantized(encoding: QuantizedTensor) -> tuple[Ints, Floats, Ints | None]:
    """(symbols, scale, zero point), checked."""
    symbols, scale = _integers(encoding.symbols), _floats(encoding.scale)
    zero_point = None if encoding.zero_point is None else _integers(encoding.zero_point)
    _check(symbols, scale, zero_point, encoding.axis, encoding.bits)
    return symbols, scale, zero_point


def _quantized_head(encoding: QuantizedTensor, scale: Floats, zero_point: Ints | None) -> bytes:
    """All of a record but the symbols."""
    halves = encode_float16(scale)
    flags = (_HAS_ZERO_POINT if zero_point is not None else 0) | (_HAS_AXIS if encoding.axis else 0)
    flags |= (_HAS_BITS if encoding.bits is not None else 0) | (_RAW_SCALE if halves is None else 0)
    head = bytes([_QUANTIZED | flags]) + _shape_bytes(tuple(encoding.symbols.shape))
    head += bytes([encoding.axis]) if encoding.axis else b""
    head += bytes([encoding.bits]) if encoding.bits is not None else b""
    head += put(scale.size) + _sized(encode_float32(scale) if halves is None else halves)
    return head + (_sized(encode_integers(zero_point)) if zero_point is not None else b"")


def decode_tensor(record: bytes) -> Encoding:
    """The encoding of a record; :class:`CorruptFileError` where it is not one."""
    import torch

    from autocomp.core.encodings import FloatTensor, QuantizedTensor

    parts = _Parts.read(record)
    if parts.kind != _QUANTIZED:
        decode = decode_float32 if parts.kind == _FLOAT32 else decode_float16
        values = torch.from_numpy(decode(parts.body, parts.shape))
        return FloatTensor(values=values, width=32 if parts.kind == _FLOAT32 else 16)
    scale = (decode_float32 if parts.raw_scale else decode_float16)(parts.scale, (parts.channels,))
    moved = parts.moved_shape()
    symbols = decode_integers(parts.body, moved)
    symbols = np.moveaxis(symbols, 0, parts.axis) if moved else symbols
    zero_point = None
    if parts.zero_point is not None:
        zero = decode_integers(parts.zero_point, (parts.channels,))
        symbols = symbols + _along(zero, symbols.ndim, parts.axis)
        zero_point = torch.from_numpy(_int16(zero))
    return QuantizedTensor(
        symbols=torch.from_numpy(_int16(symbols)),
        scale=torch.from_numpy(scale),
        zero_point=zero_point,
        axis=parts.axis,
        bits=parts.bits,
    )


def describe(record: bytes) -> dict[str, Any]:
    """What a record is made of, without decoding it.

    Returns:
        ``kind`` ("float32", "float16", "quantized"), ``shape``, ``coder`` (of the symbols; "float" for floats),
        ``symbols`` (how many), ``record_bytes``, ``side_bytes`` (all but the symbols' payload) and
        ``bits_per_symbol`` (of the payload).
    """
    parts = _Parts.read(record)
    count = math.prod(parts.shape)
    payload = len(parts.body) - (1 if parts.kind == _QUANTIZED else 0)
    return {
        "kind": ("float32", "float16", "quantized")[parts.kind],
        "shape": parts.shape,
        "coder": coder_name(parts.body) if parts.kind == _QUANTIZED else "float",
        "symbols": count,
        "record_bytes": len(record),
        "side_bytes": len(record) - payload,
        "bits_per_symbol": 8 * payload / count if count else 0.0,
    }


@dataclass(frozen=True, kw_only=True)
class _Parts:
    """A record taken apart; ``scale``, ``zero_point`` and ``body`` are still coded.

    Attributes:
        channels: elements of scale and zero point.
        body: floats, or the symbols with the channel axis first.
    """

    kind: int
    shape: tuple[int, ...]
    body: bytes
    axis: int = 0
    bits: int | None = None
    channels: int = 0
    raw_scale: bool = False
    scale: bytes = b""
    zero_point: bytes | None = None

    @staticmethod
    def read(record: bytes) -> _Parts:
        """Split and check; :class:`CorruptFileError` for what no encoder writes."""
        reader = Reader(record, "tensor record")
        flags = reader.byte()
        kind = flags & 15
        if kind > _QUANTIZED or (kind != _QUANTIZED and flags != kind):
            raise CorruptFileError(f"tensor record: unknown kind {flags}; damaged, or a newer autocomp wrote it")
        shape = _read_shape(reader, len(record))
        if kind != _QUANTIZED:
            return _Parts(kind=kind, shape=shape, body=reader.rest())
        axis = reader.byte() if flags & _HAS_AXIS else 0
        bits = reader.byte() if flags & _HAS_BITS else None
        channels = reader.varint(MAX_ELEMENTS)
        along = shape[axis] if axis < len(shape) else 1
        if axis >= max(1, len(shape)) or channels not in (1, along):
            raise CorruptFileError(
                f"tensor record: axis {axis} with {channels} scales for shape {shape}; damaged, get it again"
            )
        return _Parts(
            kind=kind,
            shape=shape,
            axis=axis,
            bits=bits,
            channels=channels,
            raw_scale=bool(flags & _RAW_SCALE),
            scale=reader.take(reader.varint(len(record))),
            zero_point=reader.take(reader.varint(len(record))) if flags & _HAS_ZERO_POINT else None,
            body=reader.rest(),
        )

    def moved_shape(self) -> tuple[int, ...]:
        """``shape`` with the channel axis first."""
        rest = self.shape[: self.axis] + self.shape[self.axis + 1 :]
        return (self.shape[self.axis], *rest) if self.shape else ()


def elements(record: bytes) -> int:
    """How many numbers a record holds, without decoding it."""
    return math.prod(_Parts.read(record).shape)


def _floats(tensor: torch.Tensor) -> Floats:
    array: NDArray[Any] = tensor.detach().cpu().numpy()
    if array.dtype != np.float32:
        raise ValueError(f"float32 expected, got {array.dtype}")
    return np.ascontiguousarray(array).reshape(array.shape)


def _integers(tensor: torch.Tensor) -> Ints:
    array: NDArray[Any] = tensor.detach().cpu().numpy()
    if array.dtype.kind not in "iu" or (array.size and not -32768 <= int(array.min()) <= int(array.max()) <= 32767):
        raise ValueError(f"integers within int16 expected, got {array.dtype} or values beyond")
    return array.astype(np.int32)


def _check(symbols: Ints, scale: Floats, zero_point: Ints | None, axis: int, bits: int | None) -> None:
    along = symbols.shape[axis] if 0 <= axis < symbols.ndim else 1
    if not 0 <= axis < max(1, symbols.ndim) or scale.ndim != 1 or scale.size not in (1, along):
        raise ValueError(f"scale {scale.shape} along axis {axis} of {symbols.shape}; allowed [1] or [channels]")
    if zero_point is not None and zero_point.shape != scale.shape:
        raise ValueError(f"zero_point {zero_point.shape} differs from scale {scale.shape}")
    if bits is not None and not 0 <= bits <= 255:
        raise ValueError(f"bits = {bits}; allowed 0 to 255")
    if symbols.ndim > MAX_DIMENSIONS or symbols.size > MAX_ELEMENTS:
        raise ValueError(f"tensor {symbols.shape}; at most {MAX_DIMENSIONS} axes and {MAX_ELEMENTS} elements")


def _along(values: Ints, dimensions: int, axis: int) -> Ints:
    """``values`` shaped to broadcast along ``axis``."""
    return values.reshape([-1 if d == axis else 1 for d in range(dimensions)])


def _int16(values: Ints) -> NDArray[np.int16]:
    if values.size and not -32768 <= int(values.min()) <= int(values.max()) <= 32767:
        raise CorruptFileError("tensor record: symbols outside int16; the data is damaged, get it again")
    return np.ascontiguousarray(values, np.int16).reshape(values.shape)


def _sized(data: bytes) -> bytes:
    return put(len(data)) + data


def _shape_bytes(shape: tuple[int, ...]) -> bytes:
    return bytes([len(shape)]) + b"".join(map(put, shape))


def _read_shape(reader: Reader, record_bytes: int) -> tuple[int, ...]:
    """The shape; refused where the record is too short for so many elements (bounds what is allocated)."""
    dimensions = reader.byte()
    if dimensions > MAX_DIMENSIONS:
        raise CorruptFileError(f"tensor record: {dimensions} axes; at most {MAX_DIMENSIONS}; damaged, get it again")
    shape = tuple(reader.varint(MAX_ELEMENTS) for _ in range(dimensions))
    most = min(MAX_ELEMENTS, FREE_ELEMENTS + ELEMENTS_PER_BYTE * record_bytes)
    if math.prod(shape) > most:
        raise CorruptFileError(
            f"tensor record: shape {shape} in {record_bytes} bytes; at most {most} elements; damaged, get it again"
        )
    return shape
