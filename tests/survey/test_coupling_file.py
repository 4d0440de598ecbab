"""Coupled groups kept in a folder: the same after reading, made anew where damaged or where the network differs."""

from __future__ import annotations

import json
import zlib
from pathlib import Path

import pytest
import torch
from torch import nn

from autocomp.core.network import Network
from autocomp.graph.coupling import Coupling, coupled_groups
from autocomp.graph.trace import build_network
from autocomp.survey.coupling_file import stored_coupling
from autocomp.testing.networks import randomised
from autocomp.workloads.models import build


def network_of(model: nn.Module) -> Network:
    return build_network(randomised(model), torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(5)))


@pytest.fixture(scope="module")
def network() -> Network:
    return network_of(build("resnet20", 10))


def assert_same(a: Coupling, b: Coupling) -> None:
    assert list(a.groups) == list(b.groups)
    assert a.refused == b.refused
    for left, right in zip(a.groups.values(), b.groups.values(), strict=True):
        plain = [{k: v for k, v in vars(g).items() if k != "cuts"} for g in (left, right)]
        assert plain[0] == plain[1]
        for cut, other in zip(left.cuts, right.cuts, strict=True):
            assert (cut.place, cut.role) == (other.place, other.role)
            assert cut.entries.dtype == other.entries.dtype
            assert torch.equal(cut.entries, other.entries)


def stored(folder: Path) -> Path:
    (path,) = (folder / "coupling").iterdir()
    return path


def test_what_is_read_is_what_was_found(network: Network, tmp_path: Path) -> None:
    found = coupled_groups(network)
    assert_same(stored_coupling(network, tmp_path), found)
    before = stored(tmp_path).stat().st_mtime_ns
    assert_same(stored_coupling(network, tmp_path), found)
    assert stored(tmp_path).stat().st_mtime_ns == before


def test_another_process_takes_the_file_and_does_not_search(network: Network, tmp_path: Path) -> None:
    stored_coupling(network, tmp_path)
    data = json.loads(stored(tmp_path).read_text())
    first = data["coupling"]["groups"].pop(0)["root"]
    text = json.dumps(data["coupling"], separators=(",", ":"))
    stored(tmp_path).write_text(f'{{"crc32":{zlib.crc32(text.encode())},"coupling":{text}}}')
    assert first not in stored_coupling(network, tmp_path).groups


@pytest.mark.parametrize("damage", [b"", b"[]", b'{"crc32": 0, "coupling": {}}', "cut", "changed"])
def test_a_damaged_file_is_made_anew(network: Network, tmp_path: Path, damage: bytes | str) -> None:
    whole = stored_coupling(network, tmp_path)
    path = stored(tmp_path)
    good = path.read_bytes()
    bad = {"cut": good[:-20], "changed": good.replace(b"64", b"63")}.get(damage, damage)  # type: ignore[arg-type]
    path.write_bytes(bad)
    assert_same(stored_coupling(network, tmp_path), whole)
    assert path.read_bytes() == good


def test_other_weights_or_sizes_have_a_file_of_their_own(network: Network, tmp_path: Path) -> None:
    stored_coupling(network, tmp_path)
    other = network_of(build("resnet20", 10))
    with torch.no_grad():
        other.module.get_parameter("conv1.weight").mul_(0.5)
    for changed in (other, network_of(build("resnet20", 7))):
        assert_same(stored_coupling(changed, tmp_path), coupled_groups(changed))
    assert len(list((tmp_path / "coupling").iterdir())) == 3
