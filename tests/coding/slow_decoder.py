"""A second decoder of range-coded integers and of float16 arrays, written from docs/format.md: plain Python integers,
no numpy, no library.

It judges the fast one: what both read from a file must be the same, so nothing but integer arithmetic decides.
"""

from __future__ import annotations

import math

ONE = 1 << 20
SIGN_THRESHOLDS = (3, 10, 18, 28, 40, 56)
LEVEL_THRESHOLDS = (9, 12, 15, 19, 24)
SIGNS, LEVELS = 7, 6
HALVE_AT = 1 << 16
M64 = (1 << 64) - 1


class Bytes:
    def __init__(self, data):
        self.data, self.at = data, 0

    def byte(self):
        self.at += 1
        return self.data[self.at - 1]

    def varint(self):
        value = shift = 0
        while True:
            byte = self.byte()
            value |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                return value

    def signed(self):
        value = self.varint()
        return -(value + 1) // 2 if value & 1 else value // 2

    def packed(self, count, width):
        size = (count * width + 7) // 8
        text = "".join(f"{b:08b}" for b in self.data[self.at : self.at + size])
        self.at += size
        return [int(text[i * width : (i + 1) * width] or "0", 2) for i in range(count)]


class RangeDecoder:
    """24 bit probabilities, 32 bit words, 64 bit state."""

    def __init__(self, words):
        self.words, self.next = words, 0
        self.lower, self.range = 0, M64
        self.point = (self.word() << 32) | self.word()

    def word(self):
        self.next += 1
        return self.words[self.next - 1] if self.next <= len(self.words) else 0

    def decode(self, frequencies):
        count, cumulative, edges = len(frequencies), 0, []
        for index, frequency in enumerate(frequencies):
            edges.append((cumulative * ((1 << 24) - count) >> 20) + index)
            cumulative += frequency
        assert cumulative == ONE
        edges.append(1 << 24)
        scale = self.range >> 24
        quantile = ((self.point - self.lower) & M64) // scale
        symbol = next(i for i in range(count) if edges[i] <= quantile < edges[i + 1])
        self.lower = (self.lower + scale * edges[symbol]) & M64
        self.range = scale * (edges[symbol + 1] - edges[symbol])
        if self.range < 1 << 32:
            self.lower, self.range = self.lower << 32 & M64, self.range << 32
            self.point = (self.point << 32 & M64) | self.word()
        return symbol


