"""Intervals for what is measured: medians, ratios and proportions.

Everything is computed from raw samples with a seed, so a report can be rebuilt to the digit.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

REPEATS = 2000
_Z95 = 1.959963984540054


def block_length(count: int) -> int:
    """Length of bootstrap blocks for ``count`` samples in order of time: n^(1/3), at least 1.

    Neighbouring timings share the machine's state, so single samples are not independent; drawing
    blocks keeps that dependence (order of growth: Hall, Horowitz and Jing 1995).
    """
    return max(1, round(math.cbrt(count)))


def _resampled_medians(values: NDArray[np.float64], *, seed: int, repeats: int, block: int) -> NDArray[np.float64]:
    """Medians of ``repeats`` circular block resamples [repeats] of values [n].

    Source: Politis and Romano 1992, circular block bootstrap; block 1 is Efron's bootstrap (1979).
    """
    n = len(values)
    rng = np.random.default_rng(seed)
    starts = rng.integers(0, n, size=(repeats, -(-n // block), 1))
    index = (starts + np.arange(block)).reshape(repeats, -1)[:, :n] % n
    return np.asarray(np.median(values[index], axis=1), dtype=np.float64)


def _samples(values: ArrayLike, what: str) -> NDArray[np.float64]:
    array = np.asarray(values, dtype=np.float64).ravel()
    if array.size == 0:
        raise ValueError(f"{what}: no samples")
    if not np.isfinite(array).all():
        raise ValueError(f"{what}: samples must be finite")
    return array


def bootstrap_median_ci(
    samples: ArrayLike, seed: int = 0, *, level: float = 0.95, repeats: int = REPEATS, block: int = 1
) -> tuple[float, float]:
    """Percentile bootstrap interval of the median.

    Args:
        samples: [n], any unit; the interval is in the same one.
        seed: of the resampling; the same seed gives the same interval.
        level: coverage aimed at.
        repeats: resamples drawn.
        block: block length; 1 for independent samples, :func:`block_length` for timings.
    """
    values = _samples(samples, "bootstrap_median_ci")
    medians = _resampled_medians(values, seed=seed, repeats=repeats, block=min(block, len(values)))
    low, high = np.quantile(medians, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def median_ci(samples: ArrayLike, seed: int = 0, *, level: float = 0.95) -> tuple[float, float]:
    """Interval of the median of timings taken one after another: blocks of :func:`block_length`.

    Args:
        samples: [n] in order of time, any unit; the interval is in the same one.
        seed: of the resampling.
        level: coverage aimed at.
    """
    return bootstrap_median_ci(samples, seed, level=level, block=block_length(np.size(samples)))


def ratio_ci(
    samples: Sequence[float], reference: Sequence[float], seed: int = 0, *, level: float = 0.95
) -> tuple[float, tuple[float, float]]:
    """Median of the ratios of neighbours in time, and its interval: (ratio, (low, high)).

    What slows the machine down slows both samples of a pair, so ratios are steadier than medians.

    Args:
        samples, reference: [n] each; pair i, measured one right after the other, is (samples[i], reference[i]).
        seed: of the resampling (circular blocks of pairs).
        level: coverage aimed at.
    """
    ratios = _ratios(samples, reference)
    return float(np.median(ratios)), median_ci(ratios, seed, level=level)


def median_ratio(samples: Sequence[float], reference: Sequence[float]) -> float:
    """The ratio of :func:`ratio_ci` without its interval, whose resampling is what takes time."""
    return float(np.median(_ratios(samples, reference)))


def _ratios(samples: Sequence[float], reference: Sequence[float]) -> NDArray[np.float64]:
    a, b = _samples(samples, "ratio_ci"), _samples(reference, "ratio_ci")
    if len(a) != len(b):
        raise ValueError(f"ratio_ci: {len(a)} samples beside {len(b)} of the reference; they must pair up")
    if (b <= 0).any():
        raise ValueError("ratio_ci: reference samples must be above 0")
    ratios: NDArray[np.float64] = a / b
    return ratios


def wilson_interval(successes: int, n: int, *, z: float = _Z95) -> tuple[float, float]:
    """Interval of a proportion, as fractions; inside [0, 1] and sensible at 0 and n of n.

    Source: Wilson 1927, "Probable inference, the law of succession, and statistical inference".
    """
    if n <= 0 or not 0 <= successes <= n:
        raise ValueError(f"wilson_interval: {successes} of {n}; needs 0 <= successes <= n and n > 0")
    p = successes / n
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    low = 0.0 if successes == 0 else max(0.0, centre - half)
    high = 1.0 if successes == n else min(1.0, centre + half)
    return low, high


def paired_accuracy_difference(
    correct: ArrayLike, reference: ArrayLike, seed: int = 0, *, level: float = 0.95, repeats: int = REPEATS
) -> tuple[float, float, float]:
    """Accuracy difference of two networks on the same images, and its interval: (difference, low, high).

    Only images on which the two differ carry information, so a resample of all images is a draw of
    (gained, lost, same) counts from one multinomial: the bootstrap over images, without the images.

    Args:
        correct, reference: [n] booleans, whether each network was right on image i.
        seed: of the resampling.
    """
    a, b = np.asarray(correct, dtype=bool).ravel(), np.asarray(reference, dtype=bool).ravel()
    if a.size == 0 or a.size != b.size:
        raise ValueError(
            f"paired_accuracy_difference: {a.size} beside {b.size} answers; needs as many of both, and some"
        )
    n = a.size
    gained, lost = int((a & ~b).sum()), int((~a & b).sum())
    counts = np.random.default_rng(seed).multinomial(n, [gained / n, lost / n, (n - gained - lost) / n], size=repeats)
    differences = (counts[:, 0] - counts[:, 1]) / n
    low, high = np.quantile(differences, [(1 - level) / 2, (1 + level) / 2])
    return (gained - lost) / n, float(low), float(high)


def mcnemar_p(correct: ArrayLike, reference: ArrayLike) -> float:
    """Two-sided exact p-value that two networks are equally accurate, from the same images.

    Source: McNemar 1947, in its exact (binomial) form.

    Args:
        correct, reference: [n] booleans, whether each network was right on image i.
    """
    a, b = np.asarray(correct, dtype=bool).ravel(), np.asarray(reference, dtype=bool).ravel()
    if a.size != b.size:
        raise ValueError(f"mcnemar_p: {a.size} beside {b.size} answers; needs as many of both")
    gained, lost = int((a & ~b).sum()), int((~a & b).sum())
    n, k = gained + lost, min(gained, lost)
    term = tail = 1  # C(n, i) and their sum, exact in integers
    for i in range(k):
        term = term * (n - i) // (i + 1)
        tail += term
    return min(1.0, float(2 * tail / 2**n))
