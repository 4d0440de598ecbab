"""Pruned networks against the same networks with channels set to zero; settings, rounding and compensation."""

from __future__ import annotations

import copy
import functools

import onnx
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from autocomp.core.candidate import Candidate
from autocomp.core.compressed import CompressedModel
from autocomp.core.hardware import Placement
from autocomp.core.network import Network
from autocomp.core.steps import StepConfig
from autocomp.core.variant import Variant
from autocomp.errors import ConfigError, DataError, UnknownNameError
from autocomp.graph.capture import first_tensor
from autocomp.graph.coupling import Coupling, coupled_groups
from autocomp.graph.edit import apply_edits
from autocomp.graph.trace import build_network
from autocomp.runtimes.export import OnnxExporter
from autocomp.testing.networks import EXAMPLES, randomised
from autocomp.transforms import _refit
from autocomp.transforms._importance import CRITERIA, FROM_DATA, importance
from autocomp.transforms.prune import (
    PruneChannels,
    global_ratios,
    iterative_prune,
    kept_channels,
    legal_prune,
    prune_channels,
    pruned_modules,
    schedule,
)
from autocomp.workloads.models import build


class Encoder(nn.Module):
    """A transformer encoder block with heads that can be removed; input [n, 6, 12]."""

    def __init__(self) -> None:
        super().__init__()
        self.num_heads, self.head_dim = 3, 4
        self.norm1, self.norm2 = nn.LayerNorm(12), nn.LayerNorm(12)
        self.query, self.key, self.value = (nn.Linear(12, 12) for _ in range(3))
        self.out = nn.Linear(12, 12)
        self.mlp = nn.Sequential(nn.Linear(12, 20), nn.GELU(), nn.Linear(20, 12))
        self.head = nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        n, t, _ = x.shape
        y = self.norm1(x)
        q, k, v = (
            layer(y).view(n, t, self.num_heads, self.head_dim).transpose(1, 2)
            for layer in (self.query, self.key, self.value)
        )
        x = x + self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        return self.head((x + self.mlp(self.norm2(x))).mean(1))  # type: ignore[no-any-return]


class Grouped(nn.Module):
    """A grouped convolution and a flatten; input [n, 3, 8, 8]."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.grouped = nn.Conv2d(8, 12, 3, groups=2)
        self.fc = nn.Linear(12 * 9, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.grouped(F.relu(self.stem(x))))
        return self.fc(F.max_pool2d(x, 2).flatten(1))  # type: ignore[no-any-return]


SHAPES = {
    **{name: shape for name, (_, shape) in EXAMPLES.items()},
    "encoder": (6, 12),
    "grouped": (3, 8, 8),
    "resnet18": (3, 32, 32),
    "resnet20": (3, 16, 16),
}


@functools.cache
def case(name: str) -> tuple[Network, Coupling, Tensor]:
    """A network, its groups and 24 inputs."""
    if name in EXAMPLES:
        model: nn.Module = EXAMPLES[name][0]()
    else:
        model = {"encoder": Encoder, "grouped": Grouped}[name]() if name in ("encoder", "grouped") else build(name, 10)
    inputs = torch.randn(24, *SHAPES[name], generator=torch.Generator().manual_seed(3))
    network = build_network(randomised(model), inputs[:2])
    return network, coupled_groups(network), inputs


def every(coupling: Coupling, ratio: float = 0.4, criterion: str = "l1") -> dict[str, PruneChannels]:
    return {root: PruneChannels(ratio=ratio, criterion=criterion) for root in coupling.groups}


def run(module: nn.Module, inputs: Tensor) -> Tensor:
    with torch.no_grad():
        return first_tensor(module(inputs))


def error(variant: Variant, network: Network, inputs: Tensor) -> float:
    expected = run(network.module, inputs)
    return float((run(variant.network.module, inputs) - expected).norm() / expected.norm())


def masked(network: Network, variant: Variant) -> nn.Module:
    """The whole network, the layers' removed output channels set to zero: reads nothing but origins."""
    module = copy.deepcopy(network.module)
    for origin in variant.origins.values():
        if origin.outputs is None:
            continue
        layer = network.layers[origin.layer]
        target = module.get_submodule(origin.layer)
        gone = torch.ones(target.bias.shape[0], dtype=torch.bool)
        gone[origin.outputs] = False
        target.bias.data[gone] = 0
        if layer.kind.startswith("conv_transpose"):
            grouped = target.weight.data.view(layer.groups, -1, *target.weight.shape[1:]).transpose(1, 2).flatten(0, 1)
            grouped[gone] = 0
            back = grouped.view(layer.groups, target.weight.shape[1], -1, *target.weight.shape[2:]).transpose(1, 2)
            target.weight.data.copy_(back.reshape(target.weight.shape))
        else:
            target.weight.data[gone] = 0
    return module


