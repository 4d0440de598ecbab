"""Arrays of integers and floats as bytes: the smallest coder for integers, floats split into sign, top and low bits.

Floats are coded by their bits, so every value (−0.0, infinities, NaN payloads) comes back exactly.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from autocomp.coding.bits import bit_planes, pack, packed_bytes, unpack
from autocomp.coding.coders import coder_names, coders
from autocomp.coding.contexts import Ints
from autocomp.coding.varint import Reader, put_signed
from autocomp.errors import CorruptFileError

Floats = NDArray[np.float32]

_POSITIVE, _SIGNED, _PLAIN = 0, 1, 2
_SHORTENED = 3  # plus the count of low bits that no value uses, at least 1: integers without signs and these bits
_SPLIT, _SPLIT_SIGNED, _DROPPED = 16, 32, 15  # flags of the split form, and its count of dropped low bits
_RICE_AT, _MOST_RICE = 6, 3  # place and largest value of its Rice parameter
_MANTISSA, _EXPONENTS = 10, 31  # bits of a binary16 mantissa, largest exponent field
_FEW = 1 << 16  # floats that the split form is tried for; it is 5 % larger than coded integers at 4,096 already
_TRIVIAL_BYTES = 8  # a code this small cannot be beaten by the range coder


def encode_integers(symbols: Ints) -> bytes:
    """The coder's number and the smallest payload of an int32 array within ±2**17."""
    sizes = {name: coder.size(symbols) for name, coder in coders().items()}
    known = {name: size for name, size in sizes.items() if size is not None and size >= 0}
    best = min(known, key=lambda name: (known[name], name))
    payload, size = None, known[best]
    for name, known_size in sizes.items():
        if known_size is None and size > _TRIVIAL_BYTES:
            coded = coders()[name].encode(symbols)
            if len(coded) < size:
                best, payload, size = name, coded, len(coded)
    coder = coders()[best]
    return bytes([coder.CODE]) + (coder.encode(symbols) if payload is None else payload)


def decode_integers(data: bytes, shape: tuple[int, ...]) -> Ints:
    """The reverse of :func:`encode_integers`."""
    return coders()[coder_name(data)].decode(data[1:], shape)


def coder_name(data: bytes) -> str:
    """Name of the coder of what :func:`encode_integers` made."""
    name = coder_names().get(data[0]) if data else None
    if name is None:
        raise CorruptFileError(
            f"unknown coder {data[0] if data else 'missing'}; known: {sorted(coder_names())}; "
            "the data is damaged, or a newer autocomp wrote it"
        )
    return name


def encode_float32(values: Floats) -> bytes:
    """float32 of any shape, by their bits: the low 16 of each, then signs and upper 15 as integers."""
    bits = np.ascontiguousarray(values).view(np.uint32).reshape(-1)
    return (bits & np.uint32(0xFFFF)).astype("<u2").tobytes() + _encode_signed_bits(bits >> np.uint32(16))


def decode_float32(data: bytes, shape: tuple[int, ...]) -> Floats:
    """The reverse of :func:`encode_float32`."""
    reader = Reader(data, "float32 values")
    low = np.frombuffer(reader.take(2 * math.prod(shape)), "<u2").astype(np.uint32)
    high = _decode_signed_bits(reader, shape)
    return ((high << np.uint32(16)) | low).view(np.float32).reshape(shape)


def encode_float16(values: Floats) -> bytes | None:
    """float16 with a shared power of two; None where that does not hold ``values`` bit for bit."""
    top = float(np.abs(values).max(initial=0.0))
    finite = math.isfinite(top) and top > 0.0
    first = max(-126, min(126, math.frexp(top)[1] - 15)) if finite else 0
    for exponent in (first, max(-126, first - 1)):  # rounding up to a power of two moves the exponent
        with np.errstate(over="ignore", invalid="ignore", under="ignore"):
            halves = (values / np.float32(2.0**exponent)).astype(np.float16)
        if np.array_equal(_scaled(halves, exponent).view(np.uint32), np.ascontiguousarray(values).view(np.uint32)):
            return put_signed(exponent) + _encode_signed_bits(halves.reshape(-1).view(np.uint16).astype(np.uint32))
    return None


def decode_float16(data: bytes, shape: tuple[int, ...]) -> Floats:
    """The reverse of :func:`encode_float16`."""
    reader = Reader(data, "float16 values")
    exponent = reader.signed(126)
    halves = _decode_signed_bits(reader, shape).astype(np.uint16).view(np.float16)
    return _scaled(halves.reshape(shape), exponent)


def _scaled(halves: NDArray[np.float16], exponent: int) -> Floats:
    """``halves`` times a power of two: one IEEE multiplication."""
    with np.errstate(over="ignore", invalid="ignore", under="ignore"):
        return np.multiply(halves.astype(np.float32), np.float32(2.0**exponent))


