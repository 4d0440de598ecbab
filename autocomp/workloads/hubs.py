"""Architectures from torchvision and timm, where they are installed. Nothing is downloaded."""

from __future__ import annotations

import importlib
import importlib.util

from torch import nn

from autocomp.errors import ConfigError, UnknownNameError, UnsupportedError

PACKAGES = ("torchvision", "timm")


def missing(package: str) -> str:
    """ "" when usable here, else the command that installs it."""
    return "" if importlib.util.find_spec(package) else f"pip install {package}"


def how_to_save(spec: str) -> str:
    """A command that saves pretrained weights of ``spec`` for --weights."""
    package, _, name = spec.partition(":")
    source = {
        "torchvision": f"torchvision.models.get_model('{name}', weights='DEFAULT')",
        "timm": f"timm.create_model('{name}', pretrained=True)",
    }[package]
    return (
        f'save them once with: python -c "import {package}, safetensors.torch as s; '
        f"s.save_file({source}.state_dict(), '{name}.safetensors')\""
    )


def build(spec: str, classes: int | None) -> nn.Module:
    """The architecture ``torchvision:NAME`` or ``timm:NAME``, untrained, with ``classes`` outputs.

    Raises:
        UnsupportedError: the package is not installed.
        UnknownNameError: it has no such model.
        ConfigError: the model cannot be built with so many classes.
    """
    package, _, name = spec.partition(":")
    if command := missing(package):
        raise UnsupportedError(f"model {spec}: {package} is not installed; {command}")
    module = importlib.import_module("torchvision.models" if package == "torchvision" else "timm")
    known = list(module.list_models())
    if name not in known:
        raise UnknownNameError(f"{package} model", name, known)
    sized = {} if classes is None else {"num_classes": classes}
    try:
        if package == "torchvision":
            built = module.get_model(name, weights=None, **sized)
        else:
            built = module.create_model(name, pretrained=False, **sized)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ConfigError(f"model {spec}: cannot be built with {classes} classes ({error})") from error
    if not isinstance(built, nn.Module):
        raise ConfigError(f"model {spec}: no torch module")
    return built
