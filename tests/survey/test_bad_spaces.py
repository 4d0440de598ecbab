"""Spaces that ask for what a network cannot do: one clear line, and the rest of the space stays."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from autocomp.core.hardware import HardwareProfile
from autocomp.core.network import Network
from autocomp.core.space import SearchSpace
from autocomp.core.steps import FLOAT
from autocomp.errors import ConfigError, DataError
from autocomp.graph.trace import build_network
from autocomp.survey.space_file import space_from_toml

PROFILE = HardwareProfile(name="test", title="", runtime="", precisions={})


class Awkward(nn.Module):
    """Three inputs, a bottleneck of one channel, a head; input [n, 3, 8, 8]."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3)
        self.narrow = nn.Conv2d(6, 1, 3)
        self.wide = nn.Conv2d(1, 8, 1)
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.wide(F.relu(self.narrow(F.relu(self.stem(x))))))
        return self.head(x.mean((2, 3)))  # type: ignore[no-any-return]


def model() -> Awkward:
    torch.manual_seed(0)
    return Awkward().eval()


@pytest.fixture(scope="module")
def network() -> Network:
    return build_network(model(), torch.randn(2, 3, 8, 8))


def space(network: Network, **tables: Any) -> SearchSpace:
    return space_from_toml(tables, network, PROFILE, file="my.toml", name="my")


@pytest.mark.parametrize(
    ("tables", "said"),
    [
        ({"prune": {"ratio": [0.5, 1]}}, r"prune: prune_channels.ratio = 1; allowed above 0 and below 1"),
        ({"prune": {"ratio": 0}}, r"prune: prune_channels.ratio = 0; allowed above 0 and below 1"),
        ({"prune": {"ratio": -0.5}}, r"prune: prune_channels.ratio = -0.5; allowed above 0 and below 1"),
        ({"prune": {"ratio": "half"}}, r"prune: .*'half'"),
        ({"prune": {"ratio": 0.5, "multiple": 0}}, r"prune.multiple = 0; give a number of channels, 1 or more"),
        ({"prune": {"criterion": "l1"}}, r"prune: .*give ratio"),
        ({"rank": {"rank": 1.0}}, r"rank: factorise.rank = 1.0; allowed \(0, 1\), a share of the full rank"),
        ({"rank": {"rank": [0.5, 7]}}, r"rank: factorise.rank = 7; allowed \(0, 1\)"),
        ({"rank": {"rank": 0.5, "method": "qr"}}, r"rank: factorise.method = 'qr'; allowed svd"),
        ({"sparsity": {"ratio": 1.0}}, r"sparsity: sparsify.ratio = 1.0?; allowed"),
        ({"sparsity": {"ratio": 0.0}}, r"sparsity: sparsify.ratio = 0.0?; allowed"),
        ({"sparsity": {"pattern": "4:2"}}, r"sparsity: sparsify.pattern = '4:2'; allowed"),
        ({"sparsity": {"pattern": 24}}, r"sparsity: .*24"),
        ({"share": [{"kind": "vector_quantise"}]}, r"share 1: unknown kind .*did you mean vector_quantize"),
        ({"share": [{"kind": "vector_quantize", "dim": 0}]}, r"share 1: vector_quantize.dim = 0; allowed"),
        ({"share": [{"kind": "hash_weights", "buckets": 2.0}]}, r"share 1: hash_weights.buckets = 2.0; allowed"),
        (
            {"override": [{"match": "stm", "prune": {"ratio": 0.5}}]},
            r"override 1.match: 'stm' matches no layer; near: stem",
        ),
    ],
)
def test_settings_that_no_layer_could_take(network: Network, tables: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said) as caught:
        space(network, **tables)
    assert str(caught.value).startswith("my.toml: ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("tables", "unit", "axis", "note"),
    [
        (
            {"sparsity": {"pattern": "2:4"}},
            "stem",
            "sparsity",
            "sparsity left out for stem: pattern 2:4: 3 input channels a group are no multiple of 4",
        ),
        (
            {"prune": {"ratio": 0.5, "multiple": 1}},
            "narrow",
            "prune",
            "prune left out for narrow: it has one channel that can be removed by itself, and one has to stay",
        ),
        (
            {"prune": {"ratio": 0.5, "multiple": 1}},
            "head",
            "prune",
            "prune left out for head: tied to the network's output: no layer reads these channels",
        ),
        (
            {"prune": {"ratio": 0.5, "multiple": 16}},
            "stem",
            "prune",
            "prune left out for stem: ratio 0.5 of 6 entries in multiples of 16 removes none; raise the ratio",
        ),
        (
            {"rank": {"rank": 0.99}},
            "head",
            "rank",
            "rank left out for head: 0.99 of the full rank 5 is all of it; ask for less",
        ),
        (
            {"rank": {"rank": 0.01}},
            "head",
            "rank",
            "rank left out for head: 0.01 of the full rank 5 is below 1; ask for more",
        ),
        (
            {"rank": {"rank": 0.5, "method": "tucker2"}},
            "head",
            "rank",
            "rank left out for head: tucker2 needs a kernel larger than 1; take svd or whitened_svd",
        ),
    ],
)
def test_a_layer_that_cannot_take_a_setting_is_left_out_and_said(
    network: Network, tables: dict[str, Any], unit: str, axis: str, note: str
) -> None:
    found = space(network, weights={"bits": [8]}, **tables)
    assert note in found.notes
    assert axis not in found.units[unit].axes
    assert len(found.units[unit].axes["weights"]) == 2


