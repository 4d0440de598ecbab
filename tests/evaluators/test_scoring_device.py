"""Where networks are run to score them. No test here needs an accelerator; what one computes: ``pytest -m gpu``."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from autocomp.core import seat
from autocomp.core.workload import Workload
from autocomp.errors import UnsupportedError
from autocomp.evaluators.quality import run_split
from autocomp.evaluators.scoring_device import CPU, exact, scoring_device
from autocomp.graph.simulate import simulated, uncompressed
from autocomp.graph.trace import build_network
from autocomp.search import session
from autocomp.testing.candidates import int8_candidate
from autocomp.testing.families import FAMILIES, make_family
from autocomp.workloads.metrics import mse
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


class AllOn(TorchDispatchMode):
    """Every operation has all its tensors on one device, numbers aside. ("meta" itself takes those of others.)"""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        for tensor in torch.utils._pytree.tree_leaves((args, kwargs, made)):
            if isinstance(tensor, torch.Tensor) and tensor.dim():
                assert tensor.device.type == self.kind, f"{func} meets {tensor.shape} on {tensor.device}"
        return made


@pytest.mark.parametrize("float_type", ["float32", "float16"])
@pytest.mark.parametrize("name", sorted(set(FAMILIES) - {"branch"}))
def test_a_simulation_moves_as_a_whole(name: str, float_type: str) -> None:
    """Weights, constants, and what the graph itself makes; the float32 network and a compressed one."""
    model, family = make_family(name)
    inputs = family.inputs(2)
    network = build_network(model, inputs)
    compressed = int8_candidate(network, inputs)
    with torch.inference_mode():
        here = simulated(network, compressed, float_type)(inputs)
        for module in (simulated(network, compressed, float_type), uncompressed(network)):
            moved, there = module.to("meta"), inputs.to("meta")
            with AllOn("meta"):
                found = moved(there)
            assert found.device.type == "meta"
            assert (found.shape, found.dtype) == (here.shape, here.dtype)
    assert all(p.device == CPU for p in network.module.state_dict().values())


def test_a_network_that_does_not_run_on_the_device_is_one_line() -> None:
    """Without a graph the network's own code runs, and may make tensors where it likes."""

    class Stubborn(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = torch.nn.Linear(4, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            if float(x.sum()) > 1e9:  # no graph
                return x
            found: torch.Tensor = self.layer(x) + torch.ones(4, device="cpu")
            return found

    inputs = torch.randn(4, 4)
    network = build_network(Stubborn().eval(), inputs)
    assert network.graph is None
    split = TensorSplit(inputs=inputs, targets=torch.zeros(4, dtype=torch.int64))
    workload = Workload(
        name="stubborn", model=network.module, model_spec="", calibration=split, search=split, test=split,
        metric=mse(), classes=None, fingerprint="",
    )  # fmt: skip
    session._check_runs(network, workload, CPU)
    with pytest.raises(UnsupportedError, match=r"--device meta: stubborn does not run there \(.+\); take --device cpu"):
        session._check_runs(network, workload, torch.device("meta"))


@pytest.mark.parametrize("conv", ["tf32", "ieee"])
def test_scoring_on_a_gpu_is_in_true_float32_and_leaves_torchs_settings_as_they_were(conv: str) -> None:
    backends: Any = torch.backends
    parts = (backends.cuda.matmul, backends.cudnn.conv, backends.cudnn.rnn)
    users = backends.cudnn.conv.fp32_precision
    backends.cudnn.conv.fp32_precision = conv
    try:
        before = [part.fp32_precision for part in parts], backends.cudnn.deterministic
        assert before[0][1] == conv
        with exact(torch.device("cuda")):
            assert [part.fp32_precision for part in parts] == ["ieee"] * 3
            assert backends.cudnn.deterministic
        assert ([part.fp32_precision for part in parts], backends.cudnn.deterministic) == before
        with exact(CPU):
            assert [part.fp32_precision for part in parts] == before[0]
    finally:
        backends.cudnn.conv.fp32_precision = users


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
