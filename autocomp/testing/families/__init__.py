"""Small members of every common network family, untrained, for checking that all of them can be compressed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from autocomp.errors import UnknownNameError
from autocomp.testing.families import attention, convolutional, irregular


@dataclass(frozen=True, kw_only=True)
class Family:
    """How a network of one family is made.

    Attributes:
        build: makes it, its weights whatever torch's own initialisation draws.
        shape: of one input.
        tokens: inputs are int64 below this; 0: float32.
        classes: whether the output is class scores [n, classes].
    """

    build: Callable[[], nn.Module]
    shape: tuple[int, ...] = (3, 32, 32)
    tokens: int = 0
    classes: bool = True

    def inputs(self, count: int, seed: int = 1) -> Tensor:
        """[count, *shape]: normal deviates, or token ids."""
        generator = torch.Generator().manual_seed(seed)
        if self.tokens:
            return torch.randint(self.tokens, (count, *self.shape), generator=generator)
        return torch.randn(count, *self.shape, generator=generator)


FAMILIES: dict[str, Family] = {
    "alexnet": Family(build=convolutional.AlexNet),
    "vgg": Family(build=lambda: convolutional.VGG(norm=False)),
    "vgg_bn": Family(build=convolutional.VGG),
    "resnet": Family(build=convolutional.ResNet),
    "resnet_bottleneck": Family(build=lambda: convolutional.ResNet("bottleneck")),
    "resnext": Family(build=lambda: convolutional.ResNet("resnext")),
    "googlenet": Family(build=convolutional.GoogLeNet),
    "mobilenet_v2": Family(build=convolutional.MobileNetV2),
    "mobilenet_v3": Family(build=convolutional.GatedNet),
    "efficientnet": Family(build=lambda: convolutional.GatedNet(nn.SiLU)),
    "densenet": Family(build=convolutional.DenseNet),
    "squeezenet": Family(build=convolutional.SqueezeNet),
    "shufflenet_v2": Family(build=convolutional.ShuffleNetV2),
    "unet": Family(build=convolutional.UNet, classes=False),
    "vit": Family(build=attention.ViT),
    "vit_packed": Family(build=lambda: attention.ViT(packed=True)),
    "swin": Family(build=attention.Swin),
    "convnext": Family(build=attention.ConvNeXt),
    "bert": Family(build=attention.Bert, shape=(16,), tokens=200),
    "lstm": Family(build=irregular.LSTMTagger, shape=(12,), tokens=100, classes=False),
    "tied": Family(build=irregular.TiedEncoder, shape=(12,), tokens=120),
    "shared": Family(build=irregular.SharedConvolutions),
    "reused": Family(build=irregular.ReusedBlock),
    "branch": Family(build=irregular.DataBranch),
    "wide": Family(build=irregular.WideLinear),
    "audio": Family(build=irregular.AudioNet, shape=(4, 64)),
}
"""By name; none needs a package besides torch."""


def make_family(name: str, seed: int = 0) -> tuple[nn.Module, Family]:
    """A network of :data:`FAMILIES` in evaluation mode, the same weights for the same seed, and how it is made.

    Raises:
        UnknownNameError: no such family.
    """
    if name not in FAMILIES:
        raise UnknownNameError("network family", name, FAMILIES)
    return seeded(FAMILIES[name], seed), FAMILIES[name]


def seeded(family: Family, seed: int = 0) -> nn.Module:
    """A network of ``family`` with seeded weights and BatchNorm statistics of random inputs, in evaluation mode."""
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        model = family.build()
        settle(model, family.inputs(16, seed + 7))
    return model.eval()


def settle(model: nn.Module, inputs: Tensor) -> None:
    """Give ``model``'s BatchNorms the statistics of ``inputs`` and random scales, as training would have.

    Without any norm, layers get He's initialisation (2015): with torch's own, signals die out along the way.
    """
    if not any(isinstance(m, nn.modules.batchnorm._BatchNorm | nn.LayerNorm) for m in model.modules()):
        for module in model.modules():
            if isinstance(module, nn.Conv1d | nn.Conv2d | nn.Linear):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
    norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    for norm in norms:
        norm.momentum = None
        if norm.affine:
            norm.weight.copy_(torch.rand(norm.weight.shape) + 0.5)
            norm.bias.copy_(torch.randn(norm.bias.shape) * 0.2)
    if norms:
        model.train()(inputs)
    for norm in norms:
        norm.momentum = 0.1


def untrained(name: str) -> nn.Module:
    """Another instance of a family's class, its weights different ones: what a user loads a file into."""
    return seeded(FAMILIES[name], seed=99)
