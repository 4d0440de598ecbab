"""Coupled groups of networks built in different ways, and what is refused."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from autocomp.core.network import Network
from autocomp.graph.coupling import Coupling, coupled_groups
from autocomp.graph.trace import build_network
from autocomp.testing.families.convolutional import ShuffleUnit
from autocomp.testing.networks import randomised
from autocomp.workloads.models import build


def coupling_of(model: nn.Module, *shape: int) -> Coupling:
    return coupled_groups(network_of(model, *shape))


def network_of(model: nn.Module, *shape: int) -> Network:
    return build_network(randomised(model), torch.randn(2, *shape, generator=torch.Generator().manual_seed(5)))


def summary(coupling: Coupling) -> dict[str, tuple[int, tuple[str, ...], tuple[str, ...]]]:
    return {root: (g.channels, g.layers, g.consumers) for root, g in coupling.groups.items()}


def reasons(coupling: Coupling) -> dict[str, str]:
    return {s.name: s.reason for s in coupling.refused}


def test_plain_network_with_flatten(traced):
    coupling = coupled_groups(traced("plain")[1])
    assert summary(coupling) == {"conv1": (8, ("conv1",), ("conv2",)), "conv2": (12, ("conv2",), ("fc",))}
    assert "network's output" in reasons(coupling)["fc"]
    into_fc = next(c for c in coupling.groups["conv2"].cuts if c.path == "fc" and c.axis == 1)
    assert torch.equal(into_fc.entries, torch.arange(12).repeat_interleave(4))


def test_residual_addition_couples_its_producers(traced):
    assert summary(coupled_groups(traced("residual")[1])) == {
        "conv1": (
            8,
            ("conv1", "layer1.0.conv2"),
            ("layer1.0.conv1", "layer1.1.downsample.0", "layer1.1.conv1"),
        ),
        "layer1.0.conv1": (8, ("layer1.0.conv1",), ("layer1.0.conv2",)),
        "layer1.1.downsample.0": (16, ("layer1.1.downsample.0", "layer1.1.conv2"), ("fc",)),
        "layer1.1.conv1": (16, ("layer1.1.conv1",), ("layer1.1.conv2",)),
    }


def test_depthwise_gates_and_grouped_convolutions(traced):
    groups = coupled_groups(traced("depthwise")[1]).groups
    assert groups["expand.0"].layers == ("expand.0", "depthwise.0", "excite")
    # three groups of the transposed convolution behind have to lose the same channels
    assert (groups["expand.0"].channels, groups["expand.0"].width) == (4, 3)
    assert torch.equal(groups["expand.0"].outputs("depthwise.0"), torch.arange(12) % 4)
    assert (groups["up"].channels, groups["up"].width) == (2, 3)


def test_concatenation_keeps_its_branches_apart(traced):
    groups = coupled_groups(traced("concat")[1]).groups
    assert set(groups) == {"left", "right", "join"}
    into = {root: next(c for c in groups[root].cuts if c.path == "join" and c.axis == 1) for root in ("left", "right")}
    assert torch.equal((into["left"].entries >= 0).nonzero().flatten(), torch.arange(6))
    assert torch.equal((into["right"].entries >= 0).nonzero().flatten(), torch.arange(6, 12))


def test_norm_that_is_not_folded_shrinks_too(traced):
    groups = coupled_groups(traced("preactivation")[1]).groups
    names = {c.name for c in groups["stem"].cuts if c.path == "bn1"}
    assert names == {"weight", "bias", "running_mean", "running_var", "num_features"}


def test_shared_weights_and_reused_modules_are_refused(traced):
    coupling = coupled_groups(traced("shared")[1])
    assert not coupling.groups
    assert "runs 2 times" in reasons(coupling)["first"]
    assert "runs 2 times" in reasons(coupling)["again"]


def test_without_a_graph_there_is_one_reason(traced):
    coupling = coupled_groups(traced("branch")[1])
    assert not coupling.groups
    assert [s.reason.split(":")[0] for s in coupling.refused] == ["no graph to prune in"]


def test_layer_norm_and_multi_head_attention_are_refused_and_the_rest_works(traced):
    coupling = coupled_groups(traced("tokens")[1])
    assert summary(coupling) == {"block.linear1": (16, ("block.linear1",), ("block.linear2",))}
    assert "LayerNorm" in reasons(coupling)["block.linear2"]
    assert "nn.MultiheadAttention" in reasons(coupling)["block.self_attn"]


def test_the_network_is_left_alone(traced):
    network = traced("residual")[1]
    before = {key: t.clone() for key, t in network.module.state_dict().items()}
    coupled_groups(network)
    assert all(torch.equal(before[key], t) for key, t in network.module.state_dict().items())
    assert not any(p.requires_grad for p in network.module.parameters())


class Shuffle(nn.Module):
    """Two halves interleaved as in ShuffleNet; input [n, 3, 8, 8]."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 1)
        self.branch = nn.Conv2d(4, 4, 3, padding=1)
        self.inner = nn.Conv2d(8, 6, 1)
        self.head = nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        first, second = F.relu(self.stem(x)).chunk(2, dim=1)
        y = torch.cat([first, F.relu(self.branch(second))], dim=1)
        n, c, h, w = y.shape
        y = y.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w)
        return self.head(F.relu(self.inner(y)).mean((2, 3)))  # type: ignore[no-any-return]


