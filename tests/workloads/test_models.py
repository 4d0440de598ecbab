"""The built-in networks: keys, sizes and computation that other people's weights rely on."""

from __future__ import annotations

import pytest
import torch

from autocomp.errors import UnknownNameError
from autocomp.workloads import models

TORCHVISION_RESNET18 = [
    "conv1.weight",
    *[f"bn1.{k}" for k in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")],
    *[
        f"layer{stage}.{block}.{part}"
        for stage in (1, 2, 3, 4)
        for block in (0, 1)
        for part in (
            "conv1.weight",
            *[f"bn1.{k}" for k in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")],
            "conv2.weight",
            *[f"bn2.{k}" for k in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")],
            *(
                [
                    "downsample.0.weight",
                    *[
                        f"downsample.1.{k}"
                        for k in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
                    ],
                ]
                if stage > 1 and block == 0
                else []
            ),
        )
    ],
    "fc.weight",
    "fc.bias",
]


def on_meta(name: str, classes: int) -> torch.nn.Module:
    with torch.device("meta"):
        return models.build(name, classes)


@pytest.mark.parametrize(
    ("name", "classes", "parameters"),
    [("resnet18", 1000, 11_689_512), ("resnet18", 10, 11_181_642), ("resnet20", 10, 269_722)],
)
def test_parameter_counts_are_the_published_ones(name: str, classes: int, parameters: int) -> None:
    assert sum(p.numel() for p in on_meta(name, classes).parameters()) == parameters


def test_resnet18_keys_and_shapes_are_torchvisions() -> None:
    state = on_meta("resnet18", 1000).state_dict()
    assert sorted(state) == sorted(TORCHVISION_RESNET18)
    assert state["conv1.weight"].shape == (64, 3, 7, 7)
    assert state["layer2.0.downsample.0.weight"].shape == (128, 64, 1, 1)
    assert state["layer4.1.conv2.weight"].shape == (512, 512, 3, 3)
    assert state["fc.weight"].shape == (1000, 512)


def test_resnet20_keys() -> None:
    keys = set(on_meta("resnet20", 10).state_dict())
    parts = {"conv1.weight", "linear.weight", "linear.bias"}
    parts |= {f"layer{s}.{b}.{c}.weight" for s in (1, 2, 3) for b in (0, 1, 2) for c in ("conv1", "conv2")}
    assert parts < keys
    assert all(".bn" in key or key.startswith("bn1.") for key in keys - parts)


@pytest.mark.parametrize("name", models.names())
def test_any_size_and_class_count_runs(name: str) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = models.build(name, 7).eval()
    with torch.no_grad():
        for side in (32, 40):
            assert network(torch.zeros(2, 3, side, side)).shape == (2, 7)


def test_option_a_shortcut_subsamples_and_pads_both_sides() -> None:
    block = models.build("resnet20", 10).layer2[0].eval()  # type: ignore[union-attr,index]
    for tensor in block.state_dict().values():  # type: ignore[union-attr]
        tensor.zero_()
    x = torch.rand(1, 16, 8, 8)
    out = block(x)  # type: ignore[operator]
    assert torch.equal(out[:, 8:24], x[:, :, ::2, ::2])
    assert not out[:, :8].any()
    assert not out[:, 24:].any()


def test_unknown_models_offer_the_nearest() -> None:
    with pytest.raises(UnknownNameError, match="resnet18"):
        models.build("resnet19", 10)
