"""Axes that shrink: masks of several groups together, and what a group is afterwards."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from autocomp.core.edits import Resize
from autocomp.graph._cuts import Cut, masks_of, overlap, resized, shrunk, taken


def cut(entries: list[int], axis: int | None = 1) -> Cut:
    name = "in_features" if axis is None else "weight"
    return Cut(path="fc", name=name, axis=axis, entries=torch.tensor(entries), role="input")


def test_two_groups_cut_one_axis():
    module = nn.ModuleDict({"fc": nn.Linear(5, 2)})
    left, right = [cut([0, 1, -1, -1, -1], a) for a in (1, None)], [cut([-1, -1, 0, 1, 1], a) for a in (1, None)]
    masks = masks_of([(left, torch.tensor([False, True])), (right, torch.tensor([True, False]))])
    edits, indices = resized(module, masks)
    assert edits == [Resize(path="fc", attributes={"in_features": 2}, shapes={"weight": (2, 2)})]
    weight = module["fc"].weight.detach()
    assert torch.equal(taken(weight, indices["fc.weight"]), weight[:, [1, 2]])
    assert overlap(left, right) is None
    assert overlap(left, [cut([-1, 0, 1, 1, 1])]) == "fc"


@given(st.lists(st.booleans(), min_size=4, max_size=4).filter(any), st.lists(st.integers(-1, 3), min_size=1))
def test_removing_in_two_steps_leaves_the_same_indices(keep, entries):
    """By ``keep`` and then all but the first entry left, against both at once."""
    mask, whole = torch.tensor(keep), cut(entries)
    small = shrunk(whole, masks_of([([whole], mask)]), mask)
    last = torch.arange(int(mask.sum())) == 0
    both = torch.zeros(4, dtype=torch.bool)
    both[int(mask.nonzero()[0])] = True
    indices = torch.arange(len(entries))
    assert torch.equal(indices[whole.mask(mask)][small.mask(last)], indices[whole.mask(both)])
