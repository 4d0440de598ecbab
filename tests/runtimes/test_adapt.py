"""An adapted skeleton and a fresh export are the same model."""

from __future__ import annotations

import functools
from collections import Counter

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch

from autocomp.core.candidate import Candidate
from autocomp.core.compressed import CompressedModel
from autocomp.core.hardware import Placement
from autocomp.core.network import Network
from autocomp.core.variant import Variant
from autocomp.graph.capture import first_tensor
from autocomp.graph.trace import build_network, network_of, stand_in
from autocomp.runtimes._adapt import adapted
from autocomp.runtimes.export import OnnxExporter
from autocomp.testing.candidates import int8_candidate
from autocomp.testing.networks import example
from autocomp.transforms.low_rank import Factorise, factorise, legal_factorise

CASES = [
    ("plain", "svd"),
    ("plain", "spatial"),
    ("residual", "tucker2"),
    ("residual", "spatial"),
    ("concat", "svd"),
    ("attention", "svd"),
]


@functools.cache
def factorised(name: str, method: str) -> tuple[Network, Network, torch.Tensor]:
    """The network, the same with every second layer that may be factorised, and inputs."""
    model, inputs = example(name, samples=16)
    network = build_network(model, inputs[:2])
    step = Factorise(method=method, rank=0.3)
    able = [n for n, layer in network.layers.items() if legal_factorise(layer, step, network) is None][::2]
    assert able
    variant = factorise(Variant.base(network), dict.fromkeys(able, step), hessians=lambda _: None)
    return network, variant.network, inputs


def outputs(data: bytes, inputs: torch.Tensor) -> np.ndarray:
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(
        data, options, providers=["CPUExecutionProvider"], disabled_optimizers=["WeightBiasQuantization"]
    )
    found: np.ndarray = session.run(None, {"input": inputs.numpy()})[0]
    return found


@pytest.mark.parametrize(("name", "method"), CASES)
def test_the_edited_graph_is_what_tracing_finds(name: str, method: str) -> None:
    """Value keys are written into files: a loader, which traces anew, must find the same ones."""
    _, changed, _ = factorised(name, method)
    again = network_of(changed.module, stand_in(changed))
    assert list(changed.layers.values()) == list(again.layers.values())

    def described(network: Network) -> list[tuple[object, ...]]:
        return [(v.key, v.op, v.shape, v.nonnegative, v.producers) for v in network.values.values()]

    assert described(changed) == described(again)


@pytest.mark.parametrize(("name", "method"), CASES)
def test_adapted_skeleton_is_a_fresh_export(name: str, method: str) -> None:
    network, changed, inputs = factorised(name, method)
    base = OnnxExporter(network)
    assert adapted(base.skeleton, network, changed) is not None
    exporters = OnnxExporter(changed, like=base), OnnxExporter(changed)
    plain = CompressedModel(candidate=Candidate({}), tensors={})
    for compressed, layers in ((plain, set()), (int8_candidate(changed, inputs), set(changed.layers))):
        ours, fresh = (e.export(compressed, Placement(), layers, len(inputs)) for e in exporters)
        onnx.checker.check_model(onnx.load_model_from_string(ours), full_check=True)
        counts = [Counter(n.op_type for n in onnx.load_model_from_string(m).graph.node) for m in (ours, fresh)]
        assert counts[0] == counts[1]
        np.testing.assert_allclose(outputs(ours, inputs), outputs(fresh, inputs), rtol=0, atol=1e-5)


def test_what_does_not_fit_is_exported_anew() -> None:
    network, _, _ = factorised("plain", "svd")
    other, _, inputs = factorised("concat", "svd")
    assert adapted(OnnxExporter(network).skeleton, network, other) is None
    exporter = OnnxExporter(other, like=OnnxExporter(network))
    plain = CompressedModel(candidate=Candidate({}), tensors={})
    found = outputs(exporter.export(plain, Placement(), set()), inputs)
    np.testing.assert_allclose(found, first_tensor(other.module(inputs)).detach().numpy(), rtol=1e-4, atol=1e-4)
