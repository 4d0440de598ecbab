"""Small convolutional networks, each with the structure that makes its family hard; input [n, 3, 32, 32]."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

CLASSES = 10


def conv_norm(
    inputs: int, outputs: int, kernel: int = 1, stride: int = 1, groups: int = 1, activation: nn.Module | None = None
) -> nn.Sequential:
    """Convolution, BatchNorm and, where given, an activation."""
    layers: list[nn.Module] = [
        nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False),
        nn.BatchNorm2d(outputs),
    ]
    return nn.Sequential(*layers, *([activation] if activation is not None else []))


class AlexNet(nn.Module):
    """Strided stem, pooling, dropout and a wide first linear layer behind a flatten (Krizhevsky et al. 2012)."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, 16, 5, stride=2, padding=2),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(3, 2),
            nn.Conv2d(16, 32, 3, padding=1),
            nn.ReLU(inplace=True),
            nn.Conv2d(32, 24, 3, padding=1),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(3, 2),
        )
        self.avgpool = nn.AdaptiveAvgPool2d((3, 3))
        self.classifier = nn.Sequential(
            nn.Dropout(),
            nn.Linear(24 * 9, 96),
            nn.ReLU(inplace=True),
            nn.Dropout(),
            nn.Linear(96, 64),
            nn.ReLU(inplace=True),
            nn.Linear(64, CLASSES),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(torch.flatten(self.avgpool(self.features(x)), 1))  # type: ignore[no-any-return]


class VGG(nn.Module):
    """Plain 3 x 3 convolutions, with or without BatchNorm (Simonyan and Zisserman 2015)."""

    def __init__(self, norm: bool = True) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        inside = 3
        for width in (16, 16, 0, 24, 24, 0, 32, 0):
            if width == 0:
                layers.append(nn.MaxPool2d(2, 2))
                continue
            layers.append(nn.Conv2d(inside, width, 3, padding=1))
            layers += [nn.BatchNorm2d(width)] if norm else []
            layers.append(nn.ReLU(inplace=True))
            inside = width
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Sequential(nn.Linear(32 * 16, 48), nn.ReLU(True), nn.Dropout(), nn.Linear(48, CLASSES))

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(torch.flatten(self.features(x), 1))  # type: ignore[no-any-return]


class BasicBlock(nn.Module):
    """Two convolutions beside an identity or a 1 x 1 projection."""

    def __init__(self, inside: int, outside: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(inside, outside, 3, stride, 1, bias=False), nn.BatchNorm2d(outside)
        self.conv2, self.bn2 = nn.Conv2d(outside, outside, 3, 1, 1, bias=False), nn.BatchNorm2d(outside)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = conv_norm(inside, outside, 1, stride) if stride != 1 or inside != outside else None

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        y += x if self.downsample is None else self.downsample(x)
        return self.relu(y)  # type: ignore[no-any-return]


class Bottleneck(nn.Module):
    """1 x 1, 3 x 3, 1 x 1 beside an identity or a projection; grouped in the middle as in ResNeXt."""

    def __init__(self, inside: int, middle: int, stride: int, groups: int = 1) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(inside, middle, 1, bias=False), nn.BatchNorm2d(middle)
        self.conv2 = nn.Conv2d(middle, middle, 3, stride, 1, groups=groups, bias=False)
        self.bn2 = nn.BatchNorm2d(middle)
        self.conv3, self.bn3 = nn.Conv2d(middle, 4 * middle, 1, bias=False), nn.BatchNorm2d(4 * middle)
        self.relu = nn.ReLU(inplace=True)
        plain = stride == 1 and inside == 4 * middle
        self.downsample = None if plain else conv_norm(inside, 4 * middle, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        y = self.relu(self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x))))))
        y = self.bn3(self.conv3(y))
        return self.relu(y + (x if self.downsample is None else self.downsample(x)))  # type: ignore[no-any-return]