def test_vectors_that_do_not_divide_a_channel_are_left_out_and_said(network: Network) -> None:
    found = space(network, weights={"bits": [8]}, share=[{"kind": "vector_quantize", "dim": 9, "entries": 4}])
    assert "weights left out for wide: 1 weights a channel are no multiple of vector_quantize.dim = 9" in found.notes
    assert len(found.units["wide"].axes["weights"]) == 2
    assert len(found.units["stem"].axes["weights"]) == 3


def test_pairs_of_storage_steps_that_exclude_each_other_are_no_choices(network: Network) -> None:
    found = space(
        network, weights={"bits": [8]}, sparsity={"ratio": 0.5}, share=[{"kind": "hash_weights", "buckets": 0.5}]
    )
    labels = {choice.label() for choice in found.storage_choices(found.units["stem"])}
    kinds = [{s.kind for s in choice.steps} for choice in found.storage_choices(found.units["stem"])]
    assert {"sparsify", "quantize_weights"} in kinds
    assert {"hash_weights"} in kinds
    assert {"sparsify", "hash_weights"} not in kinds
    assert len(labels) == len(kinds) == 5


def test_a_space_without_any_legal_choice(network: Network) -> None:
    with pytest.raises(
        ConfigError, match=r"my.toml: no layer has a legal choice besides float32 \(rank left out for"
    ) as e:
        space(network, rank={"rank": 0.5, "method": "spatial"}, leave={"layers": ["stem", "narrow"]})
    assert "\n" not in str(e.value)


def test_a_space_is_not_changed_by_reading_it(network: Network) -> None:
    tables = {"prune": {"ratio": 0.5, "multiple": 1}, "weights": {"bits": [8]}}
    first = space(network, **tables)
    assert tables == {"prune": {"ratio": 0.5, "multiple": 1}, "weights": {"bits": [8]}}
    assert space(network, **tables).units == first.units
    assert len(first.units["stem"].axes["prune"]) == 2


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_weights_that_are_not_finite(bad: float) -> None:
    broken = model()
    with torch.no_grad():
        broken.narrow.weight[0, 2, 1, 1] = bad
    with pytest.raises(DataError, match=r"weights: narrow.weight holds 1 NaN or infinite values of 54; mend") as caught:
        build_network(broken, torch.randn(2, 3, 8, 8))
    assert "\n" not in str(caught.value)


def test_float32_stays_a_choice_of_every_layer(network: Network) -> None:
    found = space(network, weights={"bits": [8]}, sparsity={"pattern": "2:4"})
    assert all(FLOAT in found.storage_choices(unit) for unit in found.units.values())