NETWORKS = ["plain", "residual", "depthwise", "concat", "mlp", "audio", "encoder", "grouped", "resnet18", "resnet20"]


@pytest.mark.parametrize("name", NETWORKS)
def test_pruned_equals_masked(name):
    """Rounding of sums in another order: 1e-5 of the largest output, after at most 20 layers."""
    network, coupling, inputs = case(name)
    assert coupling.groups
    before = {key: t.clone() for key, t in network.module.state_dict().items()}
    base = Variant.base(network)
    variant = prune_channels(base, every(coupling), coupling=coupling, compensate=False)
    expected, found = run(masked(network, variant), inputs), run(variant.network.module, inputs)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5 * float(expected.abs().max()))
    assert not torch.allclose(expected, run(network.module, inputs), atol=1e-3 * float(expected.abs().max()))
    assert all(torch.equal(before[key], t) for key, t in network.module.state_dict().items())
    assert (base.network, base.edits) == (network, ())


@pytest.mark.parametrize("name", [name for name in NETWORKS if name != "resnet18"])
def test_edits_and_tensors_make_the_network_again_bit_for_bit(name):
    network, coupling, inputs = case(name)
    variant = prune_channels(Variant.base(network), every(coupling), coupling=coupling, batches=[inputs[:4]])
    again = copy.deepcopy(network.module)
    apply_edits(again, variant.edits)
    again.load_state_dict(variant.network.module.state_dict())
    assert torch.equal(run(again, inputs[:4]), run(variant.network.module, inputs[:4]))
    steps = [every(coupling, 0.6), every(coupling)]  # two that are measured together, and only one wanted
    _, untraced = pruned_modules(network, steps, coupling=coupling, batches=[inputs[:4]])
    assert torch.equal(run(untraced, inputs[:4]), run(variant.network.module, inputs[:4]))


@pytest.mark.parametrize("name", ["plain", "resnet18", "encoder"])
def test_parameters_and_macs_fall(name):
    network, coupling, _ = case(name)
    variant = prune_channels(Variant.base(network), every(coupling, 0.5), coupling=coupling, compensate=False)
    small, large = variant.network.layers, network.layers
    assert all(small[n].parameters <= large[n].parameters for n in large)
    for root, group in coupling.groups.items():
        for n in group.layers:
            half = large[n].weight_shape[0] // 2
            assert small[n].weight_shape[0] == (half if not group.heads else 8), root
            assert len(variant.origins[n].outputs) == small[n].weight_shape[0]
    if name == "resnet18":
        share = sum(v.macs for v in small.values()) / sum(v.macs for v in large.values())
        assert 0.24 < share < 0.3  # a quarter, but for the stem and the classifier


