from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch

from autocomp.core import shipped
from autocomp.core.candidate import Candidate
from autocomp.core.hardware import HardwareProfile
from autocomp.core.network import Network
from autocomp.core.space import SearchSpace
from autocomp.errors import ConfigError, UnknownNameError
from autocomp.graph.trace import build_network
from autocomp.survey.space_file import list_spaces, load_space, space_from_toml
from autocomp.survey.step_tables import GAUSSIAN_STEP
from autocomp.testing.networks import ResidualNet, randomised
from autocomp.transforms.low_rank import Factorise
from autocomp.transforms.quantize import QuantizeActivations, QuantizeWeights

BOTH = HardwareProfile(
    name="both", title="", runtime="", precisions={"conv2d": ("float32", "int8"), "linear": ("float32",)}
)


@pytest.fixture(scope="module")
def network() -> Network:
    return build_network(randomised(ResidualNet()), torch.randn(2, 3, 12, 12))


def space(network: Network, **tables: Any) -> SearchSpace:
    return space_from_toml(tables, network, BOTH, file="my.toml", name="my")


@pytest.mark.parametrize("name", shipped.names("search_spaces"))
def test_shipped_spaces_load_and_round_trip(network: Network, name: str) -> None:
    found = load_space(name, network, BOTH)
    assert list(found.units) == list(network.layers)
    for unit in found.units.values():
        options = unit.axes["weights"]
        assert options[0] is None
        sizes = [o.step or GAUSSIAN_STEP.get(o.bits, 0.0) for o in options if isinstance(o, QuantizeWeights)]
        assert sizes == sorted(sizes)
        assert len({o.label() for o in options if o is not None}) == len(options) - 1
    last = found.decode({p: n - 1 for p, n in found.parameters().items()})
    assert last in found
    assert found.decode(found.encode(last)) == last
    assert Candidate({}) in found


def test_shipped_spaces_are_described() -> None:
    rows = list_spaces()
    assert {r["name"] for r in rows} >= {"joint", "steps", "bits", "quick"}
    assert all(r["title"] and r["text"] for r in rows)


def test_profile_rules_out_int8_and_says_so_once(network: Network) -> None:
    found = space(network, weights={"bits": [8]}, activations={"precisions": ["float32", "int8"]})
    assert found.units["fc"].axes["activations"] == (None,)
    assert found.units["conv1"].axes["activations"] == (None, QuantizeActivations())
    assert found.notes == ("int8 execution left out for linear layers: both does not run them in int8",)


def test_float8_where_the_profile_has_it(network: Network) -> None:
    tables = {"weights": {"bits": [8]}, "activations": {"precisions": ["float32", "int8", "float8"]}}
    found = space(network, **tables)
    assert found.units["conv1"].axes["activations"] == (None, QuantizeActivations())
    assert "float8 execution left out for conv2d layers: both does not run them in float8" in found.notes
    able = dataclasses.replace(BOTH, precisions={"conv2d": ("float8", "int8"), "linear": ("float8",)})
    found = space_from_toml(tables, network, able, file="t.toml", name="t")
    float8 = QuantizeActivations(precision="float8")
    assert found.units["conv1"].axes["activations"] == (None, QuantizeActivations(), float8)
    assert found.units["fc"].axes["activations"] == (None, float8)
    tables["activations"]["calibrator"] = "entropy"
    with pytest.raises(ConfigError, match=r"t\.toml: activations: .*'entropy'; allowed for float8: minmax, percentile"):
        space_from_toml(tables, network, able, file="t.toml", name="t")


def test_every_combination_is_an_option_once(network: Network) -> None:
    weights = {
        "float32": False,
        "bits": [16, 4],
        "steps": [0.5],
        "granularity": ["channel", "tensor"],
        "symmetric": [True, False],
        "scale": ["mse", "max"],
        "rounding": "nearest",
    }
    options = space(network, weights=weights).units["fc"].axes["weights"]
    assert None not in options
    assert [o.label() for o in options[:1]] == ["fp16"]
    assert len(options) == 1 + 4 * (2 + 1) == len(set(options))


def test_overrides_lie_over_each_other_key_by_key(network: Network) -> None:
    found = space(
        network,
        weights={"bits": [8], "steps": [0.5]},
        override=[
            {"match": "layer1.*", "weights": {"steps": [1.0]}},
            {"match": ["layer1.1.conv2"], "weights": {"bits": []}, "activations": {"precisions": ["float32"]}},
        ],
    )
    assert found.units["conv1"].axes["weights"] == (None, QuantizeWeights(bits=8), QuantizeWeights(step=0.5))
    assert found.units["layer1.0.conv1"].axes["weights"] == (None, QuantizeWeights(bits=8), QuantizeWeights(step=1.0))
    assert found.units["layer1.1.conv2"].axes["weights"] == (None, QuantizeWeights(step=1.0))


