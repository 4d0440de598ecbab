"""ResNet for images of ImageNet kind (He et al. 2016, "Deep Residual Learning for Image Recognition").

State-dict keys and computation equal torchvision's, so that its weights load as they are.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import nn


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut; a strided 1x1 convolution where the shape changes."""

    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(channels, channels, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.downsample: nn.Sequential | None = None
        if stride != 1 or in_channels != channels:
            self.downsample = nn.Sequential(
                nn.Conv2d(in_channels, channels, 1, stride, bias=False), nn.BatchNorm2d(channels)
            )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[n, in, h, w] → [n, channels, h / stride, w / stride]."""
        shortcut = x if self.downsample is None else self.downsample(x)
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        return cast(torch.Tensor, self.relu(out + shortcut))


class ResNet(nn.Module):
    """7x7 stride-2 stem with max-pool, four stages of basic blocks, a linear head.

    Args:
        depths: blocks of each of the four stages.
        classes: outputs of the head.
    """

    def __init__(self, depths: tuple[int, int, int, int], classes: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 64, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, 2, 1)
        self.layer1 = _stage(64, 64, depths[0], 1)
        self.layer2 = _stage(64, 128, depths[1], 2)
        self.layer3 = _stage(128, 256, depths[2], 2)
        self.layer4 = _stage(256, 512, depths[3], 2)
        self.avgpool = nn.AdaptiveAvgPool2d((1, 1))
        self.fc = nn.Linear(512, classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[n, 3, h, w] → logits [n, classes]."""
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return cast(torch.Tensor, self.fc(torch.flatten(self.avgpool(x), 1)))


def _stage(in_channels: int, channels: int, depth: int, stride: int) -> nn.Sequential:
    first = BasicBlock(in_channels, channels, stride)
    return nn.Sequential(first, *(BasicBlock(channels, channels, 1) for _ in range(depth - 1)))


def resnet18(num_classes: int) -> ResNet:
    """ResNet-18: 11.2 M parameters with 10 classes, 11.7 M with 1000."""
    return ResNet((2, 2, 2, 2), num_classes)


MODELS = {"resnet18": resnet18}
