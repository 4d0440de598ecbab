"""A small network that really is trained, and its surveys."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

from autocomp.core.hardware import HardwareProfile
from autocomp.core.network import Network
from autocomp.core.progress import Progress
from autocomp.core.space import SearchSpace
from autocomp.core.workload import Metric, Workload
from autocomp.graph.trace import build_network
from autocomp.survey.order import Order
from autocomp.survey.space_file import space_from_toml
from autocomp.survey.stored import Survey
from autocomp.survey.survey import survey
from autocomp.workloads.splits import TensorSplit

PROFILE = HardwareProfile(
    name="test", title="", runtime="", precisions={"conv2d": ("float32", "int8"), "linear": ("float32", "int8")}
)
TABLES = {
    "weights": {"bits": [16, 8, 4], "steps": [0.1, 0.3, 0.6, 1.0, 1.6]},
    "activations": {"precisions": ["float32", "int8"]},
}


class Small(nn.Module):
    """1 x 8 x 8 → 10; a residual block between a stem and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 12, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(12)
        self.conv1 = nn.Conv2d(12, 12, 3, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(12)
        self.conv2 = nn.Conv2d(12, 12, 3, padding=1)
        self.head = nn.Linear(12 * 16, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm(self.stem(x)))
        x = torch.relu(x + self.conv2(torch.relu(self.norm1(self.conv1(x)))))
        out: Tensor = self.head(torch.nn.functional.avg_pool2d(x, 2).flatten(1))
        return out


@dataclass(frozen=True)
class Case:
    """A trained workload and what is surveyed of it."""

    workload: Workload
    network: Network
    calibration: list[Tensor]

    def space(self, **changes: object) -> SearchSpace:
        tables = {**TABLES, **changes}
        return space_from_toml(tables, self.network, PROFILE, file="test.toml", name="test")

    def survey(
        self, cache: Path, space: SearchSpace | None = None, *, progress: Progress | None = None, **options: object
    ) -> Survey:
        return survey(self.order(cache, space, **options), progress)

    def order(self, cache: Path, space: SearchSpace | None = None, **options: object) -> Order:
        settings: dict = {"calibration": self.calibration, "sensitivity": 96, "cache": cache, "seed": 0, **options}
        space = space or self.space()
        return Order(workload=self.workload, network=self.network, space=space, profile=PROFILE, **settings)


@pytest.fixture(scope="session")
def case() -> Case:
    digits = load_digits()
    inputs = torch.from_numpy(digits.images).float()[:, None] / 8 - 1
    targets = torch.from_numpy(digits.target).long()
    torch.manual_seed(0)
    net = Small()
    optimizer = torch.optim.Adam(net.parameters(), 5e-3)
    for step in range(120):
        part = torch.arange(step * 64, step * 64 + 64) % 1024
        loss = nn.functional.cross_entropy(net(inputs[part]), targets[part])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    net.eval()

    def split(a: int, b: int) -> TensorSplit:
        return TensorSplit(inputs=inputs[a:b], targets=targets[a:b])

    def accuracy(outputs: Tensor, labels: Tensor, _reference: Tensor) -> float:
        return float((outputs.argmax(1) == labels).float().mean())

    metric = Metric(
        name="accuracy",
        direction="maximize",
        unit="fraction",
        compute=lambda o, t, _: float((o.argmax(1) == t).float().mean()),
    )
    workload = Workload(
        name="small",
        model=net,
        model_spec="small",
        calibration=split(0, 192),
        search=split(1024, 1400),
        test=split(1400, 1797),
        metric=metric,
        classes=10,
        fingerprint="small",
    )
    with torch.inference_mode():
        assert accuracy(net(inputs[1400:]), targets[1400:], targets) > 0.9
    return Case(workload, build_network(net, inputs[:2]), [inputs[:128], inputs[128:192]])


@pytest.fixture(scope="session")
def found(case: Case, tmp_path_factory: pytest.TempPathFactory) -> Survey:
    return case.survey(tmp_path_factory.mktemp("cache"))