def _encode_signed_bits(bits: NDArray[np.uint32]) -> bytes:
    """16 bit words in the smallest of these forms: as they are, split, or as integers with or without signs."""
    signs = (bits >> np.uint32(15)).view(np.int32)
    signed, unused = bool(signs.any()), _unused_bits(bits)
    head = bytes([_SIGNED]) + pack(signs, 1) if signed else bytes([_SHORTENED + unused if unused else _POSITIVE])
    split = _encode_split(bits, signs, unused) if 0 < bits.size <= _FEW else None
    del signs  # as large as the layer, as the next array is
    lower = ((bits & np.uint32(0x7FFF)) >> np.uint32(0 if signed else unused)).view(np.int32)
    coded = head + encode_integers(lower)
    best = coded if split is None else min(coded, split, key=len)
    return best if len(best) <= 1 + 2 * bits.size else bytes([_PLAIN]) + bits.astype("<u2").tobytes()


def _unused_bits(bits: NDArray[np.uint32]) -> int:
    """How many of the lowest bits are zero throughout; all of a mantissa at most."""
    used = int(np.bitwise_or.reduce(bits)) & ((1 << _MANTISSA) - 1)
    return (used & -used).bit_length() - 1 if used else _MANTISSA


def _encode_split(bits: NDArray[np.uint32], signs: Ints, dropped: int) -> bytes:
    """Signs, exponents below the largest in a Rice code, and mantissas without the low bits that are zero throughout.

    For the few floats of a small layer: no adaptive coder learns them, and their mantissas are noise.
    """
    below = (bits >> np.uint32(_MANTISSA)).astype(np.int32) & _EXPONENTS
    top = int(below.max())
    below = top - below
    rice = min(range(_MOST_RICE + 1), key=lambda k: int((below >> k).sum()) + k * below.size)
    whole = below >> rice
    unary = np.ones(int(whole.sum()) + whole.size, np.uint8)
    unary[(whole + 1).cumsum() - 1] = 0
    mantissas = bit_planes((bits >> np.uint32(dropped)).astype(np.int32), _MANTISSA - dropped)
    parts = [unary, bit_planes(below, rice), mantissas]
    if signs.any():
        parts.insert(0, signs.astype(np.uint8))
    form = _SPLIT | (_SPLIT_SIGNED if signs.any() else 0) | dropped | rice << _RICE_AT
    return bytes([form, top]) + np.packbits(np.concatenate(parts)).tobytes()


def _decode_split(reader: Reader, form: int, count: int) -> NDArray[np.uint32]:
    """The reverse of :func:`_encode_split`."""
    top, dropped, rice = reader.byte(), form & _DROPPED, form >> _RICE_AT
    bits = np.unpackbits(np.frombuffer(reader.rest(), np.uint8))
    signed = count if form & _SPLIT_SIGNED else 0
    ends = np.flatnonzero(bits[signed:] == 0)[:count]
    start = signed + int(ends[-1]) + 1 if len(ends) == count > 0 else bits.size + 1
    width = _MANTISSA - dropped
    middle = start + count * rice
    stop = middle + count * width
    fits = 0 <= bits.size - stop < 8 and width >= 0 and top <= _EXPONENTS and not bits[stop:].any()
    below = (np.diff(ends, prepend=-1) - 1 << rice) + _numbers(bits[start:middle], count, rice) if fits else ends
    if not fits or int(below.max(initial=0)) > top:
        raise CorruptFileError(f"{reader.what}: split floats of {bits.size} bits do not fit; damaged, get it again")
    words: NDArray[np.uint32] = (top - below).astype(np.uint32) << np.uint32(_MANTISSA)
    words |= _numbers(bits[middle:stop], count, width).astype(np.uint32) << np.uint32(dropped)
    return words | (bits[:signed].astype(np.uint32) << np.uint32(15)) if signed else words


def _numbers(bits: NDArray[np.uint8], count: int, width: int) -> NDArray[np.int64]:
    """int64 [count] from their bits, ``width`` each, highest first."""
    places = 1 << np.arange(width - 1, -1, -1)
    return bits.reshape(count, width) @ places


def _decode_signed_bits(reader: Reader, shape: tuple[int, ...]) -> NDArray[np.uint32]:
    """The reverse of :func:`_encode_signed_bits`, flat."""
    count, form = math.prod(shape), reader.byte()
    if form & _SPLIT:
        return _decode_split(reader, form, count)
    if form == _PLAIN:
        words = np.frombuffer(reader.take(2 * count), "<u2").astype(np.uint32)
        reader.end()
        return words
    signs = np.zeros(count, np.uint32)
    if form == _SIGNED:
        signs = unpack(reader.take(packed_bytes(count, 1)), count, 1).astype(np.uint32)
    unused = form - _SHORTENED if form > _PLAIN else 0
    lower = decode_integers(reader.rest(), (count,))
    if unused > _MANTISSA or (count and not 0 <= int(lower.min()) <= int(lower.max()) <= 0x7FFF >> unused):
        raise CorruptFileError(f"{reader.what}: bits outside their range; the data is damaged, get it again")
    return (signs << np.uint32(15)) | lower.astype(np.uint32) << np.uint32(unused)
