"""From settings, or from Python objects, to a :class:`Workload`: model, weights, data, metric, all checked."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn

from autocomp.core.progress import Progress, Silent
from autocomp.core.settings import Settings
from autocomp.core.workload import Metric, Workload
from autocomp.errors import ConfigError, DataError, UnknownNameError
from autocomp.workloads import data as data_specs
from autocomp.workloads import digits, factories, hubs, metrics, models, normalize, weight_cache, weights

DEFAULT_DATA = "digits"
"""What built-in models are trained on when nothing else is asked for."""


def load_workload(settings: Settings, progress: Progress | None = None) -> Workload:
    """The workload that ``settings`` name. The first use of a built-in model on digits trains it.

    Raises:
        ConfigError, UnknownNameError: a spec that names nothing, or a model without trained weights.
        DataError: data, weights or model that cannot be used; the message names what and the remedy.
        UnsupportedError: torchvision or timm is asked for and missing.
    """
    progress = progress or Silent()
    kind = _model_kind(settings.model)
    data_spec = settings.data or (DEFAULT_DATA if kind == "built-in" else None)
    if data_spec is None:
        raise ConfigError(f"model {settings.model}: --data is needed for models that are not built in")
    if settings.weights is None:
        _refuse_untrained(kind, settings.model, data_spec)
    metric = metrics.resolve(settings.metric)
    data = data_specs.load_data(data_spec, _request(settings))
    name, build = _builder(kind, settings.model)
    classes = data.classes
    if settings.weights is not None:
        model = build(classes)
        state = weights.load_state(settings.weights)
        weights.apply_state(model, state, source=str(settings.weights), classes=classes)
        origin = str(settings.weights)
    elif kind == "built-in":
        model = digits.trained(
            settings.model,
            seed=settings.seed,
            size=settings.image_size or digits.IMAGE_SIZE,
            normalization=normalize.parse(settings.normalize),
            progress=progress,
        )
        origin = f"trained on {data_spec}, seed {settings.seed}"
    else:
        model, origin = build(classes), f"as {settings.model} returns them"
    return _assemble(
        name=name,
        model=model,
        data=data,
        metric=metric,
        model_spec=settings.model,
        rebuild=partial(build, classes),
        facts={"weights": origin, "normalize": settings.normalize, "model": settings.model},
        progress=progress,
    )


def from_objects(model: nn.Module, data: Any, settings: Settings, progress: Progress | None = None) -> Workload:
    """A workload from a trained module; the module is copied, the caller's stays as it is.

    Args:
        model: trained, any device, any mode.
        data: a data spec, or (train, test) or (train, search, test): map-style datasets or
            (inputs, targets) pairs of tensors or arrays.
        settings: ``metric``, ``image_size``, ``normalize``, ``seed``, ``weights`` and the preset's
            calibration count are read.
        progress: told while data is read.

    Raises:
        DataError, ConfigError, UnknownNameError: as :func:`load_workload`.
    """
    name = type(model).__name__.lower()
    request = _request(settings)
    loaded = (
        data_specs.load_data(data, request) if isinstance(data, str) else data_specs.from_objects(data, "data", request)
    )
    own = copy.deepcopy(model).cpu().float()
    origin = "as given"
    if settings.weights is not None:
        state = weights.load_state(settings.weights)
        weights.apply_state(own, state, source=str(settings.weights), classes=loaded.classes)
        origin = str(settings.weights)
    return _assemble(
        name=name,
        model=own,
        data=loaded,
        metric=metrics.resolve(settings.metric),
        model_spec=f"{type(model).__module__}:{type(model).__qualname__}",
        rebuild=partial(copy.deepcopy, own),
        facts={"weights": origin, "normalize": settings.normalize, "model": name},
        progress=progress or Silent(),
    )


def rebuild_model(model_spec: str, classes: int | None) -> nn.Module:
    """An untrained copy of the built-in model that ``model_spec`` names; nobody's code is run.

    Raises:
        UnknownNameError: no built-in model has this name.
    """
    return models.build(model_spec, classes or digits.CLASSES)


@dataclass(frozen=True, kw_only=True)
class ModelInfo:
    """One line of ``autocomp models``.

    Attributes:
        name: built-in name, or the form of a spec.
        parameters: elements of its parameters with ten classes, None where any model is meant.
        float32_bytes: 4 bytes for each floating-point element of its state dict.
        data: used where no data is named.
        usable: here and now.
        missing: what to do where it is not.
    """

    name: str
    parameters: int | None
    float32_bytes: int | None
    data: str
    usable: bool
    missing: str = ""


def list_models() -> list[ModelInfo]:
    """The built-in models and the forms of specs that name others."""
    rows = []
    for name in models.names():
        with torch.random.fork_rng(devices=[]):
            network = models.build(name, digits.CLASSES)
        elements = sum(v.numel() for v in network.state_dict().values() if v.is_floating_point())
        rows.append(
            ModelInfo(
                name=name,
                parameters=sum(p.numel() for p in network.parameters()),
                float32_bytes=4 * elements,
                data=DEFAULT_DATA,
                usable=True,
            )
        )
    for package in hubs.PACKAGES:
        missing = hubs.missing(package)
        rows.append(_form(f"{package}:NAME", missing))
    return [*rows, _form("package.module:factory", ""), _form("path/file.py:factory", "")]


def _form(name: str, missing: str) -> ModelInfo:
    return ModelInfo(name=name, parameters=None, float32_bytes=None, data="--data", usable=not missing, missing=missing)


def _request(settings: Settings) -> data_specs.Request:
    return data_specs.Request(
        size=settings.image_size,
        normalization=normalize.parse(settings.normalize),
        calibration=settings.spend.calibration,
        seed=settings.seed,
        labels=metrics.needs_labels(settings.metric),
    )


def _model_kind(spec: str) -> str:
    """ "built-in", a hub's package name, or "factory"."""
    if spec in models.names():
        return "built-in"
    package, colon, _ = spec.partition(":")
    if colon and package in hubs.PACKAGES:
        return package
    if factories.is_factory(spec):
        return "factory"
    forms = [f"{package}:NAME" for package in hubs.PACKAGES]
    raise UnknownNameError("model", spec, [*models.names(), *forms, "package.module:factory", "path/file.py:factory"])


