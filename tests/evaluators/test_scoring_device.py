"""Where networks are run to score them. No test here needs an accelerator; what one computes: ``pytest -m gpu``."""

from __future__ import annotations

import pytest
import torch

from autocomp.core import seat
from autocomp.errors import UnsupportedError
from autocomp.evaluators.quality import run_split
from autocomp.evaluators.scoring_device import CPU, exact, scoring_device
from autocomp.graph.simulate import simulated
from autocomp.graph.trace import build_network
from autocomp.testing.candidates import int8_candidate
from autocomp.testing.families import make_family
from autocomp.workloads.splits import TensorSplit


@pytest.fixture
def three_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine whose torch says that it has three."""
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    monkeypatch.setattr(torch.accelerator, "device_count", lambda: 3)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: torch.device("cuda"))
    monkeypatch.setenv("AUTOCOMP_SEAT", "0")


def test_the_cpu_is_always_there() -> None:
    assert scoring_device("cpu") == CPU


@pytest.mark.skipif(torch.accelerator.is_available(), reason="there is an accelerator here")
def test_no_accelerator_is_one_line() -> None:
    with pytest.raises(UnsupportedError, match=r"--device cuda: torch .* sees no accelerator on this machine; take"):
        scoring_device("cuda")


def test_workers_take_devices_in_turn(three_gpus: None) -> None:
    taken = []
    for place in range(5):
        seat.take(place)
        taken.append(scoring_device("cuda").index)
    assert taken == [0, 1, 2, 0, 1]
    assert scoring_device("cuda:2").index == 2


@pytest.mark.parametrize("name", ["cuda:3", "mps", "xpu:0"])
def test_a_device_that_is_not_there(three_gpus: None, name: str) -> None:
    with pytest.raises(UnsupportedError, match=rf"--device {name}: torch .* sees 3 of cuda"):
        scoring_device(name)


@pytest.mark.parametrize("float_type", ["float32", "float16"])
@pytest.mark.parametrize("name", ["resnet", "densenet", "swin", "bert", "lstm", "unet", "tied"])
def test_a_simulation_moves_as_a_whole(name: str, float_type: str) -> None:
    """On torch's "meta" device, which refuses tensors of others: weights, constants, and what the graph makes."""
    model, family = make_family(name)
    inputs = family.inputs(2)
    network = build_network(model, inputs)
    compressed = int8_candidate(network, inputs)
    with torch.inference_mode():
        here = simulated(network, compressed, float_type)(inputs)
        there = simulated(network, compressed, float_type).to("meta")(inputs.to("meta"))
    assert there.device.type == "meta"
    assert (there.shape, there.dtype) == (here.shape, here.dtype)


def test_scoring_leaves_torchs_settings_as_they_were() -> None:
    before = torch.backends.cudnn.allow_tf32, torch.backends.cudnn.deterministic
    with exact():
        assert (torch.backends.cudnn.allow_tf32, torch.backends.cudnn.deterministic) == (False, True)
    assert (torch.backends.cudnn.allow_tf32, torch.backends.cudnn.deterministic) == before


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["resnet", "bert"])
def test_a_gpu_scores_what_the_cpu_does(name: str) -> None:
    device = scoring_device("cuda")
    model, family = make_family(name)
    inputs = family.inputs(64)
    network = build_network(model, inputs)
    split = TensorSplit(inputs=inputs, targets=torch.zeros(64, dtype=torch.int64))
    compressed = int8_candidate(network, inputs)
    here = run_split(simulated(network, compressed), split).outputs
    there = run_split(simulated(network, compressed).to(device), split, device).outputs
    assert there.device == CPU
    difference = float((there - here).abs().mean())
    assert difference < 0.01 * float(here.max() - here.min())  # sums at ties may differ
