"""Operations of exported models: what is fused, what runs in which precision, how much is multiplied."""

import pytest

from autocomp.core.hardware import Placement
from autocomp.errors import UnsupportedError
from autocomp.graph.trace import build_network
from autocomp.profiling.operations import Edge, operations, peak_activation_bytes
from autocomp.profiling.probes import Probe
from autocomp.runtimes.export import OnnxExporter
from autocomp.testing.candidates import int8_candidate
from autocomp.testing.families import make_family
from autocomp.testing.onnx_models import TinyNetwork

FAMILIES = ("mobilenet_v2", "vit", "unet", "audio")


def test_a_tiny_network_by_hand() -> None:
    """Two 3x3 convolutions of 16 channels on 8 x 8, pooling, a linear layer of 5 classes; int8 throughout."""
    names = frozenset({"conv1", "conv2", "fc"})
    found = operations(TinyNetwork(int8=names).onnx_bytes(), 1)
    assert [(o.kind, o.precision, o.weight) for o in found] == [
        ("conv2d", "int8", "conv1.weight"),
        ("conv2d", "int8", "conv2.weight"),
        ("pool", "int8", None),
        ("linear", "int8", "fc.weight"),
    ]
    first, second, pool, linear = found
    assert [o.macs for o in found] == [64 * 16 * 27, 64 * 16 * 144, 0, 80]
    assert (second.channels, second.spatial, second.kernel) == ((16, 16), (8, 8), (3, 3))
    assert (second.read_bytes, second.written_bytes, second.weight_bytes) == (1024, 1024, 16 * 144 + 4 * 16)
    assert first.edges == (Edge(kind="float32>int8", elements=3 * 64),)
    assert second.edges == pool.edges == linear.edges == ()
    assert peak_activation_bytes(found) == 2048


def test_float32_has_no_edges_and_four_bytes() -> None:
    found = operations(TinyNetwork().onnx_bytes(), 2)
    assert {o.precision for o in found} == {"float32"}
    assert not any(o.edges for o in found)
    assert found[1].macs == 2 * 64 * 16 * 144
    assert found[1].read_bytes == 2 * 4 * 1024
    assert peak_activation_bytes(found) == 2 * 2 * 4 * 1024


def test_precision_changes_are_edges() -> None:
    probe = Probe(
        purpose="edges", kind="conv2d", precisions=("int8", "float32", "int8"), channels=(8, 8), size=4, kernel=3
    )
    found = operations(probe.model(Placement()))
    assert [o.precision for o in found] == ["int8", "float32", "int8"]
    assert [[e.kind for e in o.edges] for o in found] == [["float32>int8"], ["int8>float32"], ["float32>int8"]]
    assert all(e.elements == 8 * 16 for o in found for e in o.edges)


@pytest.mark.parametrize("name", FAMILIES)
def test_macs_agree_with_the_layers(name: str) -> None:
    model, family = make_family(name)
    inputs = family.inputs(2)
    network = build_network(model, inputs[:1])
    exporter = OnnxExporter(network)
    compressed = int8_candidate(network, inputs, only=())
    found = operations(exporter.export(compressed, Placement(), set()), 1)
    by_weight: dict[str, int] = {}
    for operation in found:
        if operation.weight is not None and operation.macs:
            by_weight[operation.weight] = by_weight.get(operation.weight, 0) + operation.macs
    layers = {layer.weight: layer.macs for layer in network.layers.values() if layer.macs}
    assert {w: by_weight.get(w) for w in layers} == layers


def test_garbage_is_unsupported() -> None:
    with pytest.raises(UnsupportedError, match="not an ONNX model"):
        operations(b"nothing like a model" * 9)


def test_weights_do_not_matter() -> None:
    one, two = (operations(TinyNetwork(seed=seed).onnx_bytes(), 1) for seed in (0, 1))
    assert one == two