class ResNet(nn.Module):
    """Stem with pooling and residual stages (He et al. 2016); "basic", "bottleneck" or "resnext" blocks."""

    def __init__(self, block: str = "basic") -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, 2, 1)
        if block == "basic":
            self.layer1 = nn.Sequential(BasicBlock(16, 16, 1), BasicBlock(16, 16, 1))
            self.layer2 = nn.Sequential(BasicBlock(16, 32, 2), BasicBlock(32, 32, 1))
            width = 32
        else:
            groups = 4 if block == "resnext" else 1
            self.layer1 = nn.Sequential(Bottleneck(16, 8, 1, groups), Bottleneck(32, 8, 1, groups))
            self.layer2 = nn.Sequential(Bottleneck(32, 16, 2, groups), Bottleneck(64, 16, 1, groups))
            width = 64
        self.avgpool = nn.AdaptiveAvgPool2d((1, 1))
        self.fc = nn.Linear(width, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.layer2(self.layer1(self.maxpool(self.relu(self.bn1(self.conv1(x))))))
        return self.fc(torch.flatten(self.avgpool(x), 1))  # type: ignore[no-any-return]


class Inception(nn.Module):
    """Four branches, one of them with 1 x 7 and 7 x 1 kernels, joined by concatenation (Szegedy et al. 2015, 2016)."""

    def __init__(self, inside: int) -> None:
        super().__init__()
        self.branch1 = conv_norm(inside, 8)
        self.branch2 = nn.Sequential(conv_norm(inside, 8, activation=nn.ReLU()), conv_norm(8, 12, 3))
        self.branch3 = nn.Sequential(
            conv_norm(inside, 6, activation=nn.ReLU()),
            nn.Conv2d(6, 6, (1, 7), padding=(0, 3), bias=False),
            nn.BatchNorm2d(6),
            nn.ReLU(),
            nn.Conv2d(6, 8, (7, 1), padding=(3, 0), bias=False),
            nn.BatchNorm2d(8),
        )
        self.branch4 = nn.Sequential(nn.MaxPool2d(3, 1, 1, ceil_mode=True), conv_norm(inside, 4))

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(torch.cat([self.branch1(x), self.branch2(x), self.branch3(x), self.branch4(x)], 1))


class GoogLeNet(nn.Module):
    """Inception modules after each other; an auxiliary head that only training runs."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv_norm(3, 16, 3, 2, activation=nn.ReLU())
        self.inception1, self.inception2 = Inception(16), Inception(32)
        self.pool = nn.MaxPool2d(3, 2, ceil_mode=True)
        self.aux = nn.Linear(32, CLASSES)
        self.dropout = nn.Dropout(0.2)
        self.fc = nn.Linear(32, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.inception2(self.pool(self.inception1(self.stem(x))))
        x = torch.flatten(F.adaptive_avg_pool2d(x, 1), 1)
        return self.fc(self.dropout(x)) + (self.aux(x) if self.training else 0)  # type: ignore[no-any-return]


class InvertedResidual(nn.Module):
    """Expansion, depthwise convolution, linear projection; MobileNetV2 (Sandler et al. 2018)."""

    def __init__(self, inside: int, outside: int, stride: int, expand: int = 4) -> None:
        super().__init__()
        hidden = inside * expand
        self.conv = nn.Sequential(
            *([conv_norm(inside, hidden, activation=nn.ReLU6(inplace=True))] if expand > 1 else []),
            conv_norm(hidden, hidden, 3, stride, hidden, nn.ReLU6(inplace=True)),
            conv_norm(hidden, outside),
        )
        self.adds = stride == 1 and inside == outside

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv(x) if self.adds else self.conv(x)  # type: ignore[no-any-return]


class MobileNetV2(nn.Module):
    """Inverted residuals between a stem and a wide last convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            conv_norm(3, 16, 3, 2, activation=nn.ReLU6(inplace=True)),
            InvertedResidual(16, 12, 1, expand=1),
            InvertedResidual(12, 16, 2),
            InvertedResidual(16, 16, 1),
            InvertedResidual(16, 24, 2),
            InvertedResidual(24, 24, 1),
            conv_norm(24, 64, activation=nn.ReLU6(inplace=True)),
        )
        self.classifier = nn.Sequential(nn.Dropout(0.2), nn.Linear(64, CLASSES))

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.features(x).mean([2, 3]))  # type: ignore[no-any-return]