def test_left_layers_are_no_units_and_groups_are_one(network: Network) -> None:
    found = space(
        network,
        weights={"bits": [8]},
        leave={"layers": ["conv1", "fc"]},
        group=[{"name": "first", "layers": ["layer1.0.*"]}],
    )
    assert set(found.units) == {"first", "layer1.1.conv1", "layer1.1.conv2", "layer1.1.downsample.0"}
    assert found.units["first"].layers == ("layer1.0.conv1", "layer1.0.conv2")


@pytest.mark.parametrize(
    ("tables", "said"),
    [
        ({"wieghts": {}}, r"my.toml: wieghts: unknown key; did you mean weights\?"),
        ({"weights": {"step": [1]}}, r"weights.step: unknown key; did you mean steps\?"),
        ({"weights": {"bits": [9]}}, r"weights.bits: 9; allowed 2, 3, 4, 5, 6, 7, 8, 16"),
        ({"weights": {"bits": [True]}}, r"weights.bits: True; allowed 2"),
        ({"weights": {"steps": [9.5]}}, r"weights.steps: 9.5; allowed \[0.01, 8\] standard deviations"),
        ({"weights": {"steps": ["a"]}}, r"weights.steps: 'a'; allowed"),
        ({"weights": {"rounding": "up"}}, r"weights.rounding: 'up'; allowed nearest, compensated"),
        ({"weights": {"rounding": ["nearest"]}}, r"weights.rounding: \['nearest'\]; allowed nearest, compensated"),
        ({"weights": {"float32": False}}, r"weights: no option for conv1; give bits, steps or float32 = true"),
        ({"weights": 3}, r"weights = 3; give a table \[weights\]"),
        ({"activations": {"precisions": []}}, r"activations.precisions is empty"),
        ({"activations": {"precisions": ["int4"]}}, r"activations.precisions: 'int4'; allowed float32, int8"),
        ({"leave": {"layers": ["layer9.*"]}}, r"leave.layers: 'layer9.\*' matches no layer; near: layer1"),
        ({"leave": {"layers": ["*"]}}, r"leaves every layer alone"),
        ({"override": [{"weights": {}}]}, r"override 1: match is missing"),
        ({"override": [{"match": "fc", "bits": 3}]}, r"override 1.bits: unknown key"),
        ({"override": [{"match": "fc", "activations": {"calibrator": "mse"}}]}, r"one calibrator holds"),
        ({"group": [{"name": "fc", "layers": ["conv1"]}]}, r"group 1.name = 'fc' is taken"),
        ({"group": [{"layers": ["conv1"]}, {"layers": ["conv1"]}]}, r"conv1 is in group 'group1' already"),
        (
            {"group": [{"layers": ["conv1", "fc"]}], "override": [{"match": "fc", "weights": {"bits": [8]}}]},
            r"group 'group1': conv1 and fc have different settings",
        ),
        ({"description": {"title": 3}}, r"description.title = 3; give a text"),
    ],
)
def test_errors_name_file_key_value_and_remedy(network: Network, tables: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said) as caught:
        space(network, **tables)
    assert str(caught.value).startswith("my.toml: ")
    assert "\n" not in str(caught.value)


def test_no_such_space_offers_the_nearest(network: Network) -> None:
    with pytest.raises(UnknownNameError, match="did you mean joint"):
        load_space("jiont", network, BOTH)


def test_a_file_that_is_not_toml(network: Network, tmp_path: Path) -> None:
    path = tmp_path / "broken.toml"
    path.write_text("[weights\n")
    with pytest.raises(ConfigError, match=r"broken.toml: not valid TOML"):
        load_space(str(path), network, BOTH)


def test_evbmf_suggests_a_rank_from_the_weight(network: Network) -> None:
    left, right = torch.randn(64, 3), torch.randn(3, 48)
    linear = torch.nn.Linear(48, 64)
    with torch.no_grad():
        linear.weight.copy_(left @ right + 0.05 * torch.randn(64, 48))
    own = build_network(torch.nn.Sequential(linear, torch.nn.ReLU(), torch.nn.Linear(64, 5)), torch.randn(2, 48))
    found = space(own, rank={"method": ["svd", "whitened_svd"], "rank": [0.5, "evbmf"]}, weights={"float32": True})
    shares = [(s.method, s.rank) for s in found.units["0"].axes["rank"] if isinstance(s, Factorise)]
    assert shares == [("svd", 0.5), ("whitened_svd", 0.5), ("svd", 0.062), ("whitened_svd", 0.062)]
    alone = space(own, rank={"method": "svd", "rank": "evbmf"}, weights={"float32": True})
    assert alone.units["0"].axes["rank"] == (None, Factorise(method="svd", rank=0.062))
    cleared = [{"match": "0", "rank": {}}]
    assert (
        "rank"
        not in space(own, rank={"method": "svd", "rank": "evbmf"}, weights={"bits": [8]}, override=cleared)
        .units["0"]
        .axes
    )
    with pytest.raises(ConfigError, match=r"my.toml: rank: factorise.method = 'sdv'"):
        space(own, rank={"method": "sdv", "rank": "evbmf"}, weights={"float32": True})
