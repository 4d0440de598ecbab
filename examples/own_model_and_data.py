"""Your own network and data: train a small CNN on handwritten digits, then compress it to a budget.

    python examples/own_model_and_data.py

Takes well under a minute on two cores; the report is in runs/example-own-model/report.html.
"""

from __future__ import annotations

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional as F

import autocomp

Pair = tuple[torch.Tensor, torch.Tensor]


class SmallNet(nn.Module):
    """A plain CNN for 1 x 8 x 8 images: 129,000 parameters, 0.5 MB as float32."""

    def __init__(self, classes: int = 10) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(1, 32, 3, padding=1, bias=False),
            nn.BatchNorm2d(32),
            nn.ReLU(),
            nn.Conv2d(32, 64, 3, padding=1, bias=False),
            nn.BatchNorm2d(64),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(64, 128, 3, padding=1, bias=False),
            nn.BatchNorm2d(128),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(1),
        )
        self.hidden = nn.Linear(128, 256)
        self.head = nn.Linear(256, classes)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """images: [n, 1, 8, 8] → class scores [n, classes]."""
        return self.head(F.relu(self.hidden(self.features(images).flatten(1))))


def digits() -> tuple[Pair, Pair, Pair]:
    """(inputs, targets) for training, search and test: three disjoint parts of scikit-learn's digits."""
    bunch = load_digits()
    inputs = torch.tensor(bunch.images, dtype=torch.float32).unsqueeze(1) / 16
    targets = torch.tensor(bunch.target)
    order = torch.randperm(len(inputs), generator=torch.Generator().manual_seed(0))
    inputs, targets = inputs[order], targets[order]
    return (inputs[:1100], targets[:1100]), (inputs[1100:1450], targets[1100:1450]), (inputs[1450:], targets[1450:])


def train(train_set: Pair, epochs: int = 8) -> SmallNet:
    """A trained network; a few seconds."""
    torch.manual_seed(0)
    model, (inputs, targets) = SmallNet(), train_set
    steps = epochs * (len(inputs) // 64)
    optimizer = torch.optim.AdamW(model.parameters(), lr=4e-3, weight_decay=0.02)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 4e-3, total_steps=steps)
    for _ in range(epochs):
        for batch in torch.randperm(len(inputs)).split(64)[: len(inputs) // 64]:
            optimizer.zero_grad()
            F.cross_entropy(model(inputs[batch]), targets[batch]).backward()
            optimizer.step()
            schedule.step()
    return model.eval()


def main() -> None:
    data = digits()
    model = train(data[0])
    result = autocomp.search(
        model,
        data,  # (train, search, test); calibration images are drawn from train
        budget="40kB",
        target="cpu-onnxruntime",
        preset="quick",
        trials=10,
        out="runs/example-own-model",
        seed=0,
    )
    best, float32 = result.best, result.summary.float32
    print(f"float32: {float32.file_bytes:,} bytes, accuracy {float32.score_test:.4f}")
    print(f"best:    {best.file_bytes:,} bytes, accuracy {best.score_test:.4f}")
    print(f"report:  {result.folder / 'report.html'}")


if __name__ == "__main__":
    main()
