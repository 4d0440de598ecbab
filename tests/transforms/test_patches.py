"""A layer's output is its weight rows times its input rows."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from autocomp.errors import UnsupportedError
from autocomp.transforms.patches import (
    Patches,
    channel_axis,
    has_patches,
    output_rows,
    weight_from_rows,
    weight_rows,
)

LAYERS = [
    (nn.Conv1d(4, 6, 3, padding=1), (4, 9)),
    (nn.Conv1d(4, 6, 4, padding="same", padding_mode="circular"), (4, 9)),
    (nn.Conv2d(4, 6, 3, stride=2, padding=1, bias=False), (4, 7, 8)),
    (nn.Conv2d(4, 6, (3, 2), stride=(1, 3), padding=(2, 0), dilation=(2, 1), groups=2), (4, 9, 8)),
    (nn.Conv2d(6, 6, 3, padding="same", groups=6), (6, 5, 5)),
    (nn.Conv2d(4, 6, 3, padding=1, padding_mode="reflect"), (4, 5, 5)),
    (nn.Conv2d(4, 6, 3, padding="valid"), (4, 5, 5)),
    (nn.Conv3d(2, 4, 2, stride=2), (2, 4, 4, 6)),
    (nn.ConvTranspose1d(4, 6, 3, stride=2, padding=1, output_padding=1), (4, 5)),
    (nn.ConvTranspose2d(4, 6, 3, stride=2, padding=1, groups=2, dilation=2), (4, 4, 5)),
    (nn.ConvTranspose2d(4, 6, 2, stride=3, padding=(0, 1)), (4, 4, 5)),
    (nn.Linear(5, 3), (5,)),
    (nn.Linear(5, 3), (7, 5)),
]


@pytest.mark.parametrize(("layer", "shape"), LAYERS, ids=lambda v: str(v))
def test_rows_times_inputs_is_the_output(layer: nn.Module, shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    inputs = torch.randn(3, *shape)
    axis, groups = channel_axis(layer), int(getattr(layer, "groups", 1))
    rows = weight_rows(layer.weight.detach(), groups, axis)
    assert torch.equal(weight_from_rows(rows, layer.weight.shape, axis), layer.weight)
    patches = Patches.of(layer, inputs.shape)
    with torch.no_grad():
        outputs = layer(inputs)
    expected = output_rows(layer, outputs)
    if layer.bias is not None:
        expected = expected - layer.bias.detach().reshape(groups, -1, 1)
    assert torch.allclose(rows[:, :, patches.columns] @ patches.rows(inputs), expected, atol=1e-5)
    some = torch.arange(0, patches.positions, 2)
    got = rows[:, :, patches.columns] @ patches.rows(inputs, some)
    bias = 0 if layer.bias is None else layer.bias.detach().reshape(groups, -1, 1)
    assert torch.allclose(got, output_rows(layer, outputs, some) - bias, atol=1e-5)


def test_columns_that_only_meet_padding_are_left_out() -> None:
    layer = nn.Conv2d(2, 3, 3, padding=1)
    patches = Patches.of(layer, (5, 2, 1, 1))
    assert patches.columns.tolist() == [4, 13]  # the centre of each 3x3 kernel
    assert patches.width == 18


def test_embedding_has_no_patches() -> None:
    layer = nn.Embedding(4, 3)
    assert not has_patches(layer)
    with pytest.raises(UnsupportedError, match="Embedding"):
        Patches.of(layer, (2, 5))
