"""Workloads from settings and from objects."""

from __future__ import annotations

import importlib.util
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from autocomp.core.progress import Silent
from autocomp.core.settings import Settings
from autocomp.errors import AutocompError, ConfigError, DataError, UnknownNameError, UnsupportedError
from autocomp.workloads import models
from autocomp.workloads.load import from_objects, list_models, load_workload, rebuild_model

NETS = """
import torch
from torch import nn
def make(num_classes=4):
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, num_classes))
def fixed():
    return make(6)
def grey():
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.Flatten(), nn.Linear(144, 4))
def five():
    return nn.Sequential(nn.Conv2d(5, 4, 3), nn.Flatten(), nn.Linear(144, 4))
def poisoned():
    net = make(4)
    net[3].bias.data[2] = float("nan")
    return net
def explodes():
    net = make(4)
    net[3].bias.data[:] = 3e38
    net[3].weight.data[:] = 3e38
    return net
class Two(nn.Module):
    def forward(self, x):
        return x, x
def nothing():
    return None
"""


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "nets.py").write_text(NETS)
    rng = np.random.default_rng(0)
    y = np.arange(80) % 4
    x = (rng.random((80, 3, 8, 8)) * 60 + y[:, None, None, None] * 40).astype(np.uint8)
    np.savez(tmp_path / "d.npz", x_train=x[:40], y_train=y[:40], x_test=x[40:], y_test=y[40:])
    return tmp_path


def settings(**changes: Any) -> Settings:
    return Settings(**{"model": "nets.py:make", "data": "npz:d.npz", **changes})


def test_an_own_model_on_own_data(place: Path) -> None:
    workload = load_workload(settings(), Silent())
    assert workload.name == "make"
    assert workload.classes == 4
    assert [len(s) for s in (workload.calibration, workload.search, workload.test)] == [40, 20, 20]
    assert not workload.model.training
    assert not any(p.requires_grad for p in workload.model.parameters())
    assert workload.example(50).shape == (50, 3, 8, 8)
    assert workload.metric.name == "accuracy"
    assert workload.facts["test_samples"] == 20
    assert workload.rebuild is not None
    assert workload.rebuild().state_dict().keys() == workload.model.state_dict().keys()
    assert pickle.loads(pickle.dumps(workload.rebuild))().state_dict().keys() == workload.model.state_dict().keys()


def test_the_fingerprint_follows_weights_data_and_metric(place: Path) -> None:
    base = load_workload(settings()).fingerprint
    assert load_workload(settings()).fingerprint == base
    state = load_workload(settings()).model.state_dict()
    state["3.bias"] = state["3.bias"] + 1
    save_file(state, place / "w.safetensors")
    others = [
        settings(weights=Path("w.safetensors")),
        settings(normalize="none"),
        settings(metric="top5"),
        settings(model="nets.py:fixed"),
    ]
    prints = {load_workload(s).fingerprint for s in others}
    assert len(prints) == 4
    assert base not in prints


def test_built_in_models_take_weights_for_other_data(place: Path) -> None:
    save_file(models.build("resnet20", 4).state_dict(), place / "w.safetensors")
    workload = load_workload(settings(model="resnet20", weights=Path("w.safetensors")))
    assert workload.classes == 4
    assert workload.facts["weights"] == "w.safetensors"
    save_file(models.build("resnet20", 10).state_dict(), place / "w.safetensors")
    with pytest.raises(DataError, match="weights have 10 classes, data has 4"):
        load_workload(settings(model="resnet20", weights=Path("w.safetensors")))


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"model": "resnet18"}, ConfigError, "give --weights FILE"),
        ({"data": None}, ConfigError, "--data is needed"),
        ({"model": "resnet19"}, UnknownNameError, "did you mean resnet18"),
        ({"model": "nets.py:mak"}, UnknownNameError, "make"),
        ({"model": "nets.py:nothing"}, DataError, "return a torch.nn.Module"),
        ({"model": "nets.py:Two"}, DataError, "must return one tensor"),
        ({"model": "nets.py:poisoned"}, DataError, "3.bias hold NaN"),
        ({"model": "nets.py:explodes"}, DataError, "outputs hold NaN or infinity"),
        ({"model": "nets.py:grey"}, DataError, "inputs have 3 channels, the first convolution of grey takes 1"),
        ({"model": "nets.py:five"}, DataError, "inputs have 3 channels, the first convolution of five takes 5"),
        ({"image_size": 12}, DataError, "cannot run on inputs of shape [2, 3, 12, 12]"),
        ({"metric": "f1"}, UnknownNameError, "f1_macro"),
        ({"data": "digits", "model": "nets.py:fixed"}, DataError, "fixed"),
    ],
)
def test_bad_input_is_one_line(place: Path, changes: dict[str, Any], error: type[AutocompError], message: str) -> None:
    with pytest.raises(error) as caught:
        load_workload(settings(**changes))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_head_of_another_size_is_refused(place: Path) -> None:
    net = nn.Sequential(nn.Flatten(), nn.Linear(192, 3))
    with pytest.raises(DataError, match="has 3 outputs, data d has 4 classes"):
        from_objects(net, "npz:d.npz", Settings())


@pytest.mark.parametrize("package", ["torchvision", "timm"])
def test_hubs_name_the_command_that_helps(place: Path, package: str) -> None:
    with pytest.raises(ConfigError, match=r"--weights FILE is needed.*safetensors"):
        load_workload(settings(model=f"{package}:resnet50"))
    if importlib.util.find_spec(package) is None:
        (place / "w.safetensors").touch()
        with pytest.raises(UnsupportedError, match=f"pip install {package}"):
            load_workload(settings(model=f"{package}:resnet50", weights=Path("w.safetensors")))


def test_objects_are_copied_and_left_alone() -> None:
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(60, 6, generator=generator), torch.arange(60) % 3
    net = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Linear(8, 3)).double().train()
    workload = from_objects(net, ((x[:30], y[:30]), (x[30:], y[30:])), Settings(seed=1))
    assert net.training
    assert net[0].weight.dtype == torch.float64
    assert net[0].weight.requires_grad
    assert workload.model[0].weight.dtype == torch.float32  # type: ignore[index,union-attr]
    assert workload.name == "sequential"
    assert workload.classes == 3
    assert workload.rebuild is not None
    assert workload.rebuild() is not workload.model


def test_regression_has_no_classes() -> None:
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(60, 6, generator=generator), torch.randn(60, 1, generator=generator)
    workload = from_objects(nn.Linear(6, 1), ((x[:30], y[:30]), (x[30:], y[30:])), Settings(metric="mse"))
    assert workload.classes is None
    inputs, targets = next(iter(workload.test.batches(100)))
    outputs = workload.model(inputs)
    assert workload.metric.compute(outputs, targets, outputs) == pytest.approx(
        float((outputs - targets).square().mean())
    )


def test_only_built_in_models_are_rebuilt_by_name() -> None:
    assert rebuild_model("resnet20", 7).linear.out_features == 7  # type: ignore[union-attr]
    for spec in ("nets.py:make", "os:system", "torchvision:resnet18"):
        with pytest.raises(UnknownNameError):
            rebuild_model(spec, 10)


def test_the_list_of_models() -> None:
    rows = {row.name: row for row in list_models()}
    assert rows["resnet18"].float32_bytes == 44_764_968
    assert rows["resnet20"].parameters == 269_722
    assert rows["resnet18"].data == "digits"
    for package in ("torchvision", "timm"):
        row = rows[f"{package}:NAME"]
        assert row.usable == (importlib.util.find_spec(package) is not None)
        assert row.usable or row.missing == f"pip install {package}"