def test_channel_shuffle_is_refused_and_the_layer_behind_is_not():
    coupling = coupling_of(Shuffle(), 3, 8, 8)
    assert set(coupling.groups) == {"inner"}
    assert {"stem", "branch"} <= set(reasons(coupling))


def test_chains_of_shuffles_do_not_multiply_indices_without_end():
    units = [ShuffleUnit(8, 16, 2), *(ShuffleUnit(16, 16, 1) for _ in range(9)), ShuffleUnit(16, 16, 2)]
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), *units, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 5)
    )
    coupling = coupling_of(model, 3, 16, 16)
    assert set(coupling.groups) == {"0", *(f"{i + 1}.branch2.0.0" for i in range(len(units)))}
    found = reasons(coupling)
    for i in range(2, 10):  # each is refused before the next shuffle doubles what the last one made
        assert "cannot be followed through the reshapes" in found[f"{i}.branch2.2.0"]


class Dense(nn.Module):
    """Concatenation of concatenations as in DenseNet, every output read several times; input [n, 3, 8, 8]."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3, padding=1)
        self.one = nn.Conv2d(6, 4, 3, padding=1)
        self.two = nn.Conv2d(10, 4, 3, padding=1)
        self.head = nn.Linear(14, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        x = torch.cat([x, F.relu(self.one(x))], 1)
        x = torch.cat([x, F.relu(self.two(x))], 1)
        return self.head(x.mean((2, 3)))  # type: ignore[no-any-return]


def test_dense_connections():
    assert summary(coupling_of(Dense(), 3, 8, 8)) == {
        "stem": (6, ("stem",), ("one", "two", "head")),
        "one": (4, ("one",), ("two", "head")),
        "two": (4, ("two",), ("head",)),
    }


class FixedShapes(nn.Module):
    """A reshape to a number written in the code, and a convolution of one channel; input [n, 3, 4, 4]."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 1, 1)
        self.conv = nn.Conv2d(1, 8, 1)
        self.head = nn.Linear(128, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.relu(self.conv(F.relu(self.stem(x)))).view(-1, 128))  # type: ignore[no-any-return]


def test_fixed_shapes_and_single_channels_are_refused():
    found = reasons(coupling_of(FixedShapes(), 3, 4, 4))
    assert "shapes" in found["conv"]
    assert "one channel" in found["stem"]


class Mean(nn.Module):
    """The mean over the channels: removing one changes it, setting it to zero changes it otherwise; input [n, 6]."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(6, 8)
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.first(x))
        return self.head(y - y.mean(1, keepdim=True))  # type: ignore[no-any-return]


def test_verification_finds_what_the_dependency_graph_does_not_know():
    assert "not the same as setting them to zero" in reasons(coupling_of(Mean(), 6))["first"]


class ZeroStart(nn.Module):
    """The layer behind a softmax starts at zero, so that any two outputs would agree; input [n, 6]."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(6, 8)
        self.last = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.softmax(self.inner(x), 1))  # type: ignore[no-any-return]


