"""Canonical Huffman codes of at most 15 bits (Huffman 1952; Schwartz and Kallick 1964), lengths stored as nibbles."""

from __future__ import annotations

import heapq
import math

import numpy as np
from numpy.typing import NDArray

from autocomp.coding.bits import histogram, pack, packed_bytes, unpack
from autocomp.coding.contexts import Ints
from autocomp.coding.varint import Reader, put, put_signed
from autocomp.errors import CorruptFileError

CODE = 1

MAX_LENGTH = 15
MAX_ALPHABET = 4096
SYMBOL_LIMIT = 1 << 17
_PIECE = 1 << 20  # symbols, or bits, handled at once: bounds memory


def code_lengths(counts: NDArray[np.int64]) -> NDArray[np.int32]:
    """Code length of each symbol [alphabet]; 0 where the count is 0, at most ``MAX_LENGTH``."""
    lengths = np.zeros(len(counts), np.int32)
    used = np.flatnonzero(counts)
    if len(used) == 1:
        lengths[used] = 1
        return lengths
    heap = [(int(counts[s]), int(s), [int(s)]) for s in used]
    heapq.heapify(heap)
    while len(heap) > 1:
        first, second = heapq.heappop(heap), heapq.heappop(heap)
        members = first[2] + second[2]
        lengths[members] += 1
        heapq.heappush(heap, (first[0] + second[0], min(first[1], second[1]), members))
    return _shortened(lengths, counts)


def _shortened(lengths: NDArray[np.int32], counts: NDArray[np.int64]) -> NDArray[np.int32]:
    """Cut lengths to the limit and lengthen the rarest shorter codes until Kraft's sum fits again."""
    lengths = np.minimum(lengths, MAX_LENGTH)
    used = np.flatnonzero(lengths)
    excess = int((1 << (MAX_LENGTH - lengths[used])).sum()) - (1 << MAX_LENGTH)
    for symbol in sorted(used.tolist(), key=lambda s: (int(counts[s]), s)):
        while excess > 0 and lengths[symbol] < MAX_LENGTH:
            excess -= 1 << (MAX_LENGTH - int(lengths[symbol]) - 1)
            lengths[symbol] += 1
    return lengths


def _codes(lengths: NDArray[np.int32]) -> NDArray[np.int64]:
    """Canonical codes [alphabet]: counting up in order of (length, symbol)."""
    codes, code, last = np.zeros(len(lengths), np.int64), 0, 0
    for symbol in np.lexsort((np.arange(len(lengths)), lengths)).tolist():
        if lengths[symbol]:
            code <<= int(lengths[symbol]) - last
            last = int(lengths[symbol])
            codes[symbol] = code
            code += 1
    return codes


def _histogram(symbols: Ints) -> tuple[int, NDArray[np.int64]] | None:
    """(smallest symbol, counts from there), or None where the alphabet is empty or too wide."""
    if not symbols.size:
        return None
    least, most = int(symbols.min()), int(symbols.max())
    return None if most - least >= MAX_ALPHABET else (least, histogram(symbols.reshape(-1), least, most))


def _table(least: int, lengths: NDArray[np.int32]) -> bytes:
    return put_signed(least) + put(len(lengths)) + pack(lengths, 4)


def size(symbols: Ints) -> int | None:
    """Exact payload bytes; -1 where the alphabet is too wide."""
    found = _histogram(symbols)
    if found is None:
        return 0 if not symbols.size else -1
    lengths = code_lengths(found[1])
    return len(_table(found[0], lengths)) + (int((lengths * found[1]).sum()) + 7) // 8


def encode(symbols: Ints) -> bytes:
    """Table, then the codes without gaps, first bit highest. At most ``MAX_ALPHABET`` from smallest to largest."""
    found = _histogram(symbols)
    if found is None:
        if symbols.size:
            raise ValueError(f"huffman: symbols span more than {MAX_ALPHABET} values")
        return b""
    least, counts = found
    lengths = code_lengths(counts)
    codes = _codes(lengths)
    flat = symbols.reshape(-1) - np.int32(least)
    pieces = [_bits(flat[at : at + _PIECE], lengths, codes) for at in range(0, len(flat), _PIECE)]
    return _table(least, lengths) + np.packbits(np.concatenate(pieces)).tobytes()


