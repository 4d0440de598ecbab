"""Whole networks of every family: surveyed, compressed at random, written, loaded afresh, run by ONNX Runtime."""

from __future__ import annotations

from pathlib import Path

import pytest

from autocomp.core.network import Network
from autocomp.graph.coupling import coupled_groups
from autocomp.graph.trace import build_network
from autocomp.testing.coverage import Coverage, check_family, check_loading
from autocomp.testing.families import FAMILIES, make_family

QUICK = ("shufflenet_v2", "unet", "vit", "tied", "branch")
"""One of each difficulty; the others are slow: ``python benchmarks/coverage.py`` runs all, torchvision's as well."""


def covered(name: str, folder: Path, candidates: int) -> Coverage:
    model, family = make_family(name)
    return check_family(
        model,
        family.inputs(4),
        folder,
        candidates=candidates,
        classes=family.classes,
        factory=f"autocomp.testing.families:untrained:{name}",
    )


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, Coverage]]:
    folders = {name: tmp_path_factory.mktemp(name) for name in QUICK}
    return {name: (folder, covered(name, folder, candidates=3)) for name, folder in folders.items()}


@pytest.mark.parametrize("name", QUICK)
def test_random_joint_candidates_are_built_and_agree_with_onnx_runtime(
    done: dict[str, tuple[Path, Coverage]], name: str
) -> None:
    found = done[name][1]
    assert found.failures == ()
    assert found.built == 3
    assert found.varied >= 2
    if name == "branch":
        assert (found.exported, found.with_int8, found.groups) == (0, 0, 0)
        return
    assert found.exported == 3
    assert found.with_int8 == 2
    assert found.groups >= 1
    assert {"prune_channels", "factorise", "quantize_activations"} <= set(found.techniques)


def test_every_file_loads_bit_for_bit_in_a_fresh_process(done: dict[str, tuple[Path, Coverage]]) -> None:
    assert check_loading([folder for folder, _ in done.values()]) == []


def test_what_is_left_alone_is_said(done: dict[str, tuple[Path, Coverage]]) -> None:
    branch = done["branch"][1]
    assert any("rare: it does not run" in line for line in branch.skipped)
    assert any("no graph to prune in" in line for line in branch.refused)
    assert any(line.startswith("int8 execution left out: the network has no graph") for line in branch.notes)
    assert any("LayerNorm normalises over these channels" in line for line in done["vit"][1].refused)
    assert any("head shares its weight with embed" in line for line in done["tied"][1].refused)
    # stem, the inner channels of five units, the last convolution: what goes through a shuffle stays
    assert done["shufflenet_v2"][1].groups == 7
    for name in QUICK:
        found = done[name][1]
        assert all("\n" not in line for line in (*found.skipped, *found.refused, *found.notes))


GROUPS = {
    "alexnet": 5, "vgg": 6, "vgg_bn": 6, "resnet": 6, "resnet_bottleneck": 11, "densenet": 14, "squeezenet": 10,
    "unet": 6, "vit": 6, "convnext": 3, "bert": 5, "audio": 3, "reused": 1, "shared": 1, "branch": 0,
}  # fmt: skip
"""Groups of channels and heads that can be removed, counted by hand."""


@pytest.mark.slow
@pytest.mark.parametrize("name", [n for n in FAMILIES if n not in QUICK])
def test_every_other_family(name: str, tmp_path: Path) -> None:
    found = covered(name, tmp_path, candidates=20)
    assert found.failures == ()
    assert (found.built, found.exported) == (20, 20)
    assert check_loading([tmp_path]) == []


@pytest.mark.slow
@pytest.mark.parametrize("name", GROUPS)
def test_groups_of_channels(name: str) -> None:
    model, family = make_family(name)
    network: Network = build_network(model, family.inputs(2))
    assert len(coupled_groups(network).groups) == GROUPS[name]
