"""Statistics of layer outputs come back after rounding."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import autocomp.transforms.observe as observe
from autocomp.core.candidate import Candidate
from autocomp.core.compressed import CompressedModel
from autocomp.core.encodings import Encoding, FloatTensor, QuantizedTensor
from autocomp.core.network import Network
from autocomp.core.steps import Choice
from autocomp.errors import DataError
from autocomp.graph.trace import build_network
from autocomp.transforms.binarize import TernarizeWeights
from autocomp.transforms.dct import DctKernels
from autocomp.transforms.hashing import HashWeights
from autocomp.transforms.nonuniform import PowerOfTwo
from autocomp.transforms.observe import decoded_module, moments
from autocomp.transforms.problem import LayerProblem
from autocomp.transforms.quantize import QuantizeWeights
from autocomp.transforms.share import ClusterWeights, VectorQuantize
from autocomp.transforms.statistics import FloatStatistics, restore_layer, restore_statistics
from autocomp.transforms.stitch import stitch
from autocomp.transforms.weight_step import WeightStep
from autocomp.transforms.weights import compress_layer


class Small(nn.Module):
    """Folded norms, a norm that cannot be folded, a grouped and a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 8, 3, padding=1)
        self.bn1 = nn.BatchNorm2d(8)
        self.conv2 = nn.Conv2d(8, 8, 3, padding=1, groups=4, bias=False)
        self.bn2 = nn.BatchNorm2d(8)
        self.pre = nn.BatchNorm2d(8)
        self.conv3 = nn.Conv2d(8, 6, 1)
        self.head = nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.bn1(self.conv1(x)).relu()
        x = x + self.bn2(self.conv2(x))
        x = self.conv3(self.pre(x).relu())
        return self.head(x.mean((2, 3)))