def test_weights_that_start_at_zero_do_not_hide_a_mistake():
    model = randomised(ZeroStart())
    nn.init.zeros_(model.last.weight)
    coupling = coupled_groups(build_network(model, torch.randn(2, 6)))
    assert "not the same" in reasons(coupling)["inner"]


class Attention(nn.Module):
    """Self-attention whose heads can be removed: shapes follow from the number of heads."""

    def __init__(self, width: int, heads: int, packed: bool, total: bool = False) -> None:
        super().__init__()
        self.num_heads, self.packed = heads, packed
        self.head_dim = width // heads
        if total:
            self.all_head_size = width
        for name in ("qkv",) if packed else ("q_proj", "k_proj", "v_proj"):
            setattr(self, name, nn.Linear(width, 3 * width if packed else width))
        self.out_proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        n, t, _ = x.shape
        if self.packed:
            q, k, v = self.qkv(x).view(n, t, 3, self.num_heads, self.head_dim).permute(2, 0, 3, 1, 4).unbind(0)
        else:
            parts = (self.q_proj(x), self.k_proj(x), self.v_proj(x))
            q, k, v = (p.view(n, t, self.num_heads, self.head_dim).transpose(1, 2) for p in parts)
        y = F.scaled_dot_product_attention(q, k, v).transpose(1, 2)
        return self.out_proj(y.reshape(n, t, getattr(self, "all_head_size", self.num_heads * self.head_dim)))  # type: ignore[no-any-return]


class Encoder(nn.Module):
    """One transformer encoder block over [n, 6, 12]."""

    def __init__(self, packed: bool, total: bool = False) -> None:
        super().__init__()
        self.norm1, self.attention = nn.LayerNorm(12), Attention(12, 3, packed, total)
        self.norm2 = nn.LayerNorm(12)
        self.mlp = nn.Sequential(nn.Linear(12, 20), nn.GELU(), nn.Linear(20, 12))
        self.head = nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norm1(x))
        return self.head((x + self.mlp(self.norm2(x))).mean(1))  # type: ignore[no-any-return]


@pytest.mark.parametrize(("packed", "total"), [(False, False), (True, False), (False, True)])
def test_heads_are_groups(packed, total):
    coupling = coupling_of(Encoder(packed, total), 6, 12)
    root = "attention.qkv" if packed else "attention.q_proj"
    layers = ("attention.qkv",) if packed else ("attention.q_proj", "attention.k_proj", "attention.v_proj")
    heads = coupling.groups[root]
    assert heads.heads
    assert (heads.channels, heads.layers, heads.consumers) == (3, layers, ("attention.out_proj",))
    assert heads.width == (12 if packed else 4)
    assert "mlp.0" in coupling.groups
    resized = {c.name for c in heads.cuts if c.path == "attention"}
    assert resized == ({"num_heads", "all_head_size"} if total else {"num_heads"})


def test_after_is_the_coupling_of_the_smaller_network(traced):
    coupling = coupled_groups(traced("concat")[1])
    keep = {"left": torch.tensor([1, 0, 1, 1, 0, 1]).bool(), "join": torch.arange(8) % 2 == 0}
    left = coupling.after(keep)
    assert {root: g.channels for root, g in left.groups.items()} == {"left": 4, "right": 6, "join": 4}
    into = {
        root: next(c for c in left.groups[root].cuts if c.path == "join" and c.axis == 1)
        for root in left.groups
        if root != "join"
    }
    assert into["left"].entries.tolist() == [0, 1, 2, 3, *[-1] * 6]
    assert into["right"].entries.tolist() == [*[-1] * 4, 0, 1, 2, 3, 4, 5]


def test_resnet18_has_a_group_for_every_stream_and_every_inner_convolution():
    coupling = coupling_of(build("resnet18", 10), 3, 32, 32)
    assert len(coupling.groups) == 12
    assert set(reasons(coupling)) == {"fc"}
    assert len(coupling.groups["conv1"].layers) == 3


def test_padded_shortcuts_are_refused_and_inner_convolutions_are_not():
    coupling = coupling_of(build("resnet20", 10), 3, 32, 32)
    assert len(coupling.groups) == 9
    assert set(reasons(coupling)) == {"conv1", "linear"}
