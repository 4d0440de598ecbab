"""Finishers: found by name; sequential compensated rounding recovers what rounding lost."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

import autocomp.finish.ptq as ptq
from autocomp.core.candidate import Candidate
from autocomp.core.compressed import CompressedModel
from autocomp.core.encodings import Encoding, FloatTensor, QuantizedTensor
from autocomp.core.network import Network
from autocomp.core.steps import Choice
from autocomp.errors import DataError, UnknownNameError, UnsupportedError
from autocomp.finish import find_finish
from autocomp.finish._fit import Problem
from autocomp.finish._walk import GraphWalk, HookWalk, live_bytes
from autocomp.graph.trace import build_network
from autocomp.survey.hessians import Hessians
from autocomp.transforms.binarize import TernarizeWeights
from autocomp.transforms.calibrate import calibrate_activations
from autocomp.transforms.dct import DctKernels
from autocomp.transforms.observe import decoded_module
from autocomp.transforms.patches import channel_axis, weight_from_rows, weight_rows
from autocomp.transforms.problem import LayerProblem
from autocomp.transforms.quantize import QuantizeActivations, QuantizeWeights
from autocomp.transforms.share import ClusterWeights
from autocomp.transforms.sparsify import Sparsify
from autocomp.transforms.statistics import restore_statistics
from autocomp.transforms.stitch import stitch
from autocomp.transforms.weights import compress_layer, legal_weights


class Block(nn.Module):
    """A residual block with a projection."""

    def __init__(self, inside: int, out: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inside, out, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(out)
        self.conv2 = nn.Conv2d(out, out, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(out)
        self.shortcut = nn.Conv2d(inside, out, 1) if inside != out else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(self.bn1(self.conv1(x)).relu()))
        return (y + self.shortcut(x)).relu()


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.blocks = nn.Sequential(Block(8, 8), Block(8, 12), Block(12, 12))
        self.head = nn.Linear(12, 6)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.blocks(self.stem(x).relu()).mean((2, 3)))


def smooth(count: int, seed: int) -> Tensor:
    images = torch.randn(count, 3, 8, 8, generator=torch.Generator().manual_seed(seed))
    return (images + images.roll(1, 2) + images.roll(1, 3)) / 2


@pytest.fixture(scope="module")
def images() -> Tensor:
    return smooth(96, 0)


@pytest.fixture(scope="module")
def network(images: Tensor) -> Network:
    torch.manual_seed(0)
    model = Residual()
    with torch.no_grad():
        for _ in range(40):
            model(images)
    return build_network(model.eval(), images[:2])


def candidate_of(network: Network, config: QuantizeWeights | None, *but: str) -> CompressedModel:
    names = [n for n in network.layers if n not in but and config is not None]

    def lookup(unit: str, choice: Choice) -> dict[str, Encoding]:
        step = choice.get("weights")
        assert isinstance(step, QuantizeWeights)
        return {network.layers[unit].weight: compress_layer(LayerProblem.of(network, unit), [Choice((step,))])[0]}

    choices = {} if config is None else {n: Choice((config,)) for n in names}
    return stitch(network, Candidate(choices), lookup)


def output_error(network: Network, compressed: CompressedModel, images: Tensor) -> float:
    module = decoded_module(network.module, {k: e.decode() for k, e in compressed.tensors.items()})
    with torch.inference_mode():
        wanted = network.module(images)
        return float((module(images) - wanted).square().mean() / wanted.var())


def entropy_bytes(compressed: CompressedModel) -> float:
    total = 0.0
    for encoding in compressed.tensors.values():
        if isinstance(encoding, QuantizedTensor):
            counts = encoding.symbols.unique(return_counts=True)[1].double()
            shares = counts / counts.sum()
            total -= float((shares * shares.log2()).sum()) * encoding.symbols.numel() / 8
    return total


@pytest.mark.parametrize("config", [QuantizeWeights(step=1.0), QuantizeWeights(bits=3)], ids=lambda c: c.label())
def test_better_than_the_candidate_on_other_images(network: Network, images: Tensor, config: QuantizeWeights) -> None:
    compressed = restore_statistics(network, candidate_of(network, config), [images])
    found = find_finish("ptq")(network, compressed, [images[:50], images[50:]])
    fresh = smooth(200, 1)
    assert output_error(network, found.compressed, fresh) < 0.6 * output_error(network, compressed, fresh)
    assert [f.layer for f in found.layers] == list(network.layers)
    assert all(f.after < f.before for f in found.layers[1:])
    assert entropy_bytes(found.compressed) < 1.03 * entropy_bytes(compressed)
    assert found.compressed.steps[-1] == "finish_ptq"


def test_stored_form_is_the_candidates(network: Network, images: Tensor) -> None:
    for config in (
        QuantizeWeights(bits=4, symmetric=False, granularity="tensor"),
        QuantizeWeights(step=0.7, granularity="tensor", rounding="nearest"),
        QuantizeWeights(bits=16),
    ):
        compressed = candidate_of(network, config, "head")
        before = {k: e.decode().clone() for k, e in compressed.tensors.items()}
        made = find_finish("ptq")(network, compressed, [images]).compressed
        assert made.tensors.keys() == compressed.tensors.keys()
        for key, old in compressed.tensors.items():
            new = made.tensors[key]
            assert torch.equal(old.decode(), before[key])
            if isinstance(old, QuantizedTensor):
                assert isinstance(new, QuantizedTensor)
                assert (new.scale.shape, new.bits, new.axis) == (old.scale.shape, old.bits, old.axis)
                assert (new.zero_point is None) == (old.zero_point is None)
            else:
                assert isinstance(new, FloatTensor)
                assert new.width == old.width


def test_step_scales_are_the_candidates_times_the_factor(network: Network, images: Tensor) -> None:
    compressed = candidate_of(network, QuantizeWeights(step=0.8))
    sizes = []
    for factor in (1.0, 1.25):
        made = find_finish("ptq")(network, compressed, [images], step_factor=factor).compressed
        for layer in network.layers.values():
            old, new = compressed.tensors[layer.weight], made.tensors[layer.weight]
            assert isinstance(old, QuantizedTensor)
            assert isinstance(new, QuantizedTensor)
            # both were rounded to what the file holds
            assert torch.allclose(new.scale, old.scale * factor, rtol=2**-7)
        sizes.append(entropy_bytes(made))
    assert sizes[1] < 0.97 * sizes[0]


def test_finer_steps_than_symbols_reach_do_not_clip(network: Network, images: Tensor) -> None:
    compressed = candidate_of(network, QuantizeWeights(step=0.05))
    made = find_finish("ptq")(network, compressed, [images], step_factor=0.2).compressed
    for layer in network.layers.values():
        stored = made.tensors[layer.weight]
        weight = network.module.get_parameter(layer.weight)
        assert isinstance(stored, QuantizedTensor)
        assert float((127 * stored.scale / weight.abs().flatten(1).amax(1)).min()) > 1.0
    assert output_error(network, made, images) < 1e-3


def test_same_seed_same_result(network: Network, images: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ptq, "SAMPLES", 1000)  # really sampled
    compressed = candidate_of(network, QuantizeWeights(bits=3))
    one, two = (find_finish("ptq")(network, compressed, [images], seed=3).compressed for _ in range(2))
    assert all(torch.equal(e.decode(), two.tensors[k].decode()) for k, e in one.tensors.items())


def test_float_network_stays_float(network: Network, images: Tensor) -> None:
    plain = candidate_of(network, None)
    made = find_finish("ptq")(network, plain, [images]).compressed
    assert output_error(network, made, images) < 1e-4


def test_int8_activations_take_part(network: Network, images: Tensor) -> None:
    compressed = candidate_of(network, QuantizeWeights(bits=4))
    values = {la.input_value: QuantizeActivations() for la in network.layers.values() if la.input_value is not None}
    quantizers = calibrate_activations(network, values, [images], compressed=compressed)
    walk = GraphWalk(network, compressed.replace(activations=quantizers), images)
    layer = network.layers["blocks.0.conv2"]
    assert layer.input_value is not None
    inputs, _ = walk.at(layer)
    steps = inputs / quantizers[layer.input_value].scale
    assert torch.allclose(steps, steps.round(), atol=1e-3)


def test_targets_make_good_the_skip_connection(network: Network, images: Tensor) -> None:
    compressed = candidate_of(network, QuantizeWeights(bits=2))
    with_graph, without = GraphWalk(network, compressed, images), HookWalk(network, compressed, images)
    module = decoded_module(network.module, {k: e.decode() for k, e in compressed.tensors.items()})
    skips: dict[str, list[Tensor]] = {}
    for which, net in (("float", decoded_module(network.module, {})), ("compressed", module)):
        net.get_submodule("blocks.0").register_forward_pre_hook(
            lambda _m, args, w=which: skips.setdefault(w, []).append(args[0])
        )
        net.get_submodule("blocks.1.conv2").register_forward_hook(
            lambda _m, _a, out, w=which: skips.setdefault(w, []).append(out)
        )
        with torch.inference_mode():
            net(images)
    for name, layer in network.layers.items():
        with torch.inference_mode():
            inputs, target = with_graph.at(layer)
            same_inputs, plain = without.at(layer)
        assert torch.allclose(inputs, same_inputs, atol=1e-4)
        if name == "blocks.0.conv2":  # added to the block's input
            plain = plain + skips["float"][0] - skips["compressed"][0]
        if name == "blocks.1.shortcut":  # the later operand of its addition
            plain = plain + skips["float"][1] - skips["compressed"][1]
        if name != "blocks.2.conv2":
            assert torch.allclose(target, plain, atol=1e-4), name
        else:
            assert not torch.allclose(target, plain, atol=1e-2)


def test_least_squares_equals_the_normal_equations() -> None:
    torch.manual_seed(0)
    layer = nn.Conv2d(4, 5, 3, padding=1)
    inputs = torch.randn(60, 4, 6, 6)
    with torch.no_grad():
        other = nn.Conv2d(4, 5, 3, padding=1)
        target = other(inputs) + 0.1 * torch.randn(60, 5, 6, 6)
        problem = Problem.of(layer, inputs, target, samples=None, seed=0)
        change = problem.change()
        fitted = weight_from_rows(weight_rows(layer.weight, 1, 0) + change, layer.weight.shape, channel_axis(layer))
        bias = layer.bias + problem.bias(change)
        output = nn.functional.conv2d(inputs, fitted, bias, padding=1)
    assert torch.allclose(fitted, other.weight, atol=0.05)
    assert torch.allclose((output - target).mean((0, 2, 3)), torch.zeros(5), atol=1e-5)
    relative = float((output - target).square().mean() / target.var((0, 2, 3), correction=0).mean())
    assert problem.error(change) == pytest.approx(relative, rel=1e-3)


def test_without_a_graph() -> None:
    class Branching(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = nn.Linear(12, 24)
            self.head = nn.Linear(24, 3)

        def forward(self, x: Tensor) -> Tensor:
            y = self.body(x).relu()
            return self.head(y) if float(x.sum()) != math.pi else self.head(-y)

    torch.manual_seed(0)
    inputs = torch.randn(300, 12) @ torch.randn(12, 12)
    network = build_network(Branching().eval(), inputs[:2])
    assert network.graph is None
    compressed = candidate_of(network, QuantizeWeights(bits=3))
    found = find_finish("ptq")(network, compressed, [inputs])
    fresh = inputs[:100].roll(1, 0) * 0.9
    assert output_error(network, found.compressed, fresh) < 0.7 * output_error(network, compressed, fresh)


def test_layers_used_twice_and_embeddings_stay(images: Tensor) -> None:
    class Tokens(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Embedding(10, 8)
            self.body = nn.Linear(8, 8)
            self.head = nn.Linear(8, 4)

        def forward(self, x: Tensor) -> Tensor:
            y = self.table(x)
            return self.head(self.body(self.body(y).relu()).mean(1))

    torch.manual_seed(0)
    tokens = torch.randint(0, 10, (64, 5))
    network = build_network(Tokens().eval(), tokens[:2])
    compressed = candidate_of(network, QuantizeWeights(bits=4))
    found = find_finish("ptq")(network, compressed, [tokens])
    assert [f.layer for f in found.layers] == ["head"]
    assert len(found.notes) == 2
    for key in ("table.weight", "body.weight"):
        assert found.compressed.tensors[key] is compressed.tensors[key]


def test_memory_limit_takes_fewer_images(network: Network, images: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ptq, "_WALK_BYTES", 40 * live_bytes(network, images[:2]))
    found = find_finish("ptq")(network, candidate_of(network, QuantizeWeights(bits=4)), [images])
    assert any("40 of 96" in note for note in found.notes)


def test_none_changes_nothing(network: Network, images: Tensor) -> None:
    compressed = candidate_of(network, QuantizeWeights(bits=4))
    assert find_finish("none")(network, compressed, [images]).compressed is compressed


def test_names() -> None:
    with pytest.raises(UnsupportedError, match="--finish qat comes in a later version; use ptq"):
        find_finish("qat")
    with pytest.raises(UnknownNameError, match="ptq"):
        find_finish("pqt")


def test_bad_images(network: Network) -> None:
    compressed = candidate_of(network, QuantizeWeights(bits=4))
    with pytest.raises(DataError, match="at least one"):
        find_finish("ptq")(network, compressed, [])
    with pytest.raises(DataError, match="stem"):
        find_finish("ptq")(network, compressed, [torch.full((4, 3, 8, 8), float("nan"))])


@pytest.mark.parametrize(
    "choice",
    [
        Choice((Sparsify(ratio=0.5),)),
        Choice((Sparsify(ratio=0.5), QuantizeWeights(step=0.7))),
        Choice((Sparsify(pattern="2:4"), QuantizeWeights(bits=4))),
        Choice((ClusterWeights(entries=8),)),
        Choice((TernarizeWeights(),)),
        Choice((DctKernels(step=0.7),)),
        Choice((QuantizeWeights(step=0.7, rounding="rate"),)),
    ],
    ids=lambda c: c.label(),
)
def test_what_a_layer_is_stored_as_stays(network: Network, images: Tensor, choice: Choice) -> None:
    """Its kind, its zeros, and a network that is no worse on other images."""

    def lookup(unit: str, wanted: Choice) -> dict[str, Encoding]:
        problem = LayerProblem.of(network, unit, hessian=hessians(unit))
        return {network.layers[unit].weight: compress_layer(problem, [wanted])[0]}

    hessians = Hessians(network, images)
    legal = [n for n, layer in network.layers.items() if legal_weights(layer, choice) is None]
    assert legal
    plain = stitch(network, Candidate(dict.fromkeys(legal, choice)), lookup)
    compressed = restore_statistics(network, plain, [images])
    finished = find_finish("ptq")(network, compressed, [images]).compressed
    for name in legal:
        key = network.layers[name].weight
        old, new = compressed.tensors[key], finished.tensors[key]
        assert type(new) is type(old)
        if choice.get("sparsity") is not None:
            share = 0.5 - 2 / old.decode().numel()
            assert float((new.decode() == 0).float().mean()) >= share
    fresh = smooth(200, 1)
    assert output_error(network, finished, fresh) <= 1.1 * output_error(network, compressed, fresh)