@pytest.fixture(scope="module")
def images() -> Tensor:
    return torch.randn(64, 3, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 + 0.3


@pytest.fixture(scope="module")
def network(images: Tensor) -> Network:
    torch.manual_seed(0)
    model = Small()
    with torch.no_grad():
        for _ in range(60):
            model(images)  # running statistics that fit the data
    return build_network(model.eval(), images[:2])


def rounded(network: Network, config: QuantizeWeights) -> CompressedModel:
    def lookup(unit: str, choice: Choice) -> dict[str, Encoding]:
        return {network.layers[unit].weight: compress_layer(LayerProblem.of(network, unit), [Choice((config,))])[0]}

    return stitch(network, Candidate({name: Choice((config,)) for name in network.layers}), lookup)


def outputs_of(network: Network, compressed: CompressedModel | None, images: Tensor) -> dict[str, Tensor]:
    tensors = {} if compressed is None else {k: e.decode() for k, e in compressed.tensors.items()}
    module = decoded_module(network.module, tensors)
    seen: dict[str, Tensor] = {}
    for name in network.layers:
        module.get_submodule(name).register_forward_hook(lambda _m, _a, out, n=name: seen.__setitem__(n, out))
    with torch.inference_mode():
        seen["output"] = module(images)
    return seen


def test_the_fixture_has_both_kinds_of_norm(network: Network) -> None:
    assert set(network.folds) == {"conv1", "conv2"}
    assert "pre.running_var" in network.module.state_dict()


def test_means_and_deviations_are_the_float_networks(network: Network, images: Tensor) -> None:
    compressed = rounded(network, QuantizeWeights(step=1.2))
    known = FloatStatistics.of(network, [images])
    restored = restore_statistics(network, compressed, [images[:40], images[40:]], known)
    float_outputs = outputs_of(network, None, images)
    before, after = outputs_of(network, compressed, images), outputs_of(network, restored, images)
    for name in network.layers:
        axis = -1 if name == "head" else 1
        mean, variance, _ = moments(float_outputs[name], axis)
        found_mean, found_variance, _ = moments(after[name], axis)
        # gains and biases are stored with 11 bits, and each layer's shift moves the next one's input
        assert torch.allclose(found_mean, mean, atol=2e-3)
        if name in network.folds:
            assert torch.allclose(found_variance, variance, rtol=1e-2)
    errors = [float((run["output"] - float_outputs["output"]).square().mean()) for run in (before, after)]
    assert errors[1] < 0.7 * errors[0]


def test_learned_statistics_are_the_target_without_float_statistics(network: Network, images: Tensor) -> None:
    restored = restore_statistics(network, rounded(network, QuantizeWeights(bits=3)), [images])
    found = outputs_of(network, restored, images)
    for name, fold in network.folds.items():
        mean, variance, _ = moments(found[name], 1)
        assert torch.allclose(mean, fold.mean, atol=2e-3)
        assert torch.allclose(variance.sqrt(), fold.std, rtol=4e-3)
    module = decoded_module(network.module, {k: e.decode() for k, e in restored.tensors.items()})
    norm_inputs: list[Tensor] = []
    module.get_submodule("pre").register_forward_pre_hook(lambda _m, args: norm_inputs.append(args[0]))
    with torch.inference_mode():
        module(images)
    mean, variance, _ = moments(norm_inputs[0], 1)
    assert torch.allclose(restored.tensors["pre.running_mean"].decode(), mean, atol=2e-3)
    assert torch.allclose(restored.tensors["pre.running_var"].decode(), variance, rtol=4e-3)


def test_uncompressed_network_stays_as_it_is(network: Network, images: Tensor) -> None:
    plain = stitch(network, Candidate({}), lambda _u, _c: {})
    restored = restore_statistics(network, plain, [images], FloatStatistics.of(network, [images]))
    for key, encoding in plain.tensors.items():
        assert torch.allclose(restored.tensors[key].decode(), encoding.decode(), rtol=2e-3, atol=2e-3), key


@pytest.mark.parametrize("granularity", ["channel", "tensor"])
@pytest.mark.parametrize("bits", [3, 16])
def test_stored_sizes_do_not_change(network: Network, images: Tensor, granularity: str, bits: int) -> None:
    compressed = rounded(network, QuantizeWeights(bits=bits, granularity=granularity))
    restored = restore_statistics(network, compressed, [images])
    assert restored.tensors.keys() == compressed.tensors.keys()
    for key, old in compressed.tensors.items():
        new = restored.tensors[key]
        if isinstance(old, QuantizedTensor):
            assert isinstance(new, QuantizedTensor)
            assert torch.equal(new.symbols, old.symbols)
            assert new.scale.shape == old.scale.shape
        else:
            assert isinstance(new, FloatTensor)
            assert new.width == old.width


def test_input_is_untouched(network: Network, images: Tensor) -> None:
    compressed = rounded(network, QuantizeWeights(bits=3))
    before = {k: e.decode().clone() for k, e in compressed.tensors.items()}
    floats = {k: v.clone() for k, v in network.module.state_dict().items()}
    restored = restore_statistics(network, compressed, [images], FloatStatistics.of(network, [images]))
    assert all(torch.equal(before[k], e.decode()) for k, e in compressed.tensors.items())
    assert all(torch.equal(floats[k], v) for k, v in network.module.state_dict().items())
    assert restored.steps == (*compressed.steps, "restore_statistics")
    assert not network.module.conv1._forward_hooks


def test_chunks_agree_with_one_batch(network: Network, images: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    compressed = rounded(network, QuantizeWeights(bits=4))
    whole = restore_statistics(network, compressed, [images])
    known = FloatStatistics.of(network, [images])
    monkeypatch.setattr(observe, "_PASS_BYTES", 16 * 4 * 4 * 8 * 64)
    assert len(observe.image_chunks(network, [images])) == 4
    parts = restore_statistics(network, compressed, [images])
    chunked = FloatStatistics.of(network, [images])
    for name in known.mean:
        assert torch.allclose(known.mean[name], chunked.mean[name], atol=1e-5)
        assert torch.allclose(known.std[name], chunked.std[name], rtol=1e-4)
    first = whole.tensors["conv1.weight"], parts.tensors["conv1.weight"]
    # nothing is normalised before the first layer, so pooled statistics are exact there
    assert torch.allclose(first[0].decode(), first[1].decode(), rtol=1e-3)
    for key in whole.tensors:
        assert torch.allclose(whole.tensors[key].decode(), parts.tensors[key].decode(), rtol=0.3, atol=0.3), key


def test_dead_channels_keep_their_scale(network: Network, images: Tensor) -> None:
    compressed = rounded(network, QuantizeWeights(bits=4))
    old = compressed.tensors["conv1.weight"]
    assert isinstance(old, QuantizedTensor)
    symbols = old.symbols.clone()
    symbols[2] = 0
    dead = QuantizedTensor(symbols=symbols, scale=old.scale, axis=0, bits=4)
    restored = restore_statistics(
        network, compressed.replace(tensors={**compressed.tensors, "conv1.weight": dead}), [images]
    )
    new = restored.tensors["conv1.weight"]
    assert isinstance(new, QuantizedTensor)
    assert float(new.scale[2]) == pytest.approx(float(old.scale[2]), rel=2e-3)
    assert float(restored.tensors["conv1.bias"].decode()[2]) == pytest.approx(
        float(network.folds["conv1"].mean[2]), abs=2e-3
    )


def test_reused_layer_gets_its_mean_bias_only() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = nn.Linear(6, 6)
            self.head = nn.Linear(6, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.body(self.body(x).relu()).relu())

    torch.manual_seed(0)
    inputs = torch.randn(50, 6)
    network = build_network(Twice().eval(), inputs[:2])
    compressed = rounded(network, QuantizeWeights(bits=2))
    restored = restore_statistics(network, compressed, [inputs], FloatStatistics.of(network, [inputs]))
    old, new = compressed.tensors["body.weight"], restored.tensors["body.weight"]
    assert torch.equal(old.decode(), new.decode())
    assert not torch.equal(compressed.tensors["body.bias"].decode(), restored.tensors["body.bias"].decode())


def test_moments_are_exact_where_the_mean_dominates() -> None:
    values = (
        torch.randn(10, 3, 5, 5, dtype=torch.float64)
        + torch.tensor([0.0, 1e4, -1e3], dtype=torch.float64)[:, None, None]
    )
    _, variance, count = moments(values.float(), 1)
    assert count == 250
    assert torch.allclose(variance.double(), values.float().double().var((0, 2, 3), correction=0), rtol=1e-4)


def test_bad_images(network: Network) -> None:
    compressed = rounded(network, QuantizeWeights(bits=4))
    with pytest.raises(DataError, match="at least one"):
        restore_statistics(network, compressed, [])
    with pytest.raises(DataError, match="conv1"):
        FloatStatistics.of(network, [torch.full((4, 3, 8, 8), float("nan"))])


@pytest.mark.parametrize(
    "step",
    [
        ClusterWeights(entries=4, granularity="tensor"),
        VectorQuantize(dim=3, entries=4),
        HashWeights(buckets=0.3),
        DctKernels(step=1.5),
        TernarizeWeights(),
        PowerOfTwo(bits=3),
    ],
    ids=lambda s: s.kind,
)
def test_every_encoding_of_a_folded_layer_gets_its_statistics_back(
    network: Network, images: Tensor, step: WeightStep
) -> None:
    layer, fold = network.layers["conv1"], network.folds["conv1"]
    weight = step.encode(LayerProblem.of(network, "conv1", seed=3))
    assert layer.bias is not None
    bias = FloatTensor(values=network.module.get_parameter(layer.bias).detach())

    def output(weight: Encoding, bias: FloatTensor) -> Tensor:
        return nn.functional.conv2d(images, weight.decode(), bias.decode(), padding=1)

    target = network.module.get_submodule("conv1")(images).detach()
    new_weight, new_bias = restore_layer(network, layer, weight, bias, target, output(weight, bias))
    assert type(new_weight) is type(weight)
    mean, variance, _ = moments(output(new_weight, new_bias), 1)
    wanted_mean, wanted_variance, _ = moments(target, 1)
    assert torch.allclose(mean, wanted_mean, atol=1e-3 * float(fold.std.max()))
    # scales keep 8 significant bits
    assert torch.allclose(variance.sqrt(), wanted_variance.sqrt(), rtol=2**-8 + 5e-4)
