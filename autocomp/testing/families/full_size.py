"""torchvision's networks at full size, with random weights; optional: torchvision is no dependency."""

from __future__ import annotations

import importlib
import importlib.util
from typing import Any

import torch
from torch import Tensor, nn

from autocomp.errors import UnsupportedError
from autocomp.testing.families import settle

FULL_SIZE: dict[str, int] = {
    "alexnet": 224,
    "vgg11": 224,
    "vgg16_bn": 224,
    "resnet18": 224,
    "resnet50": 224,
    "googlenet": 224,
    "inception_v3": 299,
    "mobilenet_v2": 224,
    "mobilenet_v3_small": 224,
    "mobilenet_v3_large": 224,
    "densenet121": 224,
    "squeezenet1_1": 224,
    "shufflenet_v2_x1_0": 224,
    "efficientnet_b0": 224,
    "vit_b_16": 224,
    "swin_t": 224,
    "convnext_tiny": 224,
}
"""Name in torchvision → side of the images."""

_UNBUILT = ("nms", "qnms")
"""Operations that torchvision's Python part expects of its compiled part, which another torch cannot load."""

_SCHEMA = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
_library: list[Any] = []


def torchvision_models() -> Any:
    """The module ``torchvision.models``.

    Raises:
        UnsupportedError: torchvision is not installed, or does not import.
    """
    if importlib.util.find_spec("torchvision") is None:
        raise UnsupportedError("torchvision is not installed; pip install torchvision")
    try:
        return importlib.import_module("torchvision.models")
    except RuntimeError:  # its compiled part belongs to another torch: the networks need none of it
        library: Any = torch.library.Library("torchvision", "FRAGMENT")  # type: ignore[no-untyped-call]
        for name in _UNBUILT:
            library.define(f"{name}{_SCHEMA}")
        _library.append(library)  # freed, it would take the definitions along
    try:
        return importlib.import_module("torchvision.models")
    except RuntimeError as error:
        raise UnsupportedError(f"torchvision does not import beside this torch ({error}); install one for it") from None


def full_size_inputs(name: str, count: int, seed: int = 1) -> Tensor:
    """Normal deviates [count, 3, side, side]."""
    side = FULL_SIZE[name]
    return torch.randn(count, 3, side, side, generator=torch.Generator().manual_seed(seed))


def full_size(name: str, seed: int = 0) -> nn.Module:
    """torchvision's network with seeded weights and BatchNorm statistics of random images, in evaluation mode.

    Raises:
        UnsupportedError: as :func:`torchvision_models`.
    """
    options = {"aux_logits": False} if name == "googlenet" else {}
    options |= {"init_weights": False} if name in ("googlenet", "inception_v3") else {}
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        model: nn.Module = getattr(torchvision_models(), name)(weights=None, **options)
        _awake(model)
        settle(model, full_size_inputs(name, 4, seed + 7))
    return model.eval()


def _awake(model: nn.Module) -> None:
    """Weights that start as nothing, so that the network begins as something simpler, get values as if trained.

    torchvision's ViT starts with a head of zeros: whatever is done to its blocks, its outputs stay zero. ConvNeXt's
    blocks start scaled by 1e-6.
    """
    for name, parameter in model.named_parameters():
        if parameter.dim() > 1 and not parameter.any():
            nn.init.normal_(parameter, std=parameter.shape[-1] ** -0.5)
        elif name.endswith("layer_scale"):
            nn.init.uniform_(parameter, 0.2, 0.6)


def untrained_full_size(name: str) -> nn.Module:
    """Another instance of the class, its weights different ones: what a user loads a file into."""
    return full_size(name, seed=99)
