"""Networks of common families as TensorRT-RTX plans, really built: which layers run in which precision."""

from __future__ import annotations

import functools

import pytest
import torch

from autocomp.core.compressed import CompressedModel
from autocomp.core.hardware import Placement, Plan
from autocomp.core.network import Network
from autocomp.core.variant import Variant
from autocomp.graph.coupling import coupled_groups
from autocomp.graph.placement import may_run_int8
from autocomp.graph.trace import build_network
from autocomp.runtimes import find
from autocomp.runtimes._profiles import load_profile
from autocomp.runtimes.export import OnnxExporter
from autocomp.testing.candidates import int8_candidate, rounded_candidate
from autocomp.testing.families import make_family
from autocomp.testing.networks import randomised
from autocomp.transforms.prune import PruneChannels, prune_channels
from autocomp.workloads.models import build as build_model

RTX = find("tensorrt_rtx")
pytestmark = pytest.mark.skipif(RTX.missing() is not None, reason=str(RTX.missing()))

PROFILE = load_profile("rtx-4090")
FLOAT32 = Placement()
HALF = PROFILE.placement
FULL = Placement(outputs=False, elementwise=False, symmetric=True, residual=True, depthwise=False)
NETWORKS = ("resnet20", "resnet18", "mobilenet_v2", "vit")


@functools.cache
def case(name: str) -> tuple[Network, OnnxExporter, torch.Tensor]:
    inputs = torch.randn(8, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    model = randomised(build_model(name, 10)) if name.startswith("resnet") else make_family(name)[0]
    network = build_network(model, inputs[:2])
    return network, OnnxExporter(network), inputs


def plan(exporter: OnnxExporter, compressed: CompressedModel, placement: Placement, inputs: torch.Tensor) -> Plan:
    """Built as a search builds it; layers with quantized inputs run in int8 where they can."""
    layers = set(exporter.network.layers) if compressed.activations else set()
    model = exporter.export(compressed, placement, layers, 1)
    built = RTX.build(model, PROFILE, inputs[:1].numpy())
    network = exporter.network
    planned = {network.layers[n].weight: p for n, p in exporter.executes(compressed, placement, layers).items()}
    assert set(built.layers) == set(planned)
    wrong = {w: p for w, p in built.layers.items() if p != planned[w] and planned[w] != "int4"}
    assert wrong == {}
    return built


@pytest.mark.parametrize("name", NETWORKS)
def test_float32(name: str) -> None:
    _, exporter, inputs = case(name)
    built = plan(exporter, rounded_candidate(exporter.network, (), bits=8), FLOAT32, inputs)
    assert set(built.layers.values()) == {"float32"}


@pytest.mark.parametrize("name", NETWORKS)
def test_float16_halves_the_weights(name: str) -> None:
    _, exporter, inputs = case(name)
    built = plan(exporter, rounded_candidate(exporter.network, (), bits=8), HALF, inputs)
    assert set(built.layers.values()) == {"float16"}
    parameters = sum(layer.parameters for layer in exporter.network.layers.values())
    assert built.details["weights_memory_bytes"] < 3 * parameters


@pytest.mark.parametrize("name", NETWORKS)
def test_int8(name: str) -> None:
    """Every layer that is planned in int8 runs in int8: input and weight."""
    network, exporter, inputs = case(name)
    built = plan(exporter, int8_candidate(network, inputs, HALF), HALF, inputs)
    expected = {layer.weight: may_run_int8(layer, HALF) for layer in network.layers.values()}
    assert {w for w, p in built.layers.items() if p == "int8"} == {w for w, int8 in expected.items() if int8}
    assert ("float16" in built.layers.values()) is (name == "mobilenet_v2")  # its depthwise convolutions


@pytest.mark.parametrize("name", ["resnet20", "vit"])
def test_int8_beside_float32(name: str) -> None:
    network, exporter, inputs = case(name)
    built = plan(exporter, int8_candidate(network, inputs, FULL), FULL, inputs)
    assert set(built.layers.values()) == {"int8"}


def test_int4_weights_of_linear_layers() -> None:
    """Planned for all linear layers; fused where the product has rows enough, and told where not."""
    network, exporter, inputs = case("vit")
    compressed = rounded_candidate(network, ("linear",), bits=4)
    built = plan(exporter, compressed, HALF, inputs)
    assert built.layers["blocks.0.attention.qkv.weight"] == built.layers["blocks.1.mlp.3.weight"] == "int4"
    assert built.layers["patches.weight"] == "float16"
    floats = plan(exporter, rounded_candidate(network, (), bits=8), HALF, inputs)
    assert built.details["weights_memory_bytes"] < floats.details["weights_memory_bytes"]


@pytest.mark.parametrize("name", ["resnet20", "mobilenet_v2"])
def test_pruned_int8(name: str) -> None:
    network, whole, inputs = case(name)
    groups = coupled_groups(network)
    settings = {key: PruneChannels(ratio=0.4, criterion="l2") for key in groups.groups}
    small = prune_channels(Variant.base(network), settings, coupling=groups, batches=[inputs], compensate=False).network
    exporter = OnnxExporter(small, like=whole)
    built = plan(exporter, int8_candidate(small, inputs, HALF), HALF, inputs)
    assert "int8" in built.layers.values()