def test_pruning_twice_composes_origins_and_folds():
    network, coupling, _ = case("residual")
    steps = {"layer1.0.conv1": PruneChannels(ratio=0.5)}
    once = prune_channels(Variant.base(network), steps, coupling=coupling, compensate=False)
    twice = prune_channels(once, steps, coupling=coupled_groups(once.network), compensate=False)
    kept = twice.origins["layer1.0.conv1"].outputs
    assert len(kept) == 2
    base_weight = network.module.get_parameter("layer1.0.conv1.weight")
    assert torch.equal(twice.network.module.get_parameter("layer1.0.conv1.weight"), base_weight[kept])
    fold = twice.network.folds["layer1.0.conv1"]
    assert torch.equal(fold.std, network.folds["layer1.0.conv1"].std[kept])
    assert twice.origins["conv1"].outputs is None


def test_heads_and_their_number_are_removed():
    network, coupling, inputs = case("encoder")
    variant = prune_channels(
        Variant.base(network), {"query": PruneChannels(ratio=0.3)}, coupling=coupling, batches=[inputs]
    )
    assert variant.network.module.num_heads == 2
    assert variant.network.layers["value"].weight_shape == (8, 12)
    assert variant.network.layers["out"].weight_shape == (12, 8)
    kept = variant.origins["value"].outputs
    assert torch.equal(kept.view(2, 4)[:, 0] % 4, torch.zeros(2, dtype=torch.long))


def test_onnx_export_is_smaller():
    network, coupling, _ = case("plain")
    variant = prune_channels(Variant.base(network), every(coupling, 0.5), coupling=coupling, compensate=False)
    plain = CompressedModel(candidate=Candidate({}), tensors={})
    graph = onnx.load_model_from_string(OnnxExporter(variant.network).export(plain, Placement())).graph
    shapes = {tuple(i.dims) for i in graph.initializer}
    assert {(4, 3, 3, 3), (6, 4, 3, 3)} <= shapes  # they were [8, 3, 3, 3] and [12, 8, 3, 3]
    assert not {(8, 3, 3, 3), (12, 8, 3, 3)} & shapes


@pytest.mark.parametrize("name", ["plain", "residual", "depthwise", "concat", "encoder", "grouped"])
@pytest.mark.parametrize("criterion", ["l1", "random"])
def test_compensation_lowers_the_error(name, criterion):
    network, coupling, inputs = case(name)
    errors = [
        error(
            prune_channels(
                Variant.base(network),
                every(coupling, 0.3, criterion),
                coupling=coupling,
                batches=[inputs[:10], inputs[10:]],
                compensate=compensate,
            ),
            network,
            inputs,
        )
        for compensate in (False, True)
    ]
    assert errors[1] < 0.7 * errors[0]


@pytest.mark.parametrize("room", [1 << 28, 150])
def test_what_was_measured_for_one_structure_serves_others(room, monkeypatch):
    """Layers of all structures are looked at once, while there is room; the networks are the same bit for bit."""
    network, coupling, inputs = case("residual")
    looked: list[str] = []

    def counted(network, names, batches):
        looked.extend(names)
        return measure(network, names, batches)

    measure = _refit._hessians
    monkeypatch.setattr(_refit, "_hessians", counted)
    monkeypatch.setattr(_refit, "_HESSIAN_VALUES", room)
    known: dict = {}
    steps = [every(coupling, 0.5), every(coupling, 0.25), every(coupling, 0.5, "random")]
    for structure in steps:
        made = [
            prune_channels(Variant.base(network), structure, coupling=coupling, batches=[inputs], known=memory)
            for memory in (None, known)
        ]
        states = [variant.network.module.state_dict() for variant in made]
        assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])
    layers = set(looked)
    assert sum(second.numel() for h in known.values() for second in h.second) <= room
    assert set(known) == layers if room > 1000 else set(known) < layers
    assert all(looked.count(name) == (4 if name in known else 6) for name in layers)