def _refuse_untrained(kind: str, spec: str, data_spec: str) -> None:
    if kind == "built-in" and data_spec != DEFAULT_DATA:
        raise ConfigError(
            f"model {spec} is untrained on {data_spec}; give --weights FILE, or leave out --data ({DEFAULT_DATA})"
        )
    if kind in hubs.PACKAGES:
        raise ConfigError(f"model {spec}: --weights FILE is needed (nothing is downloaded); {hubs.how_to_save(spec)}")


def _builder(kind: str, spec: str) -> tuple[str, Callable[[int | None], nn.Module]]:
    """Name for titles, and what builds the model for so many classes."""
    if kind == "built-in":
        return spec, partial(rebuild_model, spec)
    if kind in hubs.PACKAGES:
        return spec.partition(":")[2], partial(hubs.build, spec)
    return spec.rpartition(":")[2], partial(_from_factory, spec)


def _from_factory(spec: str, classes: int | None) -> nn.Module:
    """The module that the user's factory returns; told the number of classes where it takes ``num_classes``."""
    found = factories.load_object(spec, "model")
    if isinstance(found, nn.Module):
        return copy.deepcopy(found)
    offered = {} if classes is None else {"num_classes": classes}
    made = factories.call(found, spec, "model", **offered)
    if not isinstance(made, nn.Module):
        raise DataError(f"model {spec}: the factory returned {type(made).__name__}; return a torch.nn.Module")
    return made.cpu().float()


def _assemble(
    *,
    name: str,
    model: nn.Module,
    data: data_specs.Data,
    metric: Metric,
    model_spec: str,
    rebuild: Callable[[], nn.Module],
    facts: dict[str, Any],
    progress: Progress,
) -> Workload:
    model = model.eval().requires_grad_(False)
    state = model.state_dict()
    weights.check_finite(state, facts["weights"])
    channels = next((m.in_channels for m in model.modules() if isinstance(m, nn.Conv2d)), None)
    data = data_specs.for_model(data, channels, progress)
    outputs = _probe(model, name, data, channels)
    for note in data.notes:
        progress.note(note)
    identity = f"{weight_cache.content_hash(state)}:{data.identity()}:{metric.name}"
    return Workload(
        name=name,
        model=model,
        model_spec=model_spec,
        calibration=data.calibration,
        search=data.search,
        test=data.test,
        metric=metric,
        rebuild=rebuild,
        classes=_classes(outputs, data, metric),
        fingerprint=hashlib.sha256(identity.encode()).hexdigest(),
        facts={
            **facts,
            **data.facts,
            "parameters": sum(p.numel() for p in model.parameters()),
            "notes": list(data.notes),
        },
    )


def _probe(model: nn.Module, name: str, data: data_specs.Data, channels: int | None) -> torch.Tensor:
    """Outputs for two samples; what a model must do with its data is checked on them."""
    inputs, _ = next(iter(data.calibration.head(2).batches(2)))
    shape = list(inputs.shape)
    given = shape[1] if len(shape) == 4 else None
    reason = f"model {name} cannot run on inputs of shape {shape}"
    if channels is not None and given is not None and given != channels:
        reason = f"data {data.name}: inputs have {given} channels, the first convolution of {name} takes {channels}"
    with torch.no_grad(), factories.user_code(reason):
        outputs = model(inputs)
    if not isinstance(outputs, torch.Tensor) or outputs.dim() == 0 or len(outputs) != len(inputs):
        raise DataError(
            f"model {name} returns {type(outputs).__name__}; it must return one tensor with a row for each input "
            "(wrap it in a module that does)"
        )
    if not bool(torch.isfinite(outputs).all()):
        raise DataError(f"model {name}: outputs hold NaN or infinity; check weights, --normalize and --image-size")
    have = outputs.shape[-1]
    if data.classes is not None and (have < data.classes or (data.exact and have != data.classes)):
        raise DataError(
            f"model {name} has {have} outputs, data {data.name} has {data.classes} classes; "
            "give weights and a head for these classes"
        )
    return outputs


def _classes(outputs: torch.Tensor, data: data_specs.Data, metric: Metric) -> int | None:
    """Number of class scores, or None where the outputs are no class scores."""
    has_scores = outputs.dim() >= 2 and outputs.shape[-1] >= 2
    _, targets = next(iter(data.calibration.head(2).batches(2)))
    labelled = data.classes is not None or (metric.name != "mse" and not targets.is_floating_point())
    return int(outputs.shape[-1]) if has_scores and (labelled or metric.name == "kl") else None
