"""ResNet for 32 x 32 images (He et al. 2016, section 4.2), with parameter-free "option A" shortcuts."""

from __future__ import annotations

from typing import cast

import torch
from torch import nn
from torch.nn import functional as F


class CifarBlock(nn.Module):
    """Two 3x3 convolutions; where the shape changes, the shortcut subsamples and pads channels with zeros."""

    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.stride = stride
        self.pad = (channels - in_channels) // 2

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[n, in, h, w] → [n, channels, h / stride, w / stride]."""
        shortcut = x
        if self.stride != 1 or self.pad:
            shortcut = F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, self.pad, self.pad))
        out = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(out)) + shortcut)


class CifarResNet(nn.Module):
    """A 3x3 stem and three stages of 16, 32 and 64 channels.

    Args:
        depth: blocks a stage; the network has 6 * depth + 2 weighted layers.
        classes: outputs of the head.
    """

    def __init__(self, depth: int, classes: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.layer1 = _stage(16, 16, depth, 1)
        self.layer2 = _stage(16, 32, depth, 2)
        self.layer3 = _stage(32, 64, depth, 2)
        self.linear = nn.Linear(64, classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.kaiming_normal_(module.weight)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[n, 3, h, w] → logits [n, classes]."""
        x = F.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return cast(torch.Tensor, self.linear(torch.flatten(F.adaptive_avg_pool2d(x, 1), 1)))


def _stage(in_channels: int, channels: int, depth: int, stride: int) -> nn.Sequential:
    first = CifarBlock(in_channels, channels, stride)
    return nn.Sequential(first, *(CifarBlock(channels, channels, 1) for _ in range(depth - 1)))


def resnet20(num_classes: int) -> CifarResNet:
    """ResNet-20: 269,722 parameters with 10 classes."""
    return CifarResNet(3, num_classes)


MODELS = {"resnet20": resnet20}