def test_compensation_is_least_squares():
    """Against torch.linalg.lstsq on the layer's inputs; the rest is damping, 1 % of the mean variance."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 5))
    inputs = torch.randn(2000, 6)
    network = build_network(model, inputs[:2])
    coupling = coupled_groups(network)
    variant = prune_channels(
        Variant.base(network), {"0": PruneChannels(ratio=0.5)}, coupling=coupling, batches=[inputs]
    )
    kept = variant.origins["0"].outputs
    hidden, target = torch.relu(run(model[0], inputs)), run(model, inputs)
    design = torch.cat([hidden[:, kept], torch.ones(len(inputs), 1)], 1)
    best = design @ torch.linalg.lstsq(design, target).solution
    least = float((best - target).square().mean())
    found = float((run(variant.network.module, inputs) - target).square().mean())
    assert least <= found * (1 + 1e-5)
    assert found < 1.02 * least


@pytest.mark.parametrize("criterion", list(CRITERIA))
def test_a_dead_channel_goes_first(criterion):
    """A channel that is always zero matters to no criterion (random has no opinion)."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 6, 3), nn.ReLU(), nn.Flatten(), nn.Linear(24, 5)
    )
    randomised(model)
    model[0].weight.data[5] = 0
    model[1].weight.data[5] = model[1].bias.data[5] = model[1].running_mean.data[5] = 0
    inputs = torch.randn(12, 3, 6, 6)
    network = build_network(model, inputs[:2])
    group = coupled_groups(network).groups["0"]
    scores = importance(network, [group], criterion, batches=[inputs])["0"]
    assert scores.shape == (8,)
    assert bool((scores >= 0).all())
    if criterion != "random":
        assert int(scores.argmin()) == 5
        assert float(scores[5]) < 1e-6 * float(scores.max())


@pytest.mark.parametrize("criterion", list(CRITERIA))
def test_criteria_repeat_and_sum_over_coupled_layers(criterion):
    network, coupling, inputs = case("residual")
    groups = coupling.groups.values()
    first = importance(network, groups, criterion, batches=[inputs], seed=4)
    again = importance(network, groups, criterion, batches=[inputs], seed=4)
    assert all(torch.equal(first[root], again[root]) for root in first)
    assert {root: len(s) for root, s in first.items()} == {root: g.channels for root, g in coupling.groups.items()}
    if criterion == "l1":
        weights = [network.module.get_parameter(f"{n}.weight") for n in ("conv1", "layer1.0.conv2")]
        torch.testing.assert_close(first["conv1"], sum(w.abs().sum((1, 2, 3)) for w in weights))
    if criterion == "bn_scale":
        folds = [network.folds[n].std for n in ("conv1", "layer1.0.conv2")]
        torch.testing.assert_close(first["conv1"], folds[0] + folds[1])


def test_taylor_and_activation_against_plain_autograd():
    network, coupling, inputs = case("plain")
    groups = [coupling.groups["conv2"]]
    module = network.module
    hidden = module.relu(module.conv1(inputs))
    values = F.relu6(module.bn2(module.conv2(hidden))).detach().requires_grad_()
    torch.testing.assert_close(
        importance(network, groups, "activation", batches=[inputs])["conv2"], values.detach().mean((0, 2, 3))
    )
    logits = module.fc(module.pool(values).flatten(1))
    F.cross_entropy(logits, logits.argmax(1), reduction="sum").backward()
    expected = (values * values.grad).sum((2, 3)).abs().mean(0).detach()
    torch.testing.assert_close(importance(network, groups, "taylor", batches=[inputs])["conv2"], expected)


@pytest.mark.parametrize("ratio", [0.0, 1.0, -0.1, 1.5, float("nan")])
def test_ratio_outside_the_open_interval_is_an_error(ratio):
    with pytest.raises(ConfigError, match=r"prune_channels\.ratio"):
        PruneChannels(ratio=ratio)


