"""Plain fixed-width integers: the smallest width that holds max − min."""

from __future__ import annotations

import math

import numpy as np

from autocomp.coding.bits import pack, packed_bytes, unpack
from autocomp.coding.contexts import Ints
from autocomp.coding.varint import Reader, put_signed
from autocomp.errors import CorruptFileError

CODE = 0

SYMBOL_LIMIT = 1 << 17
MAX_WIDTH = 18
FREE_SYMBOLS = 1 << 22  # a constant array beyond this is given a bit each: bytes bound what a reader allocates


def _range(symbols: Ints) -> tuple[int, int]:
    """(smallest symbol, width in bits)."""
    least, most = int(symbols.min(initial=SYMBOL_LIMIT)), int(symbols.max(initial=-SYMBOL_LIMIT))
    return least, max((most - least).bit_length(), int(symbols.size > FREE_SYMBOLS))


def size(symbols: Ints) -> int | None:
    """Exact payload bytes."""
    if not symbols.size:
        return 0
    least, width = _range(symbols)
    return len(put_signed(least)) + 1 + packed_bytes(symbols.size, width)


def encode(symbols: Ints) -> bytes:
    """Smallest symbol, width, then the symbols less the smallest."""
    if not symbols.size:
        return b""
    least, width = _range(symbols)
    return put_signed(least) + bytes([width]) + pack(symbols.reshape(-1) - np.int32(least), width)


def decode(data: bytes, shape: tuple[int, ...]) -> Ints:
    """The reverse of :func:`encode`."""
    count = math.prod(shape)
    if count == 0:
        return np.zeros(shape, np.int32)
    reader = Reader(data, "bit packing")
    least, width = reader.signed(SYMBOL_LIMIT), reader.byte()
    if width > MAX_WIDTH:
        raise CorruptFileError(f"bit packing: width {width}; at most {MAX_WIDTH}; the data is damaged, get it again")
    values = unpack(reader.take(packed_bytes(count, width)), count, width)
    reader.end()
    return (values + np.int32(least)).reshape(shape)
