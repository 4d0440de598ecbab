"""Weights from files: what loads, and what is refused in which words."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from autocomp.errors import CorruptFileError, DataError
from autocomp.workloads import weights


class Net(nn.Module):
    def __init__(self, classes: int = 10) -> None:
        super().__init__()
        self.body = nn.Linear(4, 8)
        self.norm = nn.BatchNorm1d(8)
        self.fc = nn.Linear(8, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(self.norm(self.body(x)))  # type: ignore[no-any-return]


def put(path: Path, classes: int | None = 10, net: Net | None = None) -> Net:
    net = net or Net()
    weights.apply_state(net, weights.load_state(path), source=path.name, classes=classes)
    return net


def same(a: nn.Module, b: nn.Module) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


@pytest.mark.parametrize("form", ["safetensors", "plain", "state_dict", "model", "parallel", "compiled", "odd suffix"])
def test_what_loads(tmp_path: Path, form: str) -> None:
    source = Net()
    state: dict[str, Any] = dict(source.state_dict())
    path = tmp_path / "w.pt"
    match form:
        case "safetensors":
            path = tmp_path / "w.safetensors"
            save_file(state, path)
        case "odd suffix":
            save_file(state, path)
        case "state_dict" | "model":
            torch.save({form: state, "epoch": 3, "best": 0.9}, path)
        case "parallel":
            torch.save({"state_dict": {f"module.{k}": v for k, v in state.items()}}, path)
        case "compiled":
            torch.save({f"_orig_mod.{k}": v for k, v in state.items()}, path)
        case _:
            torch.save(state, path)
    assert same(put(path), source)


def test_half_precision_becomes_float32_and_counters_may_be_missing(tmp_path: Path) -> None:
    state = {k: v.half() for k, v in Net().state_dict().items() if not k.endswith("num_batches_tracked")}
    save_file(state, tmp_path / "w.safetensors")
    net = put(tmp_path / "w.safetensors")
    assert net.fc.weight.dtype == torch.float32
    assert torch.equal(net.fc.weight, state["fc.weight"].float())


class Evil:
    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (Path("touched-by-the-pickle"),)


@pytest.mark.parametrize("how", ["torch", "pickle"])
def test_pickles_are_refused_and_never_run(tmp_path: Path, how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "w.pt"
    if how == "torch":
        torch.save({"state_dict": Net().state_dict(), "extra": Evil()}, path)
    else:
        path.write_bytes(pickle.dumps({"extra": Evil()}))
    with pytest.raises(DataError, match="could run any code") as caught:
        weights.load_state(path)
    assert "safetensors" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "touched-by-the-pickle").exists()


def test_missing_and_damaged_files(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such file"):
        weights.load_state(tmp_path / "none.safetensors")
    save_file(Net().state_dict(), tmp_path / "w.safetensors")
    torch.save(Net().state_dict(), tmp_path / "w.pt")
    for name in ("w.safetensors", "w.pt"):
        whole = (tmp_path / name).read_bytes()
        (tmp_path / name).write_bytes(whole[: len(whole) // 2])
        with pytest.raises(CorruptFileError, match="get it again"):
            weights.load_state(tmp_path / name)
    (tmp_path / "empty.pt").touch()
    with pytest.raises(CorruptFileError):
        weights.load_state(tmp_path / "empty.pt")
    torch.save([1, 2], tmp_path / "list.pt")
    with pytest.raises(DataError, match="no state dict inside"):
        weights.load_state(tmp_path / "list.pt")


def test_another_head_is_refused_in_these_words(tmp_path: Path) -> None:
    save_file(Net(1000).state_dict(), tmp_path / "w.safetensors")
    with pytest.raises(DataError, match="weights have 1000 classes, data has 10"):
        put(tmp_path / "w.safetensors")


def refused(tmp_path: Path, state: dict[str, torch.Tensor]) -> str:
    save_file(state, tmp_path / "w.safetensors")
    with pytest.raises(DataError) as caught:
        put(tmp_path / "w.safetensors")
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_what_does_not_fit_is_named(tmp_path: Path) -> None:
    state = Net().state_dict()
    message = refused(tmp_path, {**state, "body.weight": torch.zeros(8, 5)})
    assert "body.weight has shape [8, 5], the model expects [8, 4]" in message
    message = refused(tmp_path, {k: v for k, v in state.items() if not k.startswith("norm.")})
    assert "norm.weight, norm.bias, norm.running_mean and 1 more missing" in message
    assert "extra.a not in the model" in refused(tmp_path, {**state, "extra.a": torch.zeros(1)})
    poisoned = state["fc.bias"].clone()
    poisoned[3] = float("nan")
    assert "fc.bias hold NaN" in refused(tmp_path, {**state, "fc.bias": poisoned})
