"""Pareto dominance on arrays of objectives, all minimised."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray


def dominates(a: ArrayLike, b: ArrayLike) -> bool:
    """Whether ``a`` [d] is nowhere worse than ``b`` [d] and better somewhere."""
    first, second = np.asarray(a), np.asarray(b)
    return bool((first <= second).all() and (first < second).any())


def pareto_mask(points: ArrayLike) -> NDArray[np.bool_]:
    """Mask [n] of the rows of ``points`` [n, d] that no other row dominates; equal rows all stay.

    In lexicographic order a row can only be dominated by one before it, so each row is compared
    with the front found so far: O(n · front · d), vectorised over the front.

    Raises:
        ValueError: a value is NaN (an order with it means nothing), or ``points`` is not 2-D.
    """
    values = np.asarray(points, dtype=np.float64)
    if values.ndim != 2:
        raise ValueError(f"points have shape {values.shape}; expected [n, objectives]")
    if np.isnan(values).any():
        raise ValueError("points contain NaN; only completed rows have objectives")
    unique, inverse = np.unique(values, axis=0, return_inverse=True)
    front = np.empty_like(unique)
    kept = np.zeros(len(unique), dtype=bool)
    size = 0
    for index, row in enumerate(unique):
        if not (front[:size] <= row).all(axis=1).any():
            front[size] = row
            kept[index] = True
            size += 1
    return np.asarray(kept[inverse.reshape(-1)])


def hypervolume(points: ArrayLike, reference: ArrayLike) -> float:
    """Volume between the front of ``points`` [n, d] and ``reference`` [d]; rows beyond it count nothing."""
    from autocomp.search import _optuna_private

    return _optuna_private.hypervolume(np.asarray(points, dtype=np.float64), np.asarray(reference, dtype=np.float64))
