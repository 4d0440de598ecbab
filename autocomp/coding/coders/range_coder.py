"""Adaptive range coder with contexts, on ``constriction``'s RangeEncoder and RangeDecoder (Bamler 2022).

Payload: a small header, then the low bits of wide symbols as they are, the excess of rare large ones,
and the range coder's words. docs/format.md gives every byte.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from autocomp.coding.bits import histogram, pack, packed_bytes, unpack
from autocomp.coding.contexts import Contexts, Counts, Ints, Layout
from autocomp.coding.varint import Reader, put, put_signed
from autocomp.errors import CorruptFileError

CODE = 2

MAX_LIMIT = 40  # largest magnitude with a count of its own
MAX_SHIFT = 16
MAX_EXCESS_BITS = 18
SYMBOL_LIMIT = 1 << 17
_COARSE_MEAN = 10  # symbols are shifted until their typical magnitude is below this: finer bits are uniform
_SHORT_RUN = 24  # symbols of one context in a block
_RARE = 400  # one symbol in so many may be larger than the alphabet
_USEFUL_CORRELATION = 0.04  # below this, predicting from neighbouring taps costs more than it saves


@dataclass(frozen=True)
class _Header:
    """What precedes the coded words.

    Attributes:
        centre: subtracted from every symbol first.
        shift: low bits stored as they are.
        limit: largest magnitude of the alphabet.
        excess_bits: width of the excess over ``limit``; 0 where no symbol reaches beyond it.
        mean: mean magnitude of the clipped symbols, in 1/64.
        predict: neighbouring taps are used.
    """

    centre: int
    shift: int
    limit: int
    excess_bits: int
    mean: int
    predict: bool

    def to_bytes(self) -> bytes:
        flags = self.shift | (self.predict << 5) | ((self.excess_bits > 0) << 6) | ((self.centre != 0) << 7)
        text = bytes([flags, self.limit]) + put(self.mean)
        text += put_signed(self.centre) if self.centre else b""
        return text + (bytes([self.excess_bits]) if self.excess_bits else b"")

    @staticmethod
    def read(data: Reader) -> _Header:
        flags, limit, mean = data.byte(), data.byte(), data.varint(64 * MAX_LIMIT)
        shift, predict = flags & 31, bool(flags & 32)
        centre = data.signed(SYMBOL_LIMIT) if flags & 128 else 0
        excess_bits = data.byte() if flags & 64 else 0
        if not (1 <= limit <= MAX_LIMIT and shift <= MAX_SHIFT and excess_bits <= MAX_EXCESS_BITS and mean >= 1):
            raise CorruptFileError(
                f"{data.what}: range coder header with alphabet {limit}, shift {shift}, excess {excess_bits}, "
                f"mean {mean}; allowed 1 to {MAX_LIMIT}, 0 to {MAX_SHIFT}, 0 to {MAX_EXCESS_BITS}, 1 and up; "
                "the data is damaged, get it again"
            )
        return _Header(centre, shift, limit, excess_bits, mean, predict)


def size(symbols: Ints) -> int | None:
    """Not known before coding."""
    return None


def encode(symbols: Ints) -> bytes:
    """Code an int32 array [out, in, *kernel] or of any other shape, values within ±2**17."""
    layout = Layout.of(symbols.shape)
    flat = symbols.reshape(-1)
    if not flat.size:
        return b""
    centre = _centre(flat)
    coarse = flat - np.int32(centre) if centre else flat
    shift, low = _shift(np.abs(coarse)), b""
    if shift:
        coarse = coarse + np.int32((1 << shift) >> 1)
        low = pack(coarse & np.int32((1 << shift) - 1), shift)
        coarse >>= shift
    magnitudes = np.abs(coarse)
    limit = _limit(magnitudes)
    excess = magnitudes[magnitudes >= limit] - np.int32(limit)
    excess_bits = int(excess.max(initial=0)).bit_length()
    del magnitudes  # as large as the layer
    planes = layout.split(np.clip(coarse, -limit, limit).astype(np.int8))
    del coarse
    mean = max(1, 64 * int(np.abs(planes).sum(dtype=np.int64)) // flat.size)
    header = _Header(centre, shift, limit, excess_bits, mean, _predictable(layout, planes))
    extra = pack(excess, excess_bits)
    writer = _Writer()
    _code(planes, layout, header, writer)
    count = put(len(excess)) if excess_bits else b""
    return header.to_bytes() + count + low + extra + writer.words()


def decode(data: bytes, shape: tuple[int, ...]) -> Ints:
    """The reverse of :func:`encode`."""
    layout, count = Layout.of(shape), math.prod(shape)
    if count == 0:
        return np.zeros(shape, np.int32)
    reader = Reader(data, "range coder")
    header = _Header.read(reader)
    extras = reader.varint(count) if header.excess_bits else 0
    low = unpack(reader.take(packed_bytes(count, header.shift)), count, header.shift)
    extra = unpack(reader.take(packed_bytes(extras, header.excess_bits)), extras, header.excess_bits)
    tail = reader.rest()
    if len(tail) % 4:
        raise CorruptFileError(f"range coder: {len(tail)} bytes of words, not a multiple of 4; get the file again")
    source = _Source(tail)
    planes = np.zeros((layout.taps, layout.rows, layout.columns), np.int8)
    try:
        _code(planes, layout, header, source)
    except (AssertionError, ValueError) as error:  # how constriction reports impossible words
        raise CorruptFileError(f"range coder: the words decode to nothing ({error}); get the file again") from None
    if not source.coder.maybe_exhausted():
        raise CorruptFileError("range coder: words are left over; the data is damaged, get it again")
    coarse = layout.join(planes).astype(np.int32)
    if header.excess_bits:
        beyond = np.flatnonzero(np.abs(coarse) == header.limit)
        if len(beyond) != extras:
            raise CorruptFileError(f"range coder: {extras} large symbols announced, {len(beyond)} found; get it again")
        coarse[beyond] += np.sign(coarse[beyond]) * extra
    half = np.int32((1 << header.shift) >> 1)
    return ((coarse << header.shift) + low - half + np.int32(header.centre)).reshape(shape)


@dataclass(frozen=True)
class _Block:
    """Symbols that are coded together.

    Attributes:
        order: symbols sorted by context.
        contexts: of the symbols, in row-major order.
        segments: (context, first, end) of the runs in sorted order.
        sign: −1 where a symbol is coded negated; None: nowhere.
        limit: of the alphabet.
    """

    order: NDArray[np.intp]
    contexts: NDArray[np.uint8]
    segments: list[tuple[int, int, int]]
    sign: NDArray[np.int8] | None
    limit: np.int8

    def short_runs(self) -> bool:
        """Whether one call with a table row a symbol is faster than a call a run; the bytes are the same."""
        return len(self.order) < _SHORT_RUN * len(self.segments)


class _Writer:
    """Codes blocks."""

    def __init__(self) -> None:
        import constriction

        self.coder = constriction.stream.queue.RangeEncoder()
        self.family = constriction.stream.model.Categorical(perfect=False)

    def transfer(self, plane: NDArray[np.int8], block: _Block, counts: Counts) -> NDArray[np.uint8]:
        """Write the symbols ``plane``; returns their indices, in row-major order."""
        signed = plane if block.sign is None else plane * block.sign
        indices = (signed + block.limit).view(np.uint8)
        ordered = indices[block.order].astype(np.int32)
        if block.short_runs():
            self.coder.encode(ordered, self.family, counts.probabilities[block.contexts[block.order]])
            return indices
        for context, first, end in block.segments:
            self.coder.encode(ordered[first:end], counts.model(context))
        return indices

    def words(self) -> bytes:
        """What was written."""
        data: bytes = self.coder.get_compressed().astype("<u4").tobytes()
        return data


class _Source:
    """Decodes blocks."""

    def __init__(self, words: bytes) -> None:
        import constriction

        self.coder = constriction.stream.queue.RangeDecoder(np.frombuffer(words, "<u4").astype(np.uint32))
        self.family = constriction.stream.model.Categorical(perfect=False)

    def transfer(self, plane: NDArray[np.int8], block: _Block, counts: Counts) -> NDArray[np.uint8]:
        """Fill ``plane`` with symbols; returns their indices, in row-major order."""
        ordered: Ints
        if block.short_runs():
            ordered = self.coder.decode(self.family, counts.probabilities[block.contexts[block.order]])
        else:
            ordered = np.concatenate([self.coder.decode(counts.model(c), end - at) for c, at, end in block.segments])
        indices = np.empty(len(ordered), np.uint8)
        indices[block.order] = ordered.astype(np.uint8)
        np.subtract(indices.view(np.int8), block.limit, out=plane)
        if block.sign is not None:
            plane *= block.sign
        return indices


def _code(planes: NDArray[np.int8], layout: Layout, header: _Header, coder: _Writer | _Source) -> None:
    """Walk all blocks in coding order; ``planes`` [taps, rows, columns] is read by a writer and filled by a source."""
    contexts = Contexts(layout, header.limit, header.mean, predict=header.predict)
    counts = Counts(header.limit, header.mean, predict=header.predict)
    for start, end in layout.groups():
        contexts.begin(end - start)
        for tap in range(layout.taps):
            context, sign = contexts.predict(tap)
            ends = np.bincount(context, minlength=counts.contexts).cumsum().tolist()
            runs = enumerate(zip([0, *ends], ends, strict=False))
            block = _Block(
                order=np.argsort(context, kind="stable"),  # uint8: a radix sort
                contexts=context,
                segments=[(c, first, last) for c, (first, last) in runs if last > first],
                sign=sign,
                limit=np.int8(header.limit),
            )
            plane = planes[tap, start:end]
            counts.learn(context, coder.transfer(plane.reshape(-1), block, counts))
            contexts.learn(tap, plane)


def _centre(symbols: Ints) -> int:
    """Their median where they do not lie around zero. (The median: a few large symbols do not move it.)"""
    if abs(int(symbols.sum(dtype=np.int64))) < symbols.size:
        return 0
    median = int(np.partition(symbols, symbols.size // 2)[symbols.size // 2])
    return median if abs(median) > 1 else 0


def _shift(magnitudes: Ints) -> int:
    """Low bits to store as they are."""
    if int(magnitudes.sum(dtype=np.int64)) <= _COARSE_MEAN * magnitudes.size:
        return 0
    median = int(np.partition(magnitudes, magnitudes.size // 2)[magnitudes.size // 2])
    return next(s for s in range(MAX_SHIFT + 1) if median >> s <= _COARSE_MEAN or s == MAX_SHIFT)


def _limit(magnitudes: Ints) -> int:
    """The alphabet: all magnitudes where they are few, else all but the rare large ones."""
    counts = histogram(magnitudes, 0, MAX_LIMIT)
    top = max(1, int(magnitudes.max()))
    if top <= 12:
        return top
    beyond = magnitudes.size - counts.cumsum()  # how many are larger than each magnitude
    return max(8, min(top, MAX_LIMIT, int(np.argmax(beyond * _RARE <= magnitudes.size)) or MAX_LIMIT))


def _predictable(layout: Layout, planes: NDArray[np.int8]) -> bool:
    """Whether neighbouring taps tell anything about a tap (encoder's choice; stored)."""
    if not layout.kernel or layout.taps == 1:
        return False
    lines = planes.astype(np.int16).reshape(-1, layout.width, layout.rows * layout.columns)
    pairs = [(lines[:, 1:], lines[:, :-1])] if layout.width > 1 else [(lines[1:], lines[:-1])]
    energy = max(1, int(np.square(planes, dtype=np.int64).sum()))
    product = sum(int((a * b).sum(dtype=np.int64)) for a, b in pairs)
    return product > _USEFUL_CORRELATION * energy
