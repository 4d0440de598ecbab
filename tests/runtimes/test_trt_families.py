"""Networks of common families as TensorRT-RTX plans, really built: which layers run in which precision."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Collection

import pytest
import torch

from autocomp.core.compressed import CompressedModel
from autocomp.core.hardware import Placement, Plan
from autocomp.core.network import Network
from autocomp.core.variant import Variant
from autocomp.errors import UnsupportedError
from autocomp.graph.coupling import coupled_groups
from autocomp.graph.placement import may_run_8bit
from autocomp.graph.trace import build_network
from autocomp.runtimes import find
from autocomp.runtimes._profiles import load_profile
from autocomp.runtimes.export import OnnxExporter
from autocomp.testing.candidates import float8_candidate, int8_candidate, rounded_candidate
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


def plan(
    exporter: OnnxExporter,
    compressed: CompressedModel,
    placement: Placement,
    inputs: torch.Tensor,
    but: Collection[str] = (),
) -> Plan:
    """Built as a search builds it; layers with quantized inputs run in 8 bits where they can.

    All run as planned, but those whose weights are named in ``but``: they run otherwise.
    """
    layers = set(exporter.network.layers) if compressed.activations else set()
    model = exporter.export(compressed, placement, layers, 1)
    built = RTX.build(model, PROFILE, inputs[:1].numpy())
    network = exporter.network
    planned = {network.layers[n].weight: p for n, p in exporter.executes(compressed, placement, layers).items()}
    assert set(built.layers) == set(planned)
    wrong = {w for w, p in built.layers.items() if p != planned[w] and planned[w] != "int4"}
    assert wrong == set(but)
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
    expected = {layer.weight: may_run_8bit(layer, HALF) for layer in network.layers.values()}
    assert {w for w, p in built.layers.items() if p == "int8"} == {w for w, int8 in expected.items() if int8}
    assert ("float16" in built.layers.values()) is (name == "mobilenet_v2")  # its depthwise convolutions


@pytest.mark.parametrize("granularity", ["channel", "tensor"])
@pytest.mark.parametrize("name", ["resnet20", "mobilenet_v2", "vit"])
def test_float8(name: str, granularity: str) -> None:
    """Every layer that is planned in float8 runs in float8: input and weight; but one that the builder leaves out."""
    network, exporter, inputs = case(name)
    compressed = float8_candidate(network, inputs, HALF, granularity=granularity)
    left_out = {"patches.weight"} if name == "vit" else set()  # 8x8 patches of 3 channels: padded, in float16
    built = plan(exporter, compressed, HALF, inputs, but=left_out)
    expected = {la.weight for la in network.layers.values() if may_run_8bit(la, HALF)} - left_out
    assert {w for w, p in built.layers.items() if p == "float8"} == expected
    parameters = sum(layer.parameters for layer in network.layers.values())
    assert name != "resnet20" or built.details["weights_memory_bytes"] < 1.1 * parameters


def test_coarse_integers_run_in_float8_as_they_are() -> None:
    """E4M3 holds the integers of 5 bits: a small file and a float8 engine, with nothing rounded twice."""
    network, exporter, inputs = case("resnet20")
    coarse = rounded_candidate(network, ("conv2d", "linear"), bits=5)
    compressed = coarse.replace(activations=float8_candidate(network, inputs, HALF).activations)
    assert set(plan(exporter, compressed, HALF, inputs).layers.values()) == {"float8"}
    fine = rounded_candidate(network, ("conv2d", "linear"), bits=8).replace(activations=compressed.activations)
    assert set(plan(exporter, fine, HALF, inputs).layers.values()) == {"float16"}


def test_float8_for_a_device_that_has_none() -> None:
    network, exporter, inputs = case("resnet20")
    ampere = dataclasses.replace(PROFILE, options={**PROFILE.options, "compute_capability": "SM80"})
    model = exporter.export(float8_candidate(network, inputs, HALF), HALF, set(network.layers), 1)
    with pytest.raises(UnsupportedError, match=r"fp8_e4m3.*; this device has no such precision: take it out of"):
        RTX.build(model, ampere, inputs[:1].numpy())


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
