"""Tiny untrained networks, one for each way a model can be built, for tests of anything that reads models."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def randomised(model: nn.Module, seed: int = 0) -> nn.Module:
    """``model`` in eval mode with seeded weights and BatchNorm statistics as if it had been trained."""
    generator = torch.Generator().manual_seed(seed)
    for module in model.modules():
        for parameter in module.parameters(recurse=False):
            fan = max(1, parameter[0].numel()) if parameter.dim() > 1 else 4
            parameter.data = torch.randn(parameter.shape, generator=generator) * (1.5 / fan) ** 0.5
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_var is not None:
            assert module.running_mean is not None
            module.running_mean = torch.randn(module.running_mean.shape, generator=generator) * 0.3
            module.running_var = torch.rand(module.running_var.shape, generator=generator) + 0.5
            if module.affine:
                module.weight.data = torch.rand(module.weight.shape, generator=generator) + 0.5
    return model.eval()


class PlainCNN(nn.Module):
    """Convolutions with folded and unfolded norms, in-place activations; input [n, 3, 8, 8]."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(8)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(8, 12, 3, stride=2)
        self.bn2 = nn.BatchNorm2d(12, affine=False)
        self.pool = nn.MaxPool2d(2, 1)
        self.fc = nn.Linear(48, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.pool(F.relu6(self.bn2(self.conv2(x))))
        return self.fc(x.view(x.size(0), -1))  # type: ignore[no-any-return]


class ResidualBlock(nn.Module):
    """As in ResNet-18: two convolutions, an in-place addition, one activation module used twice."""

    def __init__(self, inside: int, outside: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inside, outside, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outside)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(outside, outside, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outside)
        self.downsample: nn.Module | None = None
        if stride != 1:
            self.downsample = nn.Sequential(nn.Conv2d(inside, outside, 1, stride, bias=False), nn.BatchNorm2d(outside))

    def forward(self, x: Tensor) -> Tensor:
        identity = x if self.downsample is None else self.downsample(x)
        y = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        y += identity
        return self.relu(y)  # type: ignore[no-any-return]


class ResidualNet(nn.Module):
    """Stem with max pooling and two residual blocks, the second one with downsampling; input [n, 3, 12, 12]."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(8)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, 2, 1)
        self.layer1 = nn.Sequential(ResidualBlock(8, 8, 1), ResidualBlock(8, 16, 2))
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        return self.fc(torch.flatten(self.avgpool(self.layer1(x)), 1))  # type: ignore[no-any-return]


class PreActivationNet(nn.Module):
    """Norm before convolution: the first one cannot be folded; input [n, 3, 8, 8]."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.bn1 = nn.BatchNorm2d(8)
        self.conv1 = nn.Conv2d(8, 8, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(8)
        self.conv2 = nn.Conv2d(8, 8, 3, padding=1, bias=False)
        self.fc = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        y = self.conv1(F.relu(self.bn1(x)))
        x = x + self.conv2(F.relu(self.bn2(y)))
        return self.fc(x.mean((2, 3)))  # type: ignore[no-any-return]


class DepthwiseNet(nn.Module):
    """Depthwise convolution, ReLU6, squeeze and excitation, transposed convolution; input [n, 3, 8, 8]."""

    def __init__(self) -> None:
        super().__init__()
        self.expand = nn.Sequential(nn.Conv2d(3, 12, 1, bias=False), nn.BatchNorm2d(12), nn.ReLU6(inplace=True))
        self.depthwise = nn.Sequential(
            nn.Conv2d(12, 12, 3, padding=1, groups=12, bias=False), nn.BatchNorm2d(12), nn.Hardswish(inplace=True)
        )
        self.squeeze = nn.Conv2d(12, 4, 1)
        self.excite = nn.Conv2d(4, 12, 1)
        self.up = nn.ConvTranspose2d(12, 6, 2, 2, groups=3, bias=False)
        self.up_norm = nn.BatchNorm2d(6)
        self.head = nn.Conv2d(6, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.depthwise(self.expand(x))
        scale = torch.sigmoid(self.excite(F.relu(self.squeeze(F.adaptive_avg_pool2d(x, 1)))))
        x = F.relu(self.up_norm(self.up(x * scale)))
        return self.head(x).mean((2, 3))  # type: ignore[no-any-return]


class ConcatNet(nn.Module):
    """Two branches joined by concatenation; returns a dict whose first tensor counts; input [n, 3, 8, 8]."""

    def __init__(self) -> None:
        super().__init__()
        self.left = nn.Conv2d(3, 6, 1)
        self.right = nn.Conv2d(3, 6, 3, padding=1)
        self.join = nn.Conv2d(12, 8, 3)
        self.fc = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        y = torch.cat([F.relu(self.left(x)), F.relu(self.right(x))], dim=1)
        y = F.relu(self.join(F.avg_pool2d(y, 2)))
        return {"logits": self.fc(F.adaptive_avg_pool2d(y, 1).flatten(1)), "features": y}


class SharedNet(nn.Module):
    """Two modules that hold one weight, and one module that runs twice; input [n, 6]."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(6, 6)
        self.second = nn.Linear(6, 6)
        self.second.weight = self.first.weight
        self.again = nn.Linear(6, 6)
        self.fc = nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.second(F.relu(self.first(x)))
        x = self.again(F.relu(self.again(F.relu(x))))
        return self.fc(F.relu(x))  # type: ignore[no-any-return]


class BranchNet(nn.Module):
    """A branch that depends on the data: no fixed graph; input [n, 3, 8, 8]."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, bias=False)
        self.bn = nn.BatchNorm2d(8)
        self.fc = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.bn(self.conv(x))
        if x.sum() > 1e9:
            x = x * 2
        return self.fc(F.relu(x).mean((2, 3)))  # type: ignore[no-any-return]


class MLP(nn.Module):
    """Linear layers with BatchNorm1d; input [n, 1, 4, 4]."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Flatten(), nn.Linear(16, 12), nn.BatchNorm1d(12), nn.ReLU(), nn.Dropout(0.5), nn.Linear(12, 5)
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)  # type: ignore[no-any-return]


class AudioNet(nn.Module):
    """One-dimensional convolutions; input [n, 2, 24]."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv1d(2, 8, 5, bias=False)
        self.bn1 = nn.BatchNorm1d(8)
        self.conv2 = nn.Conv1d(8, 8, 3, dilation=2)
        self.fc = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        return self.fc(x.mean(-1))  # type: ignore[no-any-return]


class AttentionNet(nn.Module):
    """Tokens, a class token, an attention block with LayerNorm, GELU; input [n, 6, 8]."""

    def __init__(self) -> None:
        super().__init__()
        self.token = nn.Parameter(torch.zeros(1, 1, 8))
        self.norm1 = nn.LayerNorm(8)
        self.qkv = nn.Linear(8, 24)
        self.proj = nn.Linear(8, 8)
        self.norm2 = nn.LayerNorm(8)
        self.mlp = nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 8))
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.cat([self.token.expand(x.size(0), -1, -1), x], dim=1)
        n, t, c = x.shape
        q, k, v = self.qkv(self.norm1(x)).reshape(n, t, 3, 2, c // 2).permute(2, 0, 3, 1, 4).unbind(0)
        x = x + self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(n, t, c))
        x = x + self.mlp(self.norm2(x))
        return self.head(x[:, 0])  # type: ignore[no-any-return]


class TokenNet(nn.Module):
    """Embedding tied to the output layer, multi-head attention module; input [n, 7] of integers below 11."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(11, 8)
        self.block = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
        self.head = nn.Linear(8, 11, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.block(self.embed(x)))[:, -1]  # type: ignore[no-any-return]


EXAMPLES: dict[str, tuple[type[nn.Module], tuple[int, ...]]] = {
    "plain": (PlainCNN, (3, 8, 8)),
    "residual": (ResidualNet, (3, 12, 12)),
    "preactivation": (PreActivationNet, (3, 8, 8)),
    "depthwise": (DepthwiseNet, (3, 8, 8)),
    "concat": (ConcatNet, (3, 8, 8)),
    "shared": (SharedNet, (6,)),
    "branch": (BranchNet, (3, 8, 8)),
    "mlp": (MLP, (1, 4, 4)),
    "audio": (AudioNet, (2, 24)),
    "attention": (AttentionNet, (6, 8)),
    "tokens": (TokenNet, (7,)),
}
"""Name → (class, shape of one input)."""


def example(name: str, samples: int = 3, seed: int = 0) -> tuple[nn.Module, Tensor]:
    """A seeded network of :data:`EXAMPLES` and inputs for it."""
    cls, shape = EXAMPLES[name]
    generator = torch.Generator().manual_seed(seed + 1)
    if name == "tokens":
        return randomised(cls(), seed), torch.randint(11, (samples, *shape), generator=generator)
    return randomised(cls(), seed), torch.randn(samples, *shape, generator=generator)