def test_settings():
    assert PruneChannels(ratio=0.25).label() == "p0.25"
    assert len({PruneChannels(ratio=0.25, criterion=c).label() for c in CRITERIA}) == len(CRITERIA)
    step = PruneChannels(ratio=0.5, criterion="taylor")
    assert StepConfig.from_json(step.to_json()) == step
    with pytest.raises(ConfigError, match="criterion"):
        PruneChannels(ratio=0.5, criterion="l3")


def test_what_cannot_be_pruned_is_an_error():
    network, coupling, inputs = case("plain")
    base = Variant.base(network)
    with pytest.raises(UnknownNameError):  # tied to the output
        prune_channels(base, {"fc": PruneChannels(ratio=0.5)}, coupling=coupling, batches=[inputs])
    with pytest.raises(ConfigError, match="removes none"):
        prune_channels(base, {"conv1": PruneChannels(ratio=0.01)}, coupling=coupling, batches=[inputs])
    with pytest.raises(ConfigError, match="needs calibration inputs"):
        prune_channels(base, {"conv1": PruneChannels(ratio=0.5)}, coupling=coupling)
    for criterion in FROM_DATA:
        with pytest.raises(ConfigError, match="needs calibration inputs"):
            importance(network, coupling.groups.values(), criterion)
    with pytest.raises(DataError):
        prune_channels(base, {"conv1": PruneChannels(ratio=0.5)}, coupling=coupling, batches=[])
    small = prune_channels(base, {"conv1": PruneChannels(ratio=0.5)}, coupling=coupling, compensate=False)
    with pytest.raises(ConfigError, match="anew"):
        prune_channels(small, {"conv1": PruneChannels(ratio=0.5)}, coupling=coupling, compensate=False)
    with pytest.raises(ConfigError, match="no BatchNorm"):
        importance(*(lambda n, c: (n, c.groups.values()))(*case("concat")[:2]), "bn_scale")


def test_legality_needs_no_computation():
    coupling = case("plain")[1]
    group = coupling.groups["conv2"]
    assert legal_prune(group, 0.5) is None
    assert legal_prune(group, 0.5, multiple=4) is None
    assert legal_prune(group, 0.1, multiple=8) is None  # 12 becomes 8
    assert "multiples of 16 removes none" in legal_prune(group, 0.5, multiple=16)
    one = coupling.after({"conv2": torch.arange(12) == 3}).groups["conv2"]
    assert "one has to stay" in legal_prune(one, 0.9)


@given(st.integers(1, 3000), st.floats(1e-6, 1 - 1e-6), st.sampled_from([1, 2, 3, 4, 8, 16, 32, 64]))
def test_rounding(channels, ratio, multiple):
    kept = kept_channels(channels, ratio, multiple=multiple)
    assert 1 <= kept <= channels
    assert kept % multiple == 0 or kept == channels
    if multiple <= channels:
        wanted = channels * (1 - ratio)
        assert abs(kept - wanted) <= multiple / 2 + 1e-6 or kept == multiple


def test_multiples_hold_for_every_layer_of_a_residual_network():
    network, coupling, _ = case("resnet18")
    variant = prune_channels(
        Variant.base(network), every(coupling, 0.3), coupling=coupling, multiple=16, compensate=False
    )
    assert all(layer.weight_shape[0] % 16 == 0 for n, layer in variant.network.layers.items() if n != "fc")
    assert variant.network.layers["conv1"].weight_shape[0] == 48


def test_multiples_are_of_channels_and_not_of_entries():
    group = case("depthwise")[1].groups["expand.0"]  # four entries of three channels each
    assert legal_prune(group, 0.5, multiple=6) is None
    assert "removes none" in legal_prune(group, 0.5, multiple=8)


