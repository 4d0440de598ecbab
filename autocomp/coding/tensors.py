"""A tensor as a record: bytes that hold one encoding exactly, independent of all other records.

``decode_tensor(encode_tensor(e))`` has the same symbols, scales and values bit for bit. The integers of
a record are coded by each coder that may be the smallest, and the smallest is kept (docs/format.md).
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

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
from autocomp.coding.parts import (
    CODEBOOK,
    DCT,
    FLOAT8,
    FLOAT16,
    FLOAT32,
    HAS_ZERO_POINT,
    KIND_NAMES,
    MAX_ELEMENTS,
    OWN_FLAG,
    QUANTIZED,
    SPARSE,
    Parts,
    along_axis,
    floats,
    int16,
    integers,
    scaled_head,
    shape_bytes,
    sized,
)
from autocomp.coding.varint import Reader

if TYPE_CHECKING:
    from autocomp.core.encodings import Encoding, FloatTensor, ScaledEncoding


def encode_tensor(encoding: Encoding) -> bytes:
    """The record of an encoding.

    Raises:
        ValueError: symbols that are no integers within int16, scales that are not [1] or [channels],
            16 bit values that were not rounded with ``round_half``.
    """
    from autocomp.coding.sharing import shared_body
    from autocomp.core.encodings import FloatTensor, QuantizedTensor

    if isinstance(encoding, FloatTensor):
        return _float_record(encoding)
    if not isinstance(encoding, QuantizedTensor):
        body = shared_body(encoding)
        return _head(encoding) + body
    head = _head(encoding)
    symbols = integers(encoding.symbols)
    if encoding.zero_point is not None:
        symbols = symbols - along_axis(integers(encoding.zero_point), symbols.ndim, encoding.axis)
    return head + encode_integers(np.moveaxis(symbols, encoding.axis, 0) if symbols.ndim else symbols)


def _float_record(encoding: FloatTensor) -> bytes:
    """The smaller of all values as they are, and a mask with the values that are not zero."""
    from autocomp.coding.sharing import encode_sparse

    values = floats(encoding.values)
    body = encode_float32(values) if encoding.width == 32 else encode_float16(values)
    if encoding.width not in (16, 32) or body is None:
        raise ValueError(f"FloatTensor: width {encoding.width}; allowed 32, or 16 with values made by round_half")
    dense = bytes([FLOAT32 if encoding.width == 32 else FLOAT16]) + shape_bytes(values.shape) + body
    sparse = encode_sparse(values, encoding.width)
    return dense if sparse is None or len(dense) <= len(sparse) else sparse


def with_scale(record: bytes, encoding: ScaledEncoding) -> bytes:
    """The record of ``encoding``, which is that of ``record`` but for its scales: nothing is coded again.

    Equal to ``encode_tensor(encoding)``, in the time the scales take. What ``record`` holds besides its
    shape, channel axis and zero points is trusted to be the same.

    Raises:
        ValueError: another kind, shape, axis or zero point.
    """
    parts = Parts.read(record)
    head = _head(encoding)
    new = Parts.read(head)
    same = (new.kind, new.shape, new.axis, new.zero_point) == (parts.kind, parts.shape, parts.axis, parts.zero_point)
    if not same:
        raise ValueError(f"record of {parts.shape} along axis {parts.axis} holds other symbols than the encoding")
    return head + parts.body


def rescaled(record: bytes, scale: Floats) -> bytes:
    """The record with other scales, [1] or [channels]; one with scales, of a :data:`ScaledEncoding`."""
    parts = Parts.read(record)
    head = scaled_head(parts.kind | parts.flags & OWN_FLAG, parts.shape, parts.axis, scale, bits=parts.bits)
    return head + (sized(parts.zero_point) if parts.zero_point is not None else b"") + parts.body


def _head(encoding: ScaledEncoding) -> bytes:
    """All of a record but its body."""
    from autocomp.coding.sharing import shared_head
    from autocomp.core.encodings import QuantizedTensor

    if not isinstance(encoding, QuantizedTensor):
        return shared_head(encoding)
    symbols, scale = integers(encoding.symbols), floats(encoding.scale)
    zero = None if encoding.zero_point is None else integers(encoding.zero_point)
    if zero is not None and zero.shape != scale.shape:
        raise ValueError(f"zero_point {zero.shape} differs from scale {scale.shape}")
    first = QUANTIZED | (HAS_ZERO_POINT if zero is not None else 0)
    head = scaled_head(first, symbols.shape, encoding.axis, scale, bits=encoding.bits)
    return head + (sized(encode_integers(zero)) if zero is not None else b"")


def decode_tensor(record: bytes) -> Encoding:
    """The encoding of a record; :class:`CorruptFileError` where it is not one."""
    import torch

    from autocomp.coding.sharing import decode_shared, decode_sparse
    from autocomp.core.encodings import FloatTensor, QuantizedTensor

    parts = Parts.read(record)
    if parts.kind == SPARSE:
        return decode_sparse(parts)
    if parts.kind in (FLOAT32, FLOAT16):
        decode = decode_float32 if parts.kind == FLOAT32 else decode_float16
        values = torch.from_numpy(decode(parts.body, parts.shape))
        return FloatTensor(values=values, width=32 if parts.kind == FLOAT32 else 16)
    if parts.kind != QUANTIZED:
        return decode_shared(parts)
    moved = parts.moved_shape()
    symbols: Ints = decode_integers(parts.body, moved)
    symbols = np.moveaxis(symbols, 0, parts.axis) if moved else symbols
    zero_point = None
    if parts.zero_point is not None:
        zero = decode_integers(parts.zero_point, (parts.channels,))
        symbols = symbols + along_axis(zero, symbols.ndim, parts.axis)
        zero_point = torch.from_numpy(int16(zero))
    return QuantizedTensor(
        symbols=torch.from_numpy(int16(symbols)),
        scale=torch.from_numpy(parts.scales()),
        zero_point=zero_point,
        axis=parts.axis,
        bits=parts.bits,
    )


def describe(record: bytes) -> dict[str, Any]:
    """What a record is made of, without decoding it.

    Returns:
        ``kind`` (of ``KIND_NAMES``: "float32", "float16", "quantized", ...), ``shape``, ``coder`` (of the symbols,
        indices or mask; "float" where there are none), ``symbols`` (weights), ``record_bytes``, ``side_bytes`` (all
        but the payload of symbols or floats) and ``bits_per_symbol`` (of the payload, a weight).
    """
    parts = Parts.read(record)
    count = math.prod(parts.shape)
    coded = _symbols_of(parts)
    payload = len(parts.body) if coded is None else len(coded) - 1
    return {
        "kind": KIND_NAMES[parts.kind],
        "shape": parts.shape,
        "coder": "float" if coded is None else coder_name(coded),
        "symbols": count,
        "record_bytes": len(record),
        "side_bytes": len(record) - payload,
        "bits_per_symbol": 8 * payload / count if count else 0.0,
    }


def _symbols_of(parts: Parts) -> bytes | None:
    """The coded integers of a record's body, None where it holds floats only."""
    if parts.kind in (QUANTIZED, DCT, FLOAT8):
        return parts.body
    reader = Reader(parts.body, "tensor record")
    most = len(parts.body)
    if parts.kind == SPARSE:
        return reader.take(reader.varint(most))
    if parts.kind == CODEBOOK:
        for _ in range(3):
            reader.varint(MAX_ELEMENTS)
        reader.take(reader.varint(most))
        return reader.rest()
    return None


def elements(record: bytes) -> int:
    """How many numbers a record holds, without decoding it."""
    return math.prod(Parts.read(record).shape)