def geometric(limit, mean):
    weights = [1 << 30]
    weight = (1 << 30) * (64 + mean) // (64 + 2 * mean)
    for _ in range(limit):
        weight = weight * mean // (64 + mean)
        weights.append(max(weight, 1))
    both = weights[:0:-1] + weights
    return [w * ONE // sum(both) for w in both]


def frequencies(own, root):
    """own[context][symbol] counts → frequencies that sum to ONE."""
    size, out = len(root), []
    least = max(1, 128 // (size - 1))
    whole = [sum(row[s] for row in own) for s in range(size)]
    common = [(n * ONE + 24 * r) // (sum(whole) + 24) for n, r in zip(whole, root, strict=True)]
    for context in range(SIGNS * LEVELS):
        family = [sum(own[level * SIGNS + context % SIGNS][s] for level in range(LEVELS)) for s in range(size)]
        parent = [(f * ONE + 32 * c) // (sum(family) + 32) for f, c in zip(family, common, strict=True)]
        mine = own[context]
        mixed = [(n * ONE + 48 * p) // (sum(mine) + 48) for n, p in zip(mine, parent, strict=True)]
        mixed = [(m * (ONE - size * least) >> 20) + least for m in mixed]
        mixed[mixed.index(max(mixed))] += ONE - sum(mixed)
        out.append(mixed)
    return out


def layout(shape):
    """(rows, taps, columns, width, kernel)."""
    taps = math.prod(shape[2:])
    if len(shape) < 2 or taps > 1024:
        return math.prod(shape), 1, 1, 1, False
    if taps > 1:
        return shape[0], taps, shape[1], shape[-1], True
    runs = next(k for k in (8, 4, 2, 1) if k == 1 or (shape[1] % k == 0 and shape[1] // k >= 32))
    return shape[0], runs, shape[1] // runs, 1, False


def decode(payload, shape):
    """The symbols, flat, of a range coder payload (without the coder's number)."""
    data, count = Bytes(payload), math.prod(shape)
    flags, limit, mean = data.byte(), data.byte(), data.varint()
    shift, predict = flags & 31, flags & 32
    centre = data.signed() if flags & 128 else 0
    excess_bits = data.byte() if flags & 64 else 0
    excesses = data.varint() if excess_bits else 0
    low = data.packed(count, shift)
    extra = data.packed(excesses, excess_bits)
    words = [int.from_bytes(payload[i : i + 4], "little") for i in range(data.at, len(payload), 4)]
    rows, taps, columns, width, kernel = layout(shape)
    v = blocks(RangeDecoder(words), rows, taps, columns, width, kernel, limit, mean, predict)
    order = [(t, r, c) for r in range(rows) for c in range(columns) for t in range(taps)]
    if not kernel:
        order = [(t, r, c) for r in range(rows) for t in range(taps) for c in range(columns)]
    out, extra = [], iter(extra)
    for at, where in enumerate(order):
        symbol = v[where]
        if excess_bits and abs(symbol) == limit:
            symbol += next(extra) * (1 if symbol > 0 else -1)
        out.append((symbol << shift) + low[at] - ((1 << shift) >> 1) + centre)
    return out


def blocks(coder, rows, taps, columns, width, kernel, limit, mean, predict):
    """(tap, row, column) → clipped symbol."""
    v, size = {}, 2 * limit + 1
    own = [[0] * size for _ in range(SIGNS * LEVELS)]
    root = geometric(limit, mean)
    table, pending, seen = frequencies(own, root), 0, 0
    start = 0
    while start < rows:
        end = min(rows, start + max(-(-64 // columns), min(-(-16384 // columns), start)))
        for tap in range(taps):
            where = {
                (r, c): context(v, start, r, tap, c, taps, columns, width, kernel, mean, predict)
                for r in range(start, end)
                for c in range(columns)
            }
            for (r, c), (k, sign) in sorted(where.items(), key=lambda item: item[1][0]):  # stable: by context
                index = coder.decode(table[k])
                where[r, c] = (k, sign, index)
                v[tap, r, c] = (index - limit) * sign
            for k, _, index in where.values():
                own[k][index] += 1
            pending += len(where)
            if pending * 4 >= seen:
                seen, pending = seen + pending, 0
                own = [[n >> 1 for n in row] if sum(row) >= HALVE_AT else row for row in own]
                table = frequencies(own, root)
        start = end
    return v


def context(v, start, r, tap, c, taps, columns, width, kernel, mean, predict):
    """(context, sign) of one symbol, from what was decoded before its block."""
    done = sum(abs(v[t, r, i]) for t in range(tap) for i in range(columns))
    row = (64 * done + 8 * mean) // (tap * columns + 8)
    if kernel:
        inner = sum(abs(v[t, q, c]) for t in range(taps) for q in range(start))
        inner = (64 * inner + 18 * mean) // (start * taps + 18)
        position = sum(abs(v[tap, q, i]) for q in range(start) for i in range(columns))
        position = (64 * position + 4 * mean) // (start * columns + 4)
        inside = (64 * sum(abs(v[t, r, c]) for t in range(tap)) + 2 * mean) // (tap + 2)
        expected = 4 * inner + 3 * position + 6 * inside + 3 * row
    else:
        column = (64 * sum(abs(v[tap, q, c]) for q in range(start)) + 4 * mean) // (start + 4)
        expected = 8 * column + 8 * row
    level = sum(expected > threshold * mean for threshold in LEVEL_THRESHOLDS)
    if not predict:
        return level * SIGNS, 1
    left = v[tap - 1, r, c] if tap % width else 0
    up = v[tap - width, r, c] if tap >= width else 0
    corner = v[tap - width - 1, r, c] if tap % width and tap >= width else 0
    guess = 4 * left + 4 * up - 3 * corner
    sign = sum(256 * abs(guess) > threshold * max(mean, 19) for threshold in SIGN_THRESHOLDS)
    return level * SIGNS + sign, -1 if guess < 0 else 1


def halves(payload, count):
    """(exponent, binary16 words) of a float16 array that is split, or plain or packed integers."""
    data = Bytes(payload)
    exponent, form = data.signed(), data.byte()
    if form == 2:
        return exponent, [data.byte() | data.byte() << 8 for _ in range(count)]
    if not form & 16:
        assert form == 0 or 3 <= form <= 13, "signs apart: not read here"
        assert data.byte() == 0, "packed bits alone are read here"
        least, width = data.signed(), data.byte()
        return exponent, [(least + v) << max(0, form - 3) for v in data.packed(count, width)]
    signed, rice, dropped, top = form & 32, form >> 6, form & 15, data.byte()
    bits = "".join(f"{b:08b}" for b in payload[data.at :])
    signs, at = (bits[:count], count) if signed else ("0" * count, 0)
    below = []
    for _ in range(count):
        end = bits.index("0", at)
        below.append((end - at) << rice)
        at = end + 1
    low = [int(bits[at + i * rice : at + (i + 1) * rice] or "0", 2) for i in range(count)]
    at, width = at + count * rice, 10 - dropped
    mantissas = [int(bits[at + i * width : at + (i + 1) * width] or "0", 2) << dropped for i in range(count)]
    exponents = [top - b - r for b, r in zip(below, low, strict=True)]
    assert "1" not in bits[at + count * width :]
    return exponent, [int(s) << 15 | e << 10 | m for s, e, m in zip(signs, exponents, mantissas, strict=True)]