def test_global_ratios_take_more_where_scores_say_so():
    _, coupling, _ = case("residual")
    scores = {root: torch.ones(g.channels) for root, g in coupling.groups.items()}
    scores["layer1.1.conv1"] = torch.cat([torch.full((12,), 1e-3), torch.ones(4)])
    ratios = global_ratios(coupling, scores, 12 / sum(len(s) for s in scores.values()))
    assert ratios == {"layer1.1.conv1": 12 / 16}
    for share in (0.01, 0.3, 0.7, 0.99):
        for root, ratio in global_ratios(coupling, scores, share).items():
            assert 0 < ratio < 1
            assert legal_prune(coupling.groups[root], ratio) is None
    with pytest.raises(ConfigError):
        global_ratios(coupling, scores, 1.0)


def test_global_ratios_are_lamp():
    """LAMP by its definition: a score over the sum of all scores of its group that are not smaller."""
    _, coupling, _ = case("plain")
    generator = torch.Generator().manual_seed(0)
    scores = {root: torch.rand(g.channels, generator=generator) for root, g in coupling.groups.items()}
    lamp = [(float(s / v[v >= s].sum()), root) for root, v in scores.items() for s in v]
    gone = [root for _, root in sorted(lamp)[:8]]
    expected = {root: gone.count(root) / g.channels for root, g in coupling.groups.items() if root in gone}
    assert global_ratios(coupling, scores, 8 / len(lamp)) == expected


def test_schedule_is_cubic_and_ends_at_the_ratio():
    ratios = schedule(0.8, 4)
    assert ratios == pytest.approx([0.8 * (1 - (1 - i / 4) ** 3) for i in range(1, 5)])
    assert ratios[-1] == 0.8
    assert ratios == sorted(ratios)
    with pytest.raises(ConfigError):
        schedule(0.5, 0)


def test_iterative_pruning_reaches_the_same_sizes_and_tunes_in_between():
    network, coupling, inputs = case("residual")
    target = run(network.module, inputs)
    seen = []

    def tune(module: nn.Module) -> None:
        seen.append(sum(p.numel() for p in module.parameters()))
        optimiser = torch.optim.Adam(module.parameters(), 1e-3)
        for _ in range(10):
            optimiser.zero_grad()
            F.mse_loss(module(inputs), target).backward()
            optimiser.step()

    options = {"coupling": coupling, "batches": [inputs], "multiple": 2}
    steps = every(coupling, 0.6)
    at_once = prune_channels(Variant.base(network), steps, **options)
    plain = iterative_prune(Variant.base(network), steps, rounds=3, **options)
    tuned = iterative_prune(Variant.base(network), steps, rounds=3, tune=tune, **options)
    for variant in (plain, tuned):
        shapes = {n: layer.weight_shape for n, layer in variant.network.layers.items()}
        assert shapes == {n: layer.weight_shape for n, layer in at_once.network.layers.items()}
    assert len(seen) == 3
    assert seen == sorted(seen, reverse=True)
    assert error(tuned, network, inputs) < error(plain, network, inputs)
    assert not tuned.network.folds
    assert not any(p.requires_grad for p in tuned.network.module.parameters())
    with pytest.raises(ConfigError, match="bn_scale"):
        iterative_prune(Variant.base(network), every(coupling, 0.5, "bn_scale"), tune=tune, **options)


def test_inputs_that_hardly_vary_around_a_large_mean_are_refitted_too():
    model = nn.Sequential(nn.Conv2d(3, 48, 1), nn.ReLU(), nn.Conv2d(48, 8, 3), nn.Flatten(), nn.Linear(8 * 36, 5))
    with torch.no_grad():
        model[0].weight.mul_(1e-2)
        model[0].bias.fill_(300.0)  # its covariance in float32 has negative eigenvalues beyond the usual damping
    images = torch.randn(6, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    network = build_network(model.eval(), images)
    coupling, steps = coupled_groups(network), {"0": PruneChannels(ratio=0.5)}
    assert "0" in coupling.groups
    pruned = prune_channels(Variant.base(network), steps, coupling=coupling, batches=[images])
    with torch.inference_mode():
        expected, found = model(images), pruned.network.module(images)
    assert torch.allclose(found, expected, atol=1e-2 * float(expected.abs().max()))
