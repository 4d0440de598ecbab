"""A tensor record taken apart: its kind, shape and scales, and the body that each kind reads by itself."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from autocomp.coding.arrays import Floats, decode_float16, decode_float32, encode_float16, encode_float32
from autocomp.coding.contexts import Ints
from autocomp.coding.varint import Reader, put, put_signed
from autocomp.errors import CorruptFileError

if TYPE_CHECKING:
    import torch

MAX_DIMENSIONS = 16
MAX_EXPONENT = 126  # of two, of what floats share
MAX_ELEMENTS = 1 << 28
FREE_ELEMENTS = 1 << 22
ELEMENTS_PER_BYTE = 1 << 16

FLOAT32, FLOAT16, QUANTIZED, SPARSE, CODEBOOK, HASHED, DCT, FLOAT8 = range(8)
KIND_NAMES = ("float32", "float16", "quantized", "sparse", "codebook", "hashed", "dct", "float8")

SHORT_SCALE, HAS_ZERO_POINT, HAS_AXIS, HAS_BITS, RAW_SCALE = 8, 16, 32, 64, 128
HALF_VALUES = 16  # of sparse floats
RAW_VALUES = 16  # of codebooks and hashed values: float32, no float16
OWN_FLAG = 16  # the one that a kind with scales sets by itself

_FLAGS = {
    FLOAT32: 0,
    FLOAT16: 0,
    QUANTIZED: HAS_ZERO_POINT | HAS_AXIS | HAS_BITS | RAW_SCALE | SHORT_SCALE,
    SPARSE: HALF_VALUES,
    CODEBOOK: RAW_VALUES | HAS_AXIS | RAW_SCALE | SHORT_SCALE,
    HASHED: RAW_VALUES | HAS_AXIS | RAW_SCALE | SHORT_SCALE,
    DCT: HAS_AXIS | RAW_SCALE | SHORT_SCALE,
    FLOAT8: HAS_AXIS | RAW_SCALE | SHORT_SCALE,
}
_SCALED = (QUANTIZED, CODEBOOK, HASHED, DCT, FLOAT8)


@dataclass(frozen=True, kw_only=True)
class Parts:
    """A record taken apart; ``scale``, ``zero_point`` and ``body`` are still coded.

    Attributes:
        kind, flags: of the record's first byte.
        channels: elements of scale and zero point.
        body: what follows them.
    """

    kind: int
    flags: int
    shape: tuple[int, ...]
    body: bytes
    axis: int = 0
    bits: int | None = None
    channels: int = 0
    scale: bytes = b""
    zero_point: bytes | None = None

    @staticmethod
    def read(record: bytes) -> Parts:
        """Split and check; :class:`CorruptFileError` for what no encoder writes."""
        reader = Reader(record, "tensor record")
        first = reader.byte()
        kind, flags = first & 7, first & 248
        both = SHORT_SCALE | RAW_SCALE
        if kind not in _FLAGS or flags & ~_FLAGS[kind] or flags & both == both:
            raise CorruptFileError(f"tensor record: unknown kind {first}; damaged, or a newer autocomp wrote it")
        shape = read_shape(reader, len(record))
        if kind not in _SCALED:
            return Parts(kind=kind, flags=flags, shape=shape, body=reader.rest())
        axis = reader.byte() if flags & HAS_AXIS else 0
        bits = reader.byte() if kind == QUANTIZED and flags & HAS_BITS else None
        short = bool(flags & SHORT_SCALE)
        channels = 1 if short else reader.varint(MAX_ELEMENTS)
        along = shape[axis] if axis < len(shape) else 1
        if axis >= max(1, len(shape)) or channels not in (1, along):
            raise CorruptFileError(
                f"tensor record: axis {axis} with {channels} scales for shape {shape}; damaged, get it again"
            )
        has_zero = kind == QUANTIZED and flags & HAS_ZERO_POINT
        return Parts(
            kind=kind,
            flags=flags,
            shape=shape,
            axis=axis,
            bits=bits,
            channels=channels,
            scale=_take_short(reader) if short else reader.take(reader.varint(len(record))),
            zero_point=reader.take(reader.varint(len(record))) if has_zero else None,
            body=reader.rest(),
        )

    def scales(self) -> Floats:
        """float32 [channels]."""
        if self.flags & SHORT_SCALE:
            exponent = Reader(self.scale, "scale").signed(MAX_EXPONENT)
            with np.errstate(over="ignore"):
                return np.array([math.ldexp(self.scale[-1], exponent)]).astype(np.float32)
        return decode_floats(self.scale, (self.channels,), raw=bool(self.flags & RAW_SCALE))

    def moved_shape(self) -> tuple[int, ...]:
        """``shape`` with the channel axis first."""
        rest = self.shape[: self.axis] + self.shape[self.axis + 1 :]
        return (self.shape[self.axis], *rest) if self.shape else ()


def scaled_head(first: int, shape: tuple[int, ...], axis: int, scale: Floats, *, bits: int | None = None) -> bytes:
    """A record up to and with its scales; the flags of axis, bits and scale are set here.

    Args:
        first: kind and the flags of the kind's own.
        shape: of the weight.
        axis: of its channels.
        scale: [1] or [channels].
        bits: nominal width, if any.

    Raises:
        ValueError: a scale of another shape, or a tensor beyond the limits.
    """
    along = shape[axis] if 0 <= axis < len(shape) else 1
    if not 0 <= axis < max(1, len(shape)) or scale.ndim != 1 or scale.size not in (1, along):
        raise ValueError(f"scale {scale.shape} along axis {axis} of {shape}; allowed [1] or [channels]")
    if bits is not None and not 0 <= bits <= 255:
        raise ValueError(f"bits = {bits}; allowed 0 to 255")
    if len(shape) > MAX_DIMENSIONS or math.prod(shape) > MAX_ELEMENTS:
        raise ValueError(f"tensor {shape}; at most {MAX_DIMENSIONS} axes and {MAX_ELEMENTS} elements")
    short = _short(scale)
    raw, coded = (False, short) if short is not None else encode_floats(scale)
    first |= (HAS_AXIS if axis else 0) | (HAS_BITS if bits is not None else 0)
    first |= (RAW_SCALE if raw else 0) | (SHORT_SCALE if short is not None else 0)
    head = bytes([first]) + shape_bytes(shape)
    head += bytes([axis]) if axis else b""
    head += bytes([bits]) if bits is not None else b""
    return head + (coded if short is not None else put(scale.size) + sized(coded))


def _short(scale: Floats) -> bytes | None:
    """One positive scale of at most 8 significant bits as exponent and byte; None for all others."""
    mantissa, exponent = math.frexp(float(scale[0])) if scale.size == 1 else (0.0, 0)
    digits = mantissa * 256
    if not 128 <= digits <= 255 or digits % 1 or exponent - 8 < -MAX_EXPONENT:
        return None
    return put_signed(exponent - 8) + bytes([int(digits)])


def _take_short(reader: Reader) -> bytes:
    return put_signed(reader.signed(MAX_EXPONENT)) + reader.take(1)


def encode_floats(values: Floats) -> tuple[bool, bytes]:
    """(True, as float32) or, where those hold ``values`` exactly, (False, as float16 with a shared exponent)."""
    halves = encode_float16(values)
    return (True, encode_float32(values)) if halves is None else (False, halves)


def decode_floats(data: bytes, shape: tuple[int, ...], *, raw: bool) -> Floats:
    """The reverse of :func:`encode_floats`."""
    return decode_float32(data, shape) if raw else decode_float16(data, shape)


def floats(tensor: torch.Tensor) -> Floats:
    """``tensor`` as a contiguous array; :class:`ValueError` where it is not float32."""
    array: NDArray[Any] = tensor.detach().cpu().numpy()
    if array.dtype != np.float32:
        raise ValueError(f"float32 expected, got {array.dtype}")
    return np.ascontiguousarray(array).reshape(array.shape)


def integers(tensor: torch.Tensor) -> Ints:
    """``tensor`` as an int32 array; :class:`ValueError` where it is not integers within int16."""
    array: NDArray[Any] = tensor.detach().cpu().numpy()
    if array.dtype.kind not in "iu" or (array.size and not -32768 <= int(array.min()) <= int(array.max()) <= 32767):
        raise ValueError(f"integers within int16 expected, got {array.dtype} or values beyond")
    return array.astype(np.int32)


def along_axis(values: Ints, dimensions: int, axis: int) -> Ints:
    """``values`` shaped to broadcast along ``axis``."""
    return values.reshape([-1 if d == axis else 1 for d in range(dimensions)])


def int16(values: Ints) -> NDArray[np.int16]:
    """``values`` as a contiguous int16 array; :class:`CorruptFileError` where they do not fit."""
    if values.size and not -32768 <= int(values.min()) <= int(values.max()) <= 32767:
        raise CorruptFileError("tensor record: symbols outside int16; the data is damaged, get it again")
    return np.ascontiguousarray(values, np.int16).reshape(values.shape)


def sized(data: bytes) -> bytes:
    """``data`` behind its length."""
    return put(len(data)) + data


def shape_bytes(shape: tuple[int, ...]) -> bytes:
    """Number of axes and their sizes."""
    return bytes([len(shape)]) + b"".join(map(put, shape))


def read_shape(reader: Reader, record_bytes: int) -> tuple[int, ...]:
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
