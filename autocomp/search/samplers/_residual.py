"""What the second-order prediction misses, learnt from the rows that were evaluated."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from autocomp.core.candidate import Candidate
from autocomp.core.space import SearchSpace

_FEWEST = 12
_RIDGES = (0.03, 0.1, 0.3, 1.0, 3.0)


def fit_residual(
    space: SearchSpace, candidates: Sequence[Candidate], errors: Sequence[float]
) -> Callable[[Candidate], float] | None:
    """Kernel ridge regression of ``errors`` (true − predicted loss, nats) on the choices made.

    The kernel is the share of parameters that agree, which is ridge regression on their one-hot
    codes. The ridge is the one with the smallest leave-one-out error (closed form: Allen's PRESS,
    1974). None where there are too few rows, or where no ridge beats the mean error.
    """
    if len(candidates) < _FEWEST:
        return None
    names = list(space.parameters())
    rows = np.array([_codes(space, names, c) for c in candidates])
    target = np.asarray(errors, dtype=np.float64)
    mean = float(target.mean())
    centred = target - mean
    kernel = _agreement(rows, rows)
    count = len(rows)
    if np.allclose(centred, 0.0):
        return None
    best_press, weights = float(((centred * count / (count - 1)) ** 2).sum()), None
    for ridge in _RIDGES:
        inverse = np.linalg.inv(kernel + ridge * np.eye(count))
        solution = inverse @ centred
        press = float(((solution / np.diag(inverse)) ** 2).sum())
        if press < best_press:
            best_press, weights = press, solution
    if weights is None:
        return None
    learnt = weights

    def residual(candidate: Candidate) -> float:
        return mean + float(_agreement(_codes(space, names, candidate)[None], rows)[0] @ learnt)

    return residual


def _codes(space: SearchSpace, names: Sequence[str], candidate: Candidate) -> NDArray[np.int64]:
    params = space.encode(candidate)
    return np.array([params[name] for name in names], dtype=np.int64)


def _agreement(a: NDArray[np.int64], b: NDArray[np.int64]) -> NDArray[np.float64]:
    """[n, p] and [m, p] → share of equal entries [n, m]."""
    return np.asarray((a[:, None, :] == b[None, :, :]).mean(axis=2), dtype=np.float64)
