"""The simulation of float16 against the exported float16 model, executed operator by operator in float16."""

from __future__ import annotations

import functools

import onnx
import pytest
import torch
from torch import Tensor, nn

from autocomp.core.candidate import Candidate
from autocomp.core.compressed import ActivationQuantizer, CompressedModel
from autocomp.core.hardware import Placement
from autocomp.core.network import Network
from autocomp.graph import float16
from autocomp.graph.simulate import simulated
from autocomp.graph.trace import build_network
from autocomp.runtimes._onnx_torch import OnnxProgram
from autocomp.runtimes.export import OnnxExporter
from autocomp.testing.candidates import int8_candidate
from autocomp.testing.families import make_family
from autocomp.testing.networks import randomised
from autocomp.workloads.models import build as build_model

PLAIN = CompressedModel(candidate=Candidate({}), tensors={})
HALF = Placement(outputs=False, elementwise=False, symmetric=True, residual=True, float_type="float16")


@functools.cache
def case(name: str) -> tuple[Network, OnnxExporter, Tensor]:
    inputs = torch.randn(8, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    model = randomised(build_model(name, 10)) if name == "resnet20" else make_family(name)[0]
    network = build_network(model, inputs[:2])
    return network, OnnxExporter(network), inputs


@torch.inference_mode()
def compared(
    network: Network, exporter: OnnxExporter, compressed: CompressedModel, inputs: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Outputs of the exported model, of the simulation, of the simulation in float32."""
    model = onnx.load_model_from_string(exporter.export(compressed, HALF, set(network.layers)))
    halves = simulated(network, compressed, "float16")(inputs)
    return OnnxProgram(model)(inputs), halves, simulated(network, compressed)(inputs)


def rms(difference: Tensor) -> float:
    return float(difference.square().mean().sqrt())


@pytest.mark.parametrize("execution", ["float", "int8"])
@pytest.mark.parametrize("name", ["resnet20", "mobilenet_v2", "vit"])
def test_simulation_is_the_exported_model(name, execution):
    """The order of float32 sums is all that is left: few results round the other way, where all differ otherwise.

    Two executions of one float16 model (torch's and ONNX Runtime's) differ by up to half of what float16 does at all.
    """
    network, exporter, inputs = case(name)
    compressed = int8_candidate(network, inputs, HALF) if execution == "int8" else PLAIN
    exported, halves, full = compared(network, exporter, compressed, inputs)
    assert rms(full - exported) > 2e-4 * rms(exported)
    assert rms(halves - exported) < 0.5 * rms(full - exported)
    assert torch.equal(halves, halves.half().float())


class RootMeanSquare(nn.Module):
    """x / √(mean(x²) + ε): the squares are beyond float16's range."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.linspace(0.5, 1.5, 8))
        self.fc = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6) * self.scale)


class Squares(nn.Module):
    """x² / 100, a product that a quantizer follows."""

    def forward(self, x: Tensor) -> Tensor:
        return x.pow(2) * 0.01


def test_squares_stay_in_float32():
    inputs = torch.randn(16, 8, generator=torch.Generator().manual_seed(2)) * 500
    network = build_network(RootMeanSquare().eval(), inputs[:2])
    exported, halves, full = compared(network, OnnxExporter(network), PLAIN, inputs)
    assert torch.equal(halves, exported)
    torch.testing.assert_close(halves, full, rtol=5e-3, atol=5e-3)
    assert not torch.equal(halves, full)


def test_squares_in_front_of_a_quantizer_are_rounded_first():
    inputs = torch.randn(16, 8, generator=torch.Generator().manual_seed(2)) * 50
    network = build_network(nn.Sequential(Squares(), nn.Linear(8, 4)).eval(), inputs[:2])
    compressed = int8_candidate(network, inputs, HALF)
    assert [network.values[key].op for key in compressed.activations] == ["mul"]
    exported, halves, _ = compared(network, OnnxExporter(network), compressed, inputs)
    assert torch.equal(halves, exported)


def test_beyond_the_range_is_infinite():
    network = build_network(nn.Sequential(nn.Linear(2, 2)).eval(), torch.ones(2, 2))
    large = simulated(network, PLAIN, "float16")(torch.full((1, 2), 1e5))
    assert not large.isfinite().any()
    assert simulated(network, PLAIN)(torch.full((1, 2), 1e5)).isfinite().all()


def test_constants():
    found = float16.rounded_constants(
        {"mask": torch.tensor([-torch.inf, -3e38, 1.0]), "index": torch.tensor([70000]), "w": torch.tensor([1 / 3])}
    )
    assert found["mask"].tolist() == [-65504.0, -65504.0, 1.0]
    assert found["index"].tolist() == [70000]
    assert float(found["w"]) == 0.333251953125
    tiny = ActivationQuantizer(scale=1e-12, zero_point=0, low=-128, high=127)
    assert float16.rounded_scale(tiny).scale == 2.0**-24