class SqueezeExcitation(nn.Module):
    """Channel gates from pooled activations (Hu et al. 2018)."""

    def __init__(self, channels: int, squeezed: int, gate: type[nn.Module] = nn.Hardsigmoid) -> None:
        super().__init__()
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc1, self.fc2 = nn.Conv2d(channels, squeezed, 1), nn.Conv2d(squeezed, channels, 1)
        self.activation, self.gate = nn.ReLU(), gate()

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gate(self.fc2(self.activation(self.fc1(self.avgpool(x)))))  # type: ignore[no-any-return]


class GatedBlock(nn.Module):
    """An inverted residual with squeeze and excitation: MobileNetV3's with hard-swish, EfficientNet's with SiLU."""

    def __init__(self, inside: int, outside: int, kernel: int, stride: int, activation: type[nn.Module]) -> None:
        super().__init__()
        hidden = 3 * inside
        gate = nn.Hardsigmoid if activation is nn.Hardswish else nn.Sigmoid
        self.block = nn.Sequential(
            conv_norm(inside, hidden, activation=activation(inplace=True)),
            conv_norm(hidden, hidden, kernel, stride, hidden, activation(inplace=True)),
            SqueezeExcitation(hidden, 8, gate),
            conv_norm(hidden, outside),
        )
        self.adds = stride == 1 and inside == outside

    def forward(self, x: Tensor) -> Tensor:
        y = self.block(x)
        if self.adds:
            y += x
        return y  # type: ignore[no-any-return]


