"""Small networks that are not one plain chain of modules: recurrence, shared weights, branches on data."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

CLASSES = 10


class LSTMTagger(nn.Module):
    """A bidirectional LSTM that scores each position; input [n, 12] int64 below 100, output [n, 12, 10]."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(100, 32)
        self.lstm = nn.LSTM(32, 32, batch_first=True, bidirectional=True)
        self.hidden = nn.Linear(64, 48)
        self.head = nn.Linear(48, CLASSES)

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(F.relu(self.hidden(self.lstm(self.embed(ids))[0])))  # type: ignore[no-any-return]


class TiedEncoder(nn.Module):
    """An embedding whose weight is also the output layer's; input [n, 12] int64 below 120, output [n, 120]."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(120, 32)
        self.block = nn.TransformerEncoderLayer(32, 4, 64, batch_first=True, activation="gelu")
        self.down, self.up = nn.Linear(32, 48), nn.Linear(48, 32)
        self.head = nn.Linear(32, 120, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, ids: Tensor) -> Tensor:
        x = self.block(self.embed(ids))
        return self.head((x + self.up(F.relu(self.down(x))))[:, -1])  # type: ignore[no-any-return]


class SharedConvolutions(nn.Module):
    """Two convolutions that hold one weight behind each other; input [n, 3, 32, 32]."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 24, 3, stride=2, padding=1)
        self.first, self.second = (nn.Conv2d(24, 24, 3, padding=1) for _ in range(2))
        self.second.weight = self.first.weight
        self.last = nn.Conv2d(24, 32, 3, stride=2, padding=1)
        self.fc = nn.Linear(32, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        x = F.relu(self.second(F.relu(self.first(x))))
        return self.fc(F.relu(self.last(x)).mean((2, 3)))  # type: ignore[no-any-return]


class ReusedBlock(nn.Module):
    """One residual block that runs three times, one activation module for all; input [n, 3, 32, 32]."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 24, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(24)
        self.relu = nn.ReLU(inplace=True)
        self.block = nn.Sequential(
            nn.Conv2d(24, 32, 3, padding=1), self.relu, nn.Conv2d(32, 24, 3, padding=1, bias=False)
        )
        self.last = nn.Conv2d(24, 32, 3, stride=2, padding=1)
        self.fc = nn.Linear(32, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.norm(self.stem(x)))
        for _ in range(3):
            x = x + 0.5 * self.block(x)
        return self.fc(self.relu(self.last(x)).mean((2, 3)))  # type: ignore[no-any-return]


class DataBranch(nn.Module):
    """Which layer runs depends on the input: no fixed graph; input [n, 3, 32, 32]."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 24, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(24)
        self.usual, self.rare = nn.Conv2d(24, 32, 3, padding=1), nn.Conv2d(24, 32, 1)
        self.last = nn.Conv2d(32, 32, 3, stride=2, padding=1)
        self.fc = nn.Linear(32, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm(self.stem(x)))
        x = self.rare(x) if bool(x.mean() > 1e6) else self.usual(x)
        return self.fc(F.relu(self.last(F.relu(x))).mean((2, 3)))  # type: ignore[no-any-return]


class WideLinear(nn.Module):
    """A linear layer of 9,216 inputs behind a flatten: its Hessian is kept in blocks; input [n, 3, 32, 32]."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 36, 5, stride=2, padding=2)
        self.hidden, self.fc = nn.Linear(36 * 256, 12), nn.Linear(12, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(F.relu(self.hidden(F.relu(self.conv(x)).flatten(1))))  # type: ignore[no-any-return]


class AudioNet(nn.Module):
    """One-dimensional convolutions, dilated and grouped; input [n, 4, 64]."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.norm1 = nn.Conv1d(4, 32, 7, stride=2, padding=3, bias=False), nn.BatchNorm1d(32)
        self.conv2 = nn.Conv1d(32, 48, 5, dilation=2, padding=4, groups=2)
        self.conv3, self.norm3 = nn.Conv1d(48, 48, 3, padding=1, bias=False), nn.BatchNorm1d(48)
        self.fc = nn.Linear(48, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.conv2(F.relu(self.norm1(self.conv1(x)))))
        return self.fc(torch.amax(F.relu(self.norm3(self.conv3(x))), dim=-1))  # type: ignore[no-any-return]
