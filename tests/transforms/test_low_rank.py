from __future__ import annotations

import copy
import dataclasses
import functools

import onnxruntime as ort
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from autocomp.core.candidate import Candidate
from autocomp.core.compressed import CompressedModel
from autocomp.core.hardware import Placement
from autocomp.core.network import Layer, Network
from autocomp.core.steps import StepConfig
from autocomp.core.variant import Variant
from autocomp.errors import ConfigError, DataError, UnknownNameError, UnsupportedError
from autocomp.graph.capture import first_tensor
from autocomp.graph.edit import apply_edits, make_module
from autocomp.graph.trace import build_network
from autocomp.runtimes.export import OnnxExporter
from autocomp.testing.networks import EXAMPLES, example
from autocomp.transforms import _factors
from autocomp.transforms.compensate import Hessian
from autocomp.transforms.low_rank import (
    Factorise,
    approximation,
    factor_parameters,
    factor_specs,
    factorise,
    legal_factorise,
)

METHODS = ("svd", "whitened_svd", "tucker2", "cp", "spatial")


def no_hessian(name: str) -> None:
    return None


class One(nn.Module):
    """A single layer with a name."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x)


def one(layer: nn.Module, *shape: int, seed: int = 0) -> tuple[Network, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    for parameter in layer.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator) / max(1, parameter[0].numel()) ** 0.5
    inputs = torch.randn(*shape, generator=generator)
    return build_network(One(layer), inputs), inputs


LAYERS = {
    "conv": (lambda: nn.Conv2d(6, 10, 3, padding=1), (4, 6, 8, 8)),
    "strided": (lambda: nn.Conv2d(6, 10, (3, 5), stride=(2, 3), padding=(1, 2), bias=False), (4, 6, 11, 13)),
    "dilated": (lambda: nn.Conv2d(6, 10, (5, 3), padding=(2, 0), dilation=(1, 2)), (4, 6, 9, 9)),
    "same": (lambda: nn.Conv2d(6, 10, 3, padding="same", dilation=2), (4, 6, 8, 8)),
    "valid": (lambda: nn.Conv2d(6, 10, 2, padding="valid"), (4, 6, 8, 8)),
    "flat": (lambda: nn.Conv2d(6, 10, (1, 5), stride=2, padding=(1, 2)), (4, 6, 8, 8)),
    "pointwise": (lambda: nn.Conv2d(12, 10, 1, stride=2), (4, 12, 8, 8)),
    "conv1d": (lambda: nn.Conv1d(6, 10, 5, stride=2, padding=3, dilation=2), (4, 6, 30)),
    "linear": (lambda: nn.Linear(12, 10), (4, 5, 12)),
}


@functools.cache
def traced(name: str) -> tuple[Network, torch.Tensor]:
    make, shape = LAYERS[name]
    return one(make(), *shape)


def _takes(name: str, method: str) -> bool:
    if method == "spatial" and name in ("flat", "conv1d"):
        return False
    return method in ("svd", "whitened_svd") or name not in ("pointwise", "linear")


CASES = [
    (name, method, known)
    for name in LAYERS
    for method in METHODS
    for known in (False, True)
    if _takes(name, method) and (known or name == "conv")
]


@pytest.mark.parametrize(("name", "method", "known"), CASES)
def test_the_chain_computes_with_the_dense_approximation(name, method, known):
    network, inputs = traced(name)
    layer, module = network.layers["layer"], network.module.get_submodule("layer")
    step = Factorise(method=method, rank=0.4)
    assert legal_factorise(layer, step, network) is None
    hessian = Hessian.of(module, [inputs]) if known else None
    variant = factorise(Variant.base(network), {"layer": step}, hessians=lambda _: hessian, seed=5)

    weight = approximation(module.weight, layer, step, hessian, 5)
    assert weight.shape == module.weight.shape
    reference = copy.deepcopy(network.module)
    reference.get_submodule("layer").weight.data = weight
    with torch.no_grad():
        torch.testing.assert_close(variant.network.module(inputs), reference(inputs), rtol=1e-4, atol=1e-4)
        assert not torch.allclose(reference(inputs), network.module(inputs), atol=1e-3)

    specs = factor_specs(layer, step, module)
    chain = [make_module(spec) for spec in specs]
    assert [spec.bias for spec in specs] == [False] * (len(specs) - 1) + [module.bias is not None]
    count = sum(m.weight.numel() for m in chain)
    assert count == factor_parameters(layer, step) < module.weight.numel()
    assert sum(part.parameters for part in variant.network.layers.values()) < layer.parameters
    parts = variant.parts()["layer"]
    assert parts == tuple(f"layer.{i}" for i in range(len(specs)))
    assert [variant.origins[p].inner for p in parts] == [True] * (len(specs) - 1) + [False]


def steps_for(network: Network, share: float = 0.35) -> dict[str, Factorise]:
    """Methods in turn over all layers that take one."""
    steps: dict[str, Factorise] = {}
    for name, layer in network.layers.items():
        for i in range(len(METHODS)):
            step = Factorise(method=METHODS[(len(steps) + i) % len(METHODS)], rank=share)
            if legal_factorise(layer, step, network) is None:
                steps[name] = step
                break
    return steps


@pytest.mark.parametrize("name", sorted({*EXAMPLES} - {"preactivation", "mlp", "plain"}))
def test_whatever_is_legal_works_in_every_kind_of_network(name):
    """And edits with the state dict make the same module again, bit for bit."""
    model, inputs = example(name)
    network = build_network(model, inputs)
    before = copy.deepcopy(network.module.state_dict())
    steps = steps_for(network)
    variant = factorise(Variant.base(network), steps, hessians=no_hessian)
    assert all(torch.equal(before[k], v) for k, v in network.module.state_dict().items())
    assert set(variant.origins) == set(variant.network.layers)
    assert {len(variant.parts()[s]) for s in steps} <= {2, 3, 4}
    assert len(variant.edits) == len(steps)

    loaded = copy.deepcopy(network.module)
    apply_edits(loaded, variant.edits)
    loaded.load_state_dict(variant.network.module.state_dict())
    with torch.no_grad():
        assert torch.equal(first_tensor(loaded(inputs)), first_tensor(variant.network.module(inputs)))


def test_which_layers_of_a_residual_network_are_taken():
    model, inputs = example("residual")
    network = build_network(model, inputs)
    assert set(steps_for(network)) == set(network.layers)


def test_folded_norms_go_to_the_last_layer_of_a_chain():
    model, inputs = example("plain")
    network = build_network(model, inputs)
    steps = {"conv2": Factorise(method="tucker2", rank=0.5)}
    folds = factorise(Variant.base(network), steps, hessians=no_hessian).network.folds
    assert set(folds) == {"conv1", "conv2.2"}
    assert torch.equal(folds["conv2.2"].mean, network.folds["conv2"].mean)


def test_runs_in_onnx_runtime():
    model, inputs = example("plain", samples=4)
    network = build_network(model, inputs)
    variant = factorise(Variant.base(network), steps_for(network), hessians=no_hessian)
    plain = CompressedModel(candidate=Candidate({}), tensors={})
    data = OnnxExporter(variant.network).export(plain, Placement(), set())
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    with torch.no_grad():
        expected = first_tensor(variant.network.module(inputs))
    torch.testing.assert_close(
        torch.from_numpy(session.run(None, {"input": inputs.numpy()})[0]), expected, rtol=1e-4, atol=1e-4
    )


def test_a_chain_can_be_factorised_again():
    network, _ = one(nn.Conv2d(16, 24, 3, padding=1), 2, 16, 8, 8)
    once = factorise(Variant.base(network), {"layer": Factorise(method="tucker2", rank=0.5)}, hessians=no_hessian)
    twice = factorise(once, {"layer.1": Factorise(method="spatial", rank=0.3)}, hessians=no_hessian)
    assert twice.parts() == {"layer": ("layer.0", "layer.1.0", "layer.1.1", "layer.2")}
    assert [twice.origins[n].inner for n in twice.parts()["layer"]] == [True, True, True, False]
    assert len(once.edits) == 1
    assert len(twice.edits) == 2


def layer_of(kind: str = "conv2d", shape: tuple[int, ...] = (16, 16, 3, 3), **changes: object) -> Layer:
    layer = Layer(name="a", kind=kind, weight="a.weight", bias=None, weight_shape=shape)
    return dataclasses.replace(layer, **changes)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("layer", "method", "share", "reason"),
    [
        (layer_of("embedding", (10, 4)), "svd", 0.2, "embedding layers are not"),
        (layer_of("conv_transpose2d"), "svd", 0.2, "conv_transpose2d layers are not"),
        (layer_of("conv3d", (8, 8, 3, 3, 3)), "svd", 0.2, "conv3d layers are not"),
        (layer_of(groups=2), "svd", 0.2, "2 groups"),
        (layer_of(aliases=("b",)), "svd", 0.2, "shared with b"),
        (layer_of(calls=2), "svd", 0.2, "used 2 times"),
        (layer_of(name=""), "svd", 0.2, "the model is one layer"),
        (layer_of(shape=(16, 16, 1, 1)), "tucker2", 0.2, "needs a kernel"),
        (layer_of("linear", (16, 16)), "cp", 0.2, "needs a kernel"),
        (layer_of("conv1d", (16, 16, 3)), "spatial", 0.2, "two axes"),
        (layer_of(shape=(16, 16, 1, 3)), "spatial", 0.2, "two axes"),
        (layer_of(), "svd", 0.03, "0.03 of the full rank 16 is below 1"),
        (layer_of(), "svd", 0.97, "0.97 of the full rank 16 is all of it"),
        (layer_of("linear", (16, 16)), "svd", 0.5, "would enlarge the layer is illegal: 256 weights in place of 256"),
        (layer_of(shape=(16, 1, 3, 3)), "tucker2", 0.6, "all of it"),
    ],
)
def test_illegal_steps_say_why(layer, method, share, reason):
    step = Factorise(method=method, rank=share)
    found = legal_factorise(layer, step)
    assert found is not None
    assert reason in found
    with pytest.raises(ConfigError, match="is not possible"):
        approximation(torch.zeros(layer.weight_shape), layer, step)


@pytest.mark.parametrize(
    ("layer", "reason"),
    [
        (nn.Conv2d(6, 10, 3, padding=1, padding_mode="reflect"), "reflect"),
        (nn.Conv2d(6, 10, 4, padding="same"), "differs between the two sides"),
    ],
)
def test_padding_that_a_chain_cannot_do(layer, reason):
    network, _ = one(layer, 2, 6, 8, 8)
    step = Factorise(rank=0.3)
    assert legal_factorise(network.layers["layer"], step) is None
    assert reason in str(legal_factorise(network.layers["layer"], step, network))
    with pytest.raises(UnsupportedError, match=reason):
        factor_specs(network.layers["layer"], step, layer)
    with pytest.raises(ConfigError, match=reason):
        factorise(Variant.base(network), {"layer": step}, hessians=no_hessian)


def test_weights_read_past_their_module_are_left_alone():
    model, inputs = example("tokens")
    network = build_network(model, inputs)
    reasons = {n: legal_factorise(layer, Factorise(rank=0.3), network) for n, layer in network.layers.items()}
    assert all(reasons.values())
    assert "without calling it" in str(reasons["block.linear1"])


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 64),
    st.integers(1, 64),
    st.sampled_from([(), (1,), (3,), (1, 1), (1, 3), (3, 3), (5, 2)]),
    st.sampled_from(METHODS),
    st.floats(0.01, 0.99),
)
def test_legal_means_fewer_weights_and_true_ranks(out, inputs, kernel, method, share):
    kind = ("linear", "conv1d", "conv2d")[len(kernel)]
    layer, step = layer_of(kind, (out, inputs, *kernel)), Factorise(method=method, rank=share)
    if legal_factorise(layer, step) is not None:
        return
    module = nn.Linear(inputs, out) if not kernel else (nn.Conv1d, nn.Conv2d)[len(kernel) - 1](inputs, out, kernel)
    chain = [make_module(spec) for spec in factor_specs(layer, step, module)]
    assert sum(p.numel() for m in chain for p in m.parameters()) < sum(p.numel() for p in module.parameters())
    assert min(m.weight.shape[0] for m in chain) >= 1
    sample = torch.zeros(1, inputs, *(6 for _ in kernel))
    assert nn.Sequential(*chain)(sample).shape == module(sample).shape


def test_unknown_layers_and_bad_weights():
    network, _ = one(nn.Linear(12, 10), 2, 12)
    step = Factorise(rank=0.3)
    with pytest.raises(UnknownNameError, match="layer 'lyer'"):
        factorise(Variant.base(network), {"lyer": step}, hessians=no_hessian)
    bad = torch.ones(10, 12)
    bad[3, 4] = float("nan")
    with pytest.raises(DataError, match="layer layer: weights are not finite"):
        approximation(bad, network.layers["layer"], step)


def test_a_degenerate_layer_stays_whole_and_is_noted(monkeypatch):
    monkeypatch.setattr(_factors, "CP_LIMIT", 0.01)
    network, _ = one(nn.Conv2d(6, 10, 3), 2, 6, 8, 8)
    variant = factorise(Variant.base(network), {"layer": Factorise(method="cp", rank=0.3)}, hessians=no_hessian)
    assert len(variant.notes) == 1
    assert variant.notes[0].startswith("layer layer: CP of rank")
    assert variant.notes[0].endswith("the layer stays whole")
    assert variant.edits == ()
    assert set(variant.network.layers) == {"layer"}


def test_refit_is_used_and_can_be_switched_off():
    network, inputs = one(nn.Conv2d(6, 10, 3), 4, 6, 8, 8)
    layer, weight = network.layers["layer"], network.module.get_parameter("layer.weight")
    hessian = Hessian.of(network.module.get_submodule("layer"), [inputs * torch.linspace(0.1, 3, 6)[:, None, None]])
    step = Factorise(method="svd", rank=0.4)
    plain = approximation(weight, layer, step)
    assert torch.equal(approximation(weight, layer, step, hessian, refit=False), plain)
    assert not torch.allclose(approximation(weight, layer, step, hessian), plain, atol=1e-3)


@pytest.mark.parametrize("method", METHODS)
def test_settings_round_trip(method):
    step = Factorise(method=method, rank=0.25)
    assert StepConfig.from_json(step.to_json()) == step
    assert (step.axis, step.order) == ("rank", 20)


def test_labels():
    labels = [Factorise(method=m, rank=0.25).label() for m in METHODS]
    assert labels == ["svd0.25", "wsvd0.25", "tk0.25", "cp0.25", "sp0.25"]


@pytest.mark.parametrize("rank", [0, 1, 1.5, -0.2, float("nan")])
def test_ranks_outside_are_refused(rank):
    with pytest.raises(ConfigError, match=r"factorise.rank = .*allowed \(0, 1\)"):
        Factorise(rank=rank)


def test_unknown_method():
    with pytest.raises(ConfigError, match=r"factorise\.method = 'qr'; allowed svd"):
        Factorise(method="qr", rank=0.5)


class TakesTheWeight(nn.Module):
    """A block that runs one layer and takes the weight of the other, as torchvision's Swin does; input [n, 3, 12]."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.taken = nn.Linear(12, 16), nn.Linear(16, 14)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.linear(torch.relu(self.first(x)), self.taken.weight, self.taken.bias)


def test_layers_whose_weight_is_taken_without_a_call_stay():
    network = build_network(nn.Sequential(TakesTheWeight(), nn.Linear(14, 5)).eval(), torch.randn(2, 3, 12))
    step = Factorise(method="svd", rank=0.3)
    reason = legal_factorise(network.layers["0.taken"], step, network)
    assert reason is not None
    assert "without calling it" in reason
    assert legal_factorise(network.layers["0.first"], step, network) is None
    variant = factorise(Variant.base(network), {"0.first": step, "1": step}, hessians=no_hessian)
    assert legal_factorise(variant.network.layers["0.first.1"], step, variant.network) is None
    assert legal_factorise(variant.network.layers["0.taken"], step, variant.network) == reason