class GatedNet(nn.Module):
    """MobileNetV3 (Howard et al. 2019), or EfficientNet (Tan and Le 2019) with ``activation`` SiLU."""

    def __init__(self, activation: type[nn.Module] = nn.Hardswish) -> None:
        super().__init__()
        self.features = nn.Sequential(
            conv_norm(3, 12, 3, 2, activation=activation(inplace=True)),
            GatedBlock(12, 12, 3, 1, activation),
            GatedBlock(12, 20, 5, 2, activation),
            GatedBlock(20, 20, 5, 1, activation),
            conv_norm(20, 64, activation=activation(inplace=True)),
        )
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Sequential(
            nn.Linear(64, 96), activation(inplace=True), nn.Dropout(0.2, inplace=True), nn.Linear(96, CLASSES)
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(torch.flatten(self.avgpool(self.features(x)), 1))  # type: ignore[no-any-return]


class DenseLayer(nn.Module):
    """Norm, 1 x 1, norm, 3 x 3 on everything that was made before."""

    def __init__(self, inside: int, growth: int) -> None:
        super().__init__()
        self.norm1, self.conv1 = nn.BatchNorm2d(inside), nn.Conv2d(inside, 2 * growth, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(2 * growth)
        self.conv2 = nn.Conv2d(2 * growth, growth, 3, padding=1, bias=False)

    def forward(self, features: list[Tensor]) -> Tensor:
        y = self.conv1(F.relu(self.norm1(torch.cat(features, 1))))
        return self.conv2(F.relu(self.norm2(y)))  # type: ignore[no-any-return]


class DenseNet(nn.Module):
    """Dense concatenation with a transition in between (Huang et al. 2017)."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv_norm(3, 16, 3, 2, activation=nn.ReLU(inplace=True))
        self.block1 = nn.ModuleList(DenseLayer(16 + 8 * i, 8) for i in range(3))
        self.transition = nn.Sequential(nn.BatchNorm2d(40), nn.ReLU(), nn.Conv2d(40, 20, 1, bias=False))
        self.block2 = nn.ModuleList(DenseLayer(20 + 8 * i, 8) for i in range(3))
        self.norm = nn.BatchNorm2d(44)
        self.classifier = nn.Linear(44, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = F.avg_pool2d(self.transition(_dense(self.block1, self.stem(x))), 2)
        x = F.relu(self.norm(_dense(self.block2, x)))
        return self.classifier(torch.flatten(F.adaptive_avg_pool2d(x, (1, 1)), 1))  # type: ignore[no-any-return]


def _dense(block: nn.ModuleList, x: Tensor) -> Tensor:
    features = [x]
    for layer in block:
        features.append(layer(features))
    return torch.cat(features, 1)


class Fire(nn.Module):
    """A squeeze whose output two expansions read, joined by concatenation (Iandola et al. 2016)."""

    def __init__(self, inside: int, squeeze: int, expand: int) -> None:
        super().__init__()
        self.squeeze = nn.Conv2d(inside, squeeze, 1)
        self.expand1x1, self.expand3x3 = nn.Conv2d(squeeze, expand, 1), nn.Conv2d(squeeze, expand, 3, padding=1)
        self.activation = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        x = self.activation(self.squeeze(x))
        return torch.cat([self.activation(self.expand1x1(x)), self.activation(self.expand3x3(x))], 1)


class SqueezeNet(nn.Module):
    """Fire modules; the last convolution makes the classes."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, 24, 3, stride=2),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(3, 2, ceil_mode=True),
            Fire(24, 8, 24),
            Fire(48, 8, 24),
            nn.MaxPool2d(3, 2, ceil_mode=True),
            Fire(48, 12, 32),
        )
        self.final = nn.Conv2d(64, CLASSES, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.final(F.dropout(self.features(x), 0.5, self.training)))
        return torch.flatten(F.adaptive_avg_pool2d(x, (1, 1)), 1)


class ShuffleUnit(nn.Module):
    """Channel split, depthwise branch, concatenation and channel shuffle by views (Ma et al. 2018)."""

    def __init__(self, inside: int, outside: int, stride: int) -> None:
        super().__init__()
        half = outside // 2
        first = inside if stride == 2 else half
        self.stride = stride
        self.branch1 = nn.Sequential(conv_norm(first, first, 3, 2, first), conv_norm(first, half, 1, 1, 1, nn.ReLU()))
        self.branch2 = nn.Sequential(
            conv_norm(first, half, activation=nn.ReLU()),
            conv_norm(half, half, 3, stride, half),
            conv_norm(half, half, activation=nn.ReLU()),
        )
        if stride == 1:
            self.branch1 = nn.Sequential()

    def forward(self, x: Tensor) -> Tensor:
        if self.stride == 1:
            kept, changed = x.chunk(2, dim=1)
            x = torch.cat((kept, self.branch2(changed)), dim=1)
        else:
            x = torch.cat((self.branch1(x), self.branch2(x)), dim=1)
        n, c, h, w = x.size()
        return x.view(n, 2, c // 2, h, w).transpose(1, 2).contiguous().view(n, c, h, w)


class ShuffleNetV2(nn.Module):
    """Stem, shuffle units of both strides, last convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv_norm(3, 24, 3, 2, activation=nn.ReLU(inplace=True))
        self.stage = nn.Sequential(
            ShuffleUnit(24, 48, 2), *(ShuffleUnit(48, 48, 1) for _ in range(3)), ShuffleUnit(48, 64, 2)
        )
        self.conv5 = conv_norm(64, 96, activation=nn.ReLU(inplace=True))
        self.fc = nn.Linear(96, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.conv5(self.stage(self.stem(x))).mean([2, 3]))  # type: ignore[no-any-return]


class UNet(nn.Module):
    """Skips by concatenation, a transposed convolution and an interpolation on the way up (Ronneberger et al. 2015).

    Returns [n, classes, 32, 32].
    """

    def __init__(self) -> None:
        super().__init__()
        self.down1 = conv_norm(3, 12, 3, activation=nn.ReLU())
        self.down2 = conv_norm(12, 24, 3, activation=nn.ReLU())
        self.bottom = conv_norm(24, 32, 3, activation=nn.ReLU())
        self.up2 = nn.ConvTranspose2d(32, 24, 2, stride=2)
        self.join2 = conv_norm(48, 16, 3, activation=nn.ReLU())
        self.join1 = conv_norm(28, 12, 3, activation=nn.ReLU())
        self.head = nn.Conv2d(12, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        first = self.down1(x)
        second = self.down2(F.max_pool2d(first, 2))
        x = self.bottom(F.max_pool2d(second, 2))
        x = self.join2(torch.cat([self.up2(x), second], dim=1))
        x = F.interpolate(x, scale_factor=2.0, mode="nearest")
        return self.head(self.join1(torch.cat([x, first], dim=1)))  # type: ignore[no-any-return]
