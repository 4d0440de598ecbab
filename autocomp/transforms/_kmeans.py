"""Weighted k-means: of numbers, exactly sorted; of short vectors, in matrix products of bounded memory."""

from __future__ import annotations

import torch
from torch import Tensor

_CHUNK_VALUES = 1 << 22  # distances at a time (16 MiB)
_NUMBERS = 1 << 22  # numbers that k-means looks at: more are sampled, a codebook of 256 has 16,384 for each entry
_VECTORS = 1 << 18  # vectors likewise, and
_VECTORS_EACH = 256  # at least so many for each entry (FAISS's own limit; Johnson et al. 2017)


def lloyd_numbers(values: Tensor, weights: Tensor, centres: Tensor, *, iterations: int = 200) -> Tensor:
    """k-means (Lloyd 1982) of numbers from given centres, to convergence.

    Numbers are sorted once; a step is then k searches in sums up to each of them. Of very many a random part stands
    for all.

    Args:
        values: [n].
        weights: [n], of each squared error.
        centres: [k], where to begin; a centre that nothing is nearest to moves to the number that costs most.
        iterations: at most so many.

    Returns:
        float32 [k], ascending.
    """
    if len(values) > _NUMBERS:
        chosen = torch.randint(len(values), (_NUMBERS,), generator=torch.Generator().manual_seed(0))
        values, weights = values[chosen], weights[chosen]
    ordered, order = values.double().sort()
    share = weights.double()[order]
    zero = torch.zeros(1, dtype=torch.float64)
    mass = torch.cat([zero, share.cumsum(0)])
    moment = torch.cat([zero, (share * ordered).cumsum(0)])
    least = max(1e-12 * float(mass[-1]), 1e-300)  # below is what subtracting sums leaves of nothing
    found = centres.double().sort().values
    for _ in range(iterations):
        edges = torch.searchsorted(ordered, (found[1:] + found[:-1]) / 2)
        edges = torch.cat([edges.new_zeros(1), edges, edges.new_full((1,), len(ordered))])
        inside = mass[edges].diff()
        sums = moment[edges].diff()
        empty = (inside <= least).nonzero()[:, 0]
        if len(empty):
            owner = torch.arange(len(found)).repeat_interleave(edges.diff())
            costs, furthest = (share * (ordered - found[owner]).square()).topk(min(len(empty), len(ordered)))
            furthest = furthest[costs > 0]
            empty = empty[: len(furthest)]
            # they leave their old centres, so that those do not drag after them
            inside.index_add_(0, owner[furthest], -share[furthest])
            sums.index_add_(0, owner[furthest], -share[furthest] * ordered[furthest])
            inside[empty], sums[empty] = share[furthest], share[furthest] * ordered[furthest]
        following = torch.where(inside > least, sums / inside.clamp_min(least), found)
        following = following.sort().values
        if torch.equal(following, found):
            break
        found = following
    return found.float()


def first_centres(values: Tensor, count: int, initial: str, generator: torch.Generator) -> Tensor:
    """Where k-means begins (Han et al. 2016, section 3.2), [count].

    Args:
        values: [n], not empty.
        count: number of centres.
        initial: "linear": evenly between the extremes; "density": at even steps of the cumulative
            distribution; "random": some of the values.
        generator: of the random choice.
    """
    if initial == "linear":
        low, high = torch.aminmax(values)
        return torch.lerp(low, high, torch.linspace(0, 1, count) if count > 1 else torch.full((1,), 0.5))
    if initial == "density":
        at = ((torch.arange(count) + 0.5) / count * len(values)).long()
        return values.sort().values[at]
    chosen = torch.randperm(len(values), generator=generator)[:count]
    return values[chosen.repeat(-(-count // len(chosen)))[:count]]


def nearest_vectors(points: Tensor, weights: Tensor, centres: Tensor) -> tuple[Tensor, Tensor]:
    """(index int64 [n], weighted squared distance [n]) of the nearest of ``centres`` [k, d] to ``points`` [n, d].

    ``weights`` [n, d] multiplies each squared difference.
    """
    index = torch.empty(len(points), dtype=torch.long)
    distance = torch.empty(len(points))
    squares = centres.square().t()
    step = max(1, _CHUNK_VALUES // len(centres))
    for at in range(0, len(points), step):
        part, share = points[at : at + step], weights[at : at + step]
        found = (share @ squares - 2 * (share * part) @ centres.t()).min(dim=1)
        index[at : at + step] = found.indices
        distance[at : at + step] = (found.values + (share * part.square()).sum(dim=1)).clamp_min(0)
    return index, distance


def kmeans_vectors(
    points: Tensor, weights: Tensor, count: int, generator: torch.Generator, *, iterations: int = 40
) -> Tensor:
    """Centres [count, d] of ``points`` [n, d] under elementwise ``weights`` [n, d], from a random choice of points.

    A centre that nothing is nearest to moves to the point that is furthest from its own (n ≥ count). Of very many
    points a random part stands for all.
    """
    enough = max(_VECTORS, _VECTORS_EACH * count)
    if len(points) > enough:
        chosen = torch.randint(len(points), (enough,), generator=generator)
        points, weights = points[chosen], weights[chosen]
    centres = points[torch.randperm(len(points), generator=generator)[:count]].clone()
    last = float("inf")
    for _ in range(iterations):
        index, distance = nearest_vectors(points, weights, centres)
        mass = torch.zeros_like(centres).index_add_(0, index, weights)
        moment = torch.zeros_like(centres).index_add_(0, index, weights * points)
        used = torch.bincount(index, minlength=count) > 0
        centres = torch.where(used[:, None], moment / mass.clamp_min(1e-30), centres)
        empty = int((~used).sum())
        if empty:
            centres[~used] = points[distance.topk(empty).indices]
        total = float(distance.double().sum())
        if not empty and total >= last * (1 - 1e-6):
            break
        last = total
    return centres
