"""Unsigned integers of a fixed width, packed without gaps, most significant bit first."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

_AT_ONCE = 1 << 20
"""Values that are taken apart together: a few arrays as large as a layer of a hundred million weights fill a machine.
A multiple of 8, so that parts end at whole bytes."""


def histogram(values: NDArray[np.int32], least: int, most: int) -> NDArray[np.int64]:
    """How often each of ``least`` to ``most`` is among ``values`` (flat, from ``least``); larger ones count as it."""
    counts = np.zeros(most - least + 1, np.int64)
    for start in range(0, values.size, _AT_ONCE):
        part = np.minimum(values[start : start + _AT_ONCE], np.int32(most)) - np.int32(least)
        counts += np.bincount(part, minlength=len(counts))
    return counts


def packed_bytes(count: int, width: int) -> int:
    """Bytes that ``count`` integers of ``width`` bits take."""
    return (count * width + 7) // 8


def pack(values: NDArray[np.int32], width: int) -> bytes:
    """``values`` (flat, 0 ≤ value < 2**width, width at most 31) as bytes."""
    if width == 8:
        return values.astype(np.uint8).tobytes()
    if width == 0 or values.size == 0:
        return b""
    parts = (values[start : start + _AT_ONCE] for start in range(0, values.size, _AT_ONCE))
    return b"".join(np.packbits(bit_planes(part, width)).tobytes() for part in parts)


def bit_planes(values: NDArray[np.int32], width: int) -> NDArray[np.uint8]:
    """The low ``width`` bits of each of ``values`` (flat), highest first, one byte a bit."""
    planes = np.empty((values.size, width), np.uint8)
    for bit in range(width):  # bit by bit: all at once would be four bytes a bit, twice over
        planes[:, width - 1 - bit] = (values >> bit) & 1
    return planes.reshape(-1)


def unpack(data: bytes, count: int, width: int) -> NDArray[np.int32]:
    """The reverse of :func:`pack`; ``data`` has :func:`packed_bytes` bytes."""
    if width == 8:
        return np.frombuffer(data, np.uint8, count).astype(np.int32)
    values = np.zeros(count, np.int32)
    if width == 0 or count == 0:
        return values
    planes = np.unpackbits(np.frombuffer(data, np.uint8), count=count * width).reshape(count, width)
    for bit in range(width):
        values |= planes[:, width - 1 - bit].astype(np.int32) << bit
    return values
