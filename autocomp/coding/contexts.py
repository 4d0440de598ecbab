"""The probability model of the range coder: which context a symbol is in, and the counts of each context.

Everything is integer arithmetic on numpy arrays, so that any machine decodes the same symbols. What
the model exploits in weights:

* neighbouring taps of one kernel resemble each other, sign included (prediction
  ``left + up − 3/4 · up-left``, as in lossless image coding);
* magnitudes run together along input channels, kernel positions, output channels and inside a kernel.

Source of the scheme: context modelling of lossless image coders (Wu and Memon 1997, CALIC), counts
adaptive by block; docs/format.md states it completely. Symbols of a block are coded together, with
counts and magnitudes of the blocks before it, so a block is a few vector operations.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int32]
Whole = TypeVar("Whole", bound="np.integer[Any]")

FREQUENCY_BITS = 20
SIGN_THRESHOLDS = (3, 10, 18, 28, 40, 56)  # of the prediction, in sixteenths of the mean magnitude
LEVEL_THRESHOLDS = (9, 12, 15, 19, 24)  # of the expected magnitude, in sixteenths of the mean magnitude
SIGN_LEVELS = len(SIGN_THRESHOLDS) + 1
MAGNITUDE_LEVELS = len(LEVEL_THRESHOLDS) + 1
MAX_TAPS = 1024
LEAST_SYMBOLS = 64  # of a block
BLOCK_SYMBOLS = 16384  # of a block, once so many have been seen
MAX_GUESS = 11  # 4 + 4 + 3: bound of the prediction, in limits


@dataclass(frozen=True)
class Layout:
    """A tensor as the model sees it: rows (output channels), taps (kernel positions), columns (input channels).

    Attributes:
        rows, taps, columns: their product is the number of symbols.
        width: taps in one line of the kernel (its last axis).
        kernel: taps are kernel positions; else they are runs of columns of a matrix.
    """

    rows: int
    taps: int
    columns: int
    width: int
    kernel: bool

    @staticmethod
    def of(shape: tuple[int, ...]) -> Layout:
        """The layout of a tensor [out, in, *kernel]; vectors and scalars are a list of rows."""
        count = math.prod(shape)
        taps = math.prod(shape[2:]) if len(shape) > 2 else 1
        if len(shape) < 2 or taps > MAX_TAPS or count == 0:
            return Layout(count, 1, 1, 1, False)
        if taps > 1:
            return Layout(shape[0], taps, shape[1], shape[-1], True)
        runs = next(k for k in (8, 4, 2, 1) if k == 1 or (shape[1] % k == 0 and shape[1] // k >= 32))
        return Layout(shape[0], runs, shape[1] // runs, 1, False)

    def split(self, symbols: NDArray[Whole]) -> NDArray[Whole]:
        """[taps, rows, columns] from symbols in row-major order of the tensor."""
        if self.kernel:
            return np.ascontiguousarray(symbols.reshape(self.rows, self.columns, self.taps).transpose(2, 0, 1))
        return np.ascontiguousarray(symbols.reshape(self.rows, self.taps, self.columns).transpose(1, 0, 2))

    def join(self, planes: NDArray[Whole]) -> NDArray[Whole]:
        """The reverse of :meth:`split`: symbols in row-major order, flat."""
        return planes.transpose((1, 2, 0) if self.kernel else (1, 0, 2)).reshape(-1)

    def groups(self) -> Iterator[tuple[int, int]]:
        """(first row, end row) of the row groups: each as large as all before it, within limits."""
        least, most = -(-LEAST_SYMBOLS // self.columns), -(-BLOCK_SYMBOLS // self.columns)
        start = 0
        while start < self.rows:
            end = min(self.rows, start + max(least, min(most, start)))
            yield start, end
            start = end


class Contexts:
    """Running magnitudes, and from them the context of each symbol of the next block.

    Args:
        layout: of the tensor.
        limit: largest magnitude of a clipped symbol.
        mean: mean magnitude of the clipped symbols in 1/64, at least 1.
        predict: whether neighbouring taps predict a symbol.
    """

    def __init__(self, layout: Layout, limit: int, mean: int, *, predict: bool) -> None:
        self.layout, self.mean, self.use_neighbours = layout, mean, predict
        self.columns_sum = np.zeros((layout.taps, layout.columns), np.int64)
        self.seen_rows = 0
        guesses = 256 * np.abs(np.arange(-MAX_GUESS * limit, MAX_GUESS * limit + 1))
        self.strengths = np.zeros(guesses.size, np.uint8)
        for threshold in SIGN_THRESHOLDS:
            self.strengths += guesses > threshold * max(mean, 19)
        self.zero = np.int16(MAX_GUESS * limit)  # where a guess of zero is in ``strengths``

    def begin(self, rows: int) -> None:
        """Start a group of ``rows`` rows: what earlier rows say about columns and taps."""
        at, mean, seen = self.layout, self.mean, self.seen_rows
        if at.kernel:
            inner = (64 * self.columns_sum.sum(0) + 18 * mean) // (seen * at.taps + 18)
            taps = (64 * self.columns_sum.sum(1) + 4 * mean) // (seen * at.columns + 4)
            self.expected = (4 * inner[None, :] + 3 * taps[:, None]).astype(np.int32)
        else:
            self.expected = (8 * ((64 * self.columns_sum + 4 * mean) // (seen + 4))).astype(np.int32)
        self.planes = np.zeros((at.taps, rows, at.columns), np.int8)
        self.kernel_sum = np.zeros((rows, at.columns), np.int32)
        self.row_sum = np.zeros((rows, 1), np.int32)

    def predict(self, tap: int) -> tuple[NDArray[np.uint8], NDArray[np.int8] | None]:
        """(context, sign) of the block at tap ``tap``, flat: symbols times sign are what is coded; None: all +1."""
        at, mean = self.layout, self.mean
        row = (64 * self.row_sum + 8 * mean) // (tap * at.columns + 8)
        if at.kernel:
            expected = 64 * self.kernel_sum  # in place from here: the arrays do not fit the caches twice
            expected += 2 * mean
            expected //= tap + 2
            expected *= 6
            expected += self.expected[tap] + 3 * row
        else:
            expected = self.expected[tap] + 8 * row
        level = np.zeros(expected.shape, np.uint8)
        for threshold in LEVEL_THRESHOLDS:
            level += (expected > threshold * mean).view(np.uint8)
        if not self.use_neighbours:
            return level.reshape(-1), None
        guess = self._guess(tap)
        level *= np.uint8(SIGN_LEVELS)
        level += self.strengths[guess + self.zero]
        sign = (guess < 0).view(np.int8)
        sign *= np.int8(-2)
        sign += np.int8(1)
        return level.reshape(-1), sign.reshape(-1)

    def _guess(self, tap: int) -> NDArray[np.int16]:
        """Four times the predicted symbol, from the taps to the left and above."""
        width, line = self.layout.width, tap % self.layout.width
        guess = np.zeros(self.planes.shape[1:], np.int16)
        if line:
            guess += self.planes[tap - 1]
        if tap >= width:
            guess += self.planes[tap - width]
        guess *= np.int16(4)
        if line and tap >= width:
            guess -= self.planes[tap - width - 1] * np.int16(3)
        return guess

    def learn(self, tap: int, symbols: NDArray[np.int8]) -> None:
        """Take in the block just coded: symbols [rows, columns]."""
        size = np.abs(symbols).astype(np.int32)
        self.planes[tap] = symbols
        self.kernel_sum += size
        self.row_sum += size.sum(1, keepdims=True, dtype=np.int32)
        self.columns_sum[tap] += size.sum(0, dtype=np.int32)
        if tap == self.layout.taps - 1:
            self.seen_rows += len(symbols)


class Counts:
    """Adaptive frequencies of the clipped symbols −limit … limit in each context.

    A context leans on the counts of all contexts with its sign level, these on the counts of all contexts,
    and these on a geometric distribution of the tensor's mean magnitude: few symbols already predict well.

    Args:
        limit: largest magnitude in the alphabet.
        mean: mean magnitude in 1/64.
        predict: contexts have sign levels.
    """

    ROOT_WEIGHT = 24
    COMMON_WEIGHT = 32
    PARENT_WEIGHT = 48
    HALVE_AT = 1 << 16

    def __init__(self, limit: int, mean: int, *, predict: bool) -> None:
        self.size = 2 * limit + 1
        self.least = max(1, 128 // (self.size - 1))  # no symbol is surer than 1 − 2**−13: bytes bound the symbols
        self.own = np.zeros((MAGNITUDE_LEVELS, SIGN_LEVELS if predict else 1, self.size), np.int64)
        self.contexts = MAGNITUDE_LEVELS * self.own.shape[1]
        self.root = self._geometric(limit, mean)
        self.pending = self.seen = 0
        self._refresh()

    @staticmethod
    def _geometric(limit: int, mean: int) -> NDArray[np.int64]:
        """Two-sided geometric frequencies with the given mean magnitude, summing to about 2**FREQUENCY_BITS."""
        weights, weight = [1 << 30], (1 << 30) * (64 + mean) // (64 + 2 * mean)
        for _ in range(limit):
            weight = weight * mean // (64 + mean)
            weights.append(max(weight, 1))
        both = np.array(weights[:0:-1] + weights, np.int64)
        return (both << FREQUENCY_BITS) // int(both.sum())

    def _refresh(self) -> None:
        """Turn counts into frequencies: positive integers summing to 2**FREQUENCY_BITS in each context."""
        one = 1 << FREQUENCY_BITS
        family = self.own.sum(0)
        whole = family.sum(0)
        common = ((whole << FREQUENCY_BITS) + self.ROOT_WEIGHT * self.root) // (int(whole.sum()) + self.ROOT_WEIGHT)
        parent = ((family << FREQUENCY_BITS) + self.COMMON_WEIGHT * common) // (
            family.sum(1, keepdims=True) + self.COMMON_WEIGHT
        )
        mixed = ((self.own << FREQUENCY_BITS) + self.PARENT_WEIGHT * parent) // (
            self.own.sum(2, keepdims=True) + self.PARENT_WEIGHT
        )
        mixed = mixed.reshape(self.contexts, self.size)
        mixed = ((mixed * (one - self.size * self.least)) >> FREQUENCY_BITS) + self.least
        rows = np.arange(self.contexts)
        mixed[rows, mixed.argmax(1)] += one - mixed.sum(1)
        self.probabilities = mixed / one
        self.models: dict[int, Any] = {}

    def model(self, context: int) -> Any:
        """The model of one context, made when it is first needed."""
        if context not in self.models:
            import constriction

            self.models[context] = constriction.stream.model.Categorical(self.probabilities[context], perfect=False)
        return self.models[context]

    def learn(self, contexts: NDArray[np.uint8], indices: NDArray[np.uint8]) -> None:
        """Count a block: contexts and symbol indices (0 … 2·limit), flat."""
        joint = contexts.astype(np.int16)
        joint *= np.int16(self.size)
        joint += indices
        self.own += np.bincount(joint, minlength=self.own.size).reshape(self.own.shape)
        self.pending += joint.size
        if self.pending * 4 >= self.seen:
            self.seen += self.pending
            self.pending = 0
            full = self.own.sum(2) >= self.HALVE_AT
            self.own[full] >>= 1
            self._refresh()
