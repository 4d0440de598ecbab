"""Intervals: coverage on synthetic samples, exact values where they are published, and the plain slow reference."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from autocomp.evaluators.statistics import (
    block_length,
    bootstrap_median_ci,
    mcnemar_p,
    median_ci,
    paired_accuracy_difference,
    ratio_ci,
    wilson_interval,
)


def covered(hits: int, of: int, level: float) -> bool:
    """``hits`` is no rarer than 4 sigma below ``level``: false failure below 1e-4."""
    return hits >= of * level - 4 * math.sqrt(of * level * (1 - level))


def test_median_interval_covers() -> None:
    rng = np.random.default_rng(0)
    trials = 200
    hits = 0
    for i in range(trials):
        low, high = bootstrap_median_ci(rng.lognormal(0.0, 0.3, size=80), seed=i, repeats=400)
        hits += low <= 1.0 <= high
    assert covered(hits, trials, 0.95)


def test_blocks_cover_what_single_samples_do_not() -> None:
    """Timings that drift: noise with memory. Single draws believe far too much in their median."""
    rng = np.random.default_rng(1)
    trials, n = 80, 200
    single = blocks = 0
    for i in range(trials):
        noise = rng.standard_normal(n)
        for t in range(1, n):
            noise[t] += 0.6 * noise[t - 1]
        low, high = bootstrap_median_ci(noise, seed=i, repeats=300)
        single += low <= 0 <= high
        low, high = bootstrap_median_ci(noise, seed=i, repeats=300, block=4 * block_length(n))
        blocks += low <= 0 <= high
    assert blocks > single
    assert blocks >= 0.8 * trials


def test_bootstrap_is_the_plain_resampling() -> None:
    samples = np.random.default_rng(2).lognormal(size=40)
    low, high = bootstrap_median_ci(samples, seed=3, repeats=500)
    rng = np.random.default_rng(3)
    starts = rng.integers(0, 40, size=(500, 40, 1))
    medians = [float(np.median([samples[i] for i in row.ravel()])) for row in starts]
    assert (low, high) == tuple(float(q) for q in np.quantile(medians, [0.025, 0.975]))


@given(samples=st.lists(st.floats(1e-6, 10), min_size=1, max_size=60), seed=st.integers(0, 100))
def test_interval_holds_the_range_and_repeats(samples: list[float], seed: int) -> None:
    low, high = median_ci(samples, seed)
    assert min(samples) <= low <= high <= max(samples)
    assert (low, high) == median_ci(samples, seed)


@given(samples=st.lists(st.floats(0.5, 2), min_size=5, max_size=40), factor=st.sampled_from([0.25, 2.0, 1024.0]))
def test_interval_scales_with_its_unit(samples: list[float], factor: float) -> None:
    low, high = median_ci(samples)
    assert median_ci([s * factor for s in samples]) == (low * factor, high * factor)


def machine(n: int, rng: np.random.Generator) -> np.ndarray:
    """Slowness of a shared machine [2n]: drifts, steps and spikes that hit neighbours alike."""
    drift = 1 + 0.4 * np.cumsum(rng.standard_normal(2 * n)) / n
    step = np.where(np.arange(2 * n) > rng.integers(n), 1.5, 1.0)
    spikes = np.where(rng.random(2 * n) < 0.05, 4.0, 1.0)
    return np.abs(drift) * step * spikes * rng.lognormal(0, 0.02, 2 * n)


def test_a_against_a_is_no_difference() -> None:
    rng = np.random.default_rng(4)
    trials = 200
    hits = 0
    for i in range(trials):
        slow = machine(60, rng)
        _, (low, high) = ratio_ci(list(slow[0::2]), list(slow[1::2]), seed=i)
        hits += low <= 1 <= high
    assert covered(hits, trials, 0.93)  # blocks of 4 in 60 pairs: two points below nominal


def test_ratio_is_steadier_than_medians() -> None:
    rng = np.random.default_rng(5)
    by_ratio, by_medians = [], []
    for _ in range(60):
        slow = machine(60, rng)
        a, b = 0.7 * slow[0::2], slow[1::2]
        by_ratio.append(ratio_ci(list(a), list(b))[0])
        by_medians.append(float(np.median(a)))
    assert np.std(np.log(by_ratio)) < 0.2 * np.std(np.log(by_medians))
    assert np.median(by_ratio) == pytest.approx(0.7, rel=0.01)


@pytest.mark.parametrize(
    ("successes", "n", "low", "high"),
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_wilson_matches_newcombe_1998(successes: int, n: int, low: float, high: float) -> None:
    """Newcombe 1998, "Two-sided confidence intervals for the single proportion", table I, method 3."""
    assert wilson_interval(successes, n) == (pytest.approx(low, abs=5e-5), pytest.approx(high, abs=5e-5))


@given(n=st.integers(1, 5000), data=st.data())
def test_wilson_holds_the_proportion(n: int, data: st.DataObject) -> None:
    k = data.draw(st.integers(0, n))
    low, high = wilson_interval(k, n)
    assert 0 <= low <= k / n <= high <= 1
    mirrored = wilson_interval(n - k, n)
    assert (1 - high, 1 - low) == (pytest.approx(mirrored[0], abs=1e-12), pytest.approx(mirrored[1], abs=1e-12))


def test_accuracy_difference_is_paired() -> None:
    rng = np.random.default_rng(6)
    reference = rng.random(1000) < 0.9
    correct = reference.copy()
    correct[:20] = ~correct[:20]
    difference, low, high = paired_accuracy_difference(correct, reference)
    assert difference == pytest.approx(correct.mean() - reference.mean(), abs=1e-12)
    assert low < difference < high
    assert high - low < 0.03  # unpaired intervals of two accuracies near 0.9 would be 0.05 wide
    assert paired_accuracy_difference(reference, reference) == (0.0, 0.0, 0.0)


def test_mcnemar_exact() -> None:
    reference = np.zeros(10, bool)
    correct = np.array([True] * 6 + [False] * 4)
    assert mcnemar_p(correct, reference) == pytest.approx(2 / 2**6)
    assert mcnemar_p(reference, reference) == 1.0
    many = np.arange(6000) % 2 == 0
    assert mcnemar_p(many, ~many) == 1.0
    assert mcnemar_p(np.ones(5000, bool), np.zeros(5000, bool)) == 0.0


@pytest.mark.parametrize(
    "call",
    [
        lambda: median_ci([]),
        lambda: median_ci([1.0, math.nan]),
        lambda: ratio_ci([1.0], [1.0, 2.0]),
        lambda: ratio_ci([1.0], [0.0]),
        lambda: wilson_interval(3, 2),
        lambda: wilson_interval(0, 0),
        lambda: paired_accuracy_difference([True], [True, False]),
        lambda: mcnemar_p([True], []),
    ],
)
def test_nonsense_is_refused(call: object) -> None:
    with pytest.raises(ValueError, match=r"samples|must|needs|beside"):
        call()  # type: ignore[operator]
