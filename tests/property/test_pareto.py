"""Pareto dominance: its algebra, and the fast front against the definition."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from autocomp.search.front import dominates, hypervolume, pareto_mask

SMALL = st.integers(0, 4).map(float)
"""Few values, so that ties and equal rows are common."""


@st.composite
def point_sets(draw: st.DrawFn, least: int = 0) -> np.ndarray:
    """[n, d] with d from 1 to 4."""
    objectives = draw(st.integers(1, 4))
    return draw(hnp.arrays(np.float64, (draw(st.integers(least, 25)), objectives), elements=SMALL))


@settings(deadline=None)
@given(point_sets(least=3))
def test_dominance_is_a_strict_partial_order(points: np.ndarray) -> None:
    a, b, c = points[:3]
    assert not dominates(a, a)
    assert not (dominates(a, b) and dominates(b, a))
    if dominates(a, b) and dominates(b, c):
        assert dominates(a, c)


@settings(deadline=None)
@given(point_sets())
def test_front_is_what_nothing_dominates(points: np.ndarray) -> None:
    expected = [not any(dominates(other, row) for other in points) for row in points]
    assert pareto_mask(points).tolist() == expected


@settings(deadline=None)
@given(point_sets(least=1), st.randoms(use_true_random=False))
def test_front_does_not_depend_on_order(points: np.ndarray, random: object) -> None:
    order = list(range(len(points)))
    random.shuffle(order)  # type: ignore[attr-defined]
    assert (pareto_mask(points[order]) == pareto_mask(points)[order]).all()


@settings(deadline=None)
@given(point_sets(least=1))
def test_front_of_the_front_is_itself_and_covers_the_rest(points: np.ndarray) -> None:
    front = points[pareto_mask(points)]
    assert pareto_mask(front).all()
    assert all(((front <= row).all(axis=1)).any() for row in points)


@settings(deadline=None)
@given(point_sets(least=1))
def test_front_is_kept_by_rising_maps(points: np.ndarray) -> None:
    assert (pareto_mask(np.exp(points) + 3) == pareto_mask(points)).all()


@settings(deadline=None)
@given(point_sets(least=1), st.integers(1, 4))
def test_hypervolume_is_the_count_of_dominated_cells(points: np.ndarray, side: int) -> None:
    """On integer points the volume is a number of unit cells, which can be counted."""
    objectives = points.shape[1]
    cells = np.stack(np.meshgrid(*[np.arange(side)] * objectives, indexing="ij"), axis=-1).reshape(-1, objectives)
    counted = sum(bool((points <= cell).all(axis=1).any()) for cell in cells)
    assert hypervolume(points, np.full(objectives, float(side))) == pytest.approx(counted)


def test_infinite_values_are_compared_and_nan_is_refused() -> None:
    assert pareto_mask([[1.0, np.inf], [2.0, 1.0], [3.0, np.inf]]).tolist() == [True, True, False]
    with pytest.raises(ValueError, match="NaN"):
        pareto_mask([[1.0, np.nan]])
    with pytest.raises(ValueError, match="shape"):
        pareto_mask([1.0, 2.0])