def _bits(flat: Ints, lengths: NDArray[np.int32], codes: NDArray[np.int64]) -> NDArray[np.uint8]:
    """One byte a bit of the codes of ``flat``."""
    size_, code = lengths[flat], codes[flat]
    ends = np.cumsum(size_)
    bits = np.zeros(int(ends[-1]), np.uint8)
    for back in range(int(size_.max())):  # the bit ``back`` places before each code's end
        has = size_ > back
        bits[ends[has] - 1 - back] = (code[has] >> back) & 1
    return bits


def _windows(lengths: NDArray[np.int32]) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """(symbol, code length) for each value of the next ``MAX_LENGTH`` bits; length 0 where no code fits."""
    symbol = np.zeros(1 << MAX_LENGTH, np.int32)
    length = np.zeros(1 << MAX_LENGTH, np.int32)
    for s, code in enumerate(_codes(lengths).tolist()):
        if lengths[s]:
            free = MAX_LENGTH - int(lengths[s])
            symbol[code << free : (code + 1) << free] = s
            length[code << free : (code + 1) << free] = lengths[s]
    return symbol, length


def decode(data: bytes, shape: tuple[int, ...]) -> Ints:
    """The reverse of :func:`encode`: all windows are looked up at once, then the chain of code ends is followed."""
    count = math.prod(shape)
    if count == 0:
        return np.zeros(shape, np.int32)
    reader = Reader(data, "huffman")
    least, alphabet = reader.signed(SYMBOL_LIMIT), reader.varint(MAX_ALPHABET)
    lengths = unpack(reader.take(packed_bytes(alphabet, 4)), alphabet, 4)
    used = lengths[lengths > 0].astype(np.int64)
    if not len(used) or int((1 << (MAX_LENGTH - used)).sum()) > 1 << MAX_LENGTH:
        raise CorruptFileError("huffman: the code lengths are no prefix code; the data is damaged, get it again")
    symbol, length = _windows(lengths)
    body = np.frombuffer(reader.rest() + bytes(4), np.uint8)
    out, done, at, total = np.empty(count, np.int32), 0, 0, 8 * (len(body) - 4)
    while done < count:
        stop = min(total, at + _PIECE)
        window = _window_values(body, at, stop)
        size_ = len(window)
        starts, here = _starts(length[window], count - done)
        if not len(starts) or (done + len(starts) < count and here < size_):
            raise CorruptFileError("huffman: the bits end or fit no code; the data is damaged, get it again")
        out[done : done + len(starts)] = symbol[window[starts]]
        done, at = done + len(starts), at + here
    if (at + 7) // 8 != total // 8:
        raise CorruptFileError("huffman: bytes do not match the number of symbols; the data is damaged, get it again")
    return (out + np.int32(least)).reshape(shape)


def _starts(steps: NDArray[np.int32], count: int) -> tuple[NDArray[np.int64], int]:
    """(where codes begin, where the next one would), at most ``count``; ``steps``: length of a code at each place."""
    if len(steps) and steps[0] and (steps == steps[0]).all():  # binary weights: no chain to follow
        starts = np.arange(0, len(steps), steps[0], dtype=np.int64)[:count]
        return starts, len(starts) * int(steps[0])
    found: list[int] = []
    here, lengths = 0, steps.tolist()
    while here < len(lengths) and lengths[here] and len(found) < count:
        found.append(here)
        here += lengths[here]
    return np.array(found, np.int64), here


def _window_values(body: NDArray[np.uint8], start: int, stop: int) -> NDArray[np.int32]:
    """The ``MAX_LENGTH`` bits from each bit position start … stop − 1; ``body`` is padded by 4 bytes."""
    if start >= stop:
        return np.zeros(0, np.int32)
    position = np.arange(start, stop, dtype=np.int64)
    byte = position >> 3
    wide = (body[byte].astype(np.int32) << 16) | (body[byte + 1].astype(np.int32) << 8) | body[byte + 2]
    values: NDArray[np.int32] = (wide >> (9 - (position & 7)).astype(np.int32)) & np.int32((1 << MAX_LENGTH) - 1)
    return values
