"""Metrics: what constraints and the answer speak of. Each is computed over a whole split at once."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from autocomp.core.workload import Metric
from autocomp.errors import ConfigError, UnknownNameError

if TYPE_CHECKING:
    import torch

    Pair = tuple[float, float]
    Function = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], float]

_Z95 = 1.959963984540054


def wilson(successes: int, total: int) -> Pair:
    """95 % interval of a proportion (Wilson, 1927)."""
    if total == 0:
        return 0.0, 1.0
    rate, z2 = successes / total, _Z95**2
    centre = (rate + z2 / (2 * total)) / (1 + z2 / total)
    half = _Z95 / (1 + z2 / total) * math.sqrt(rate * (1 - rate) / total + z2 / (4 * total**2))
    return max(0.0, centre - half), min(1.0, centre + half)


def _hits(outputs: torch.Tensor, targets: torch.Tensor, top: int) -> torch.Tensor:
    """Whether the target is among the ``top`` largest scores; outputs [n, ..., classes], targets [n, ...]."""
    scores, labels = _rows(outputs, targets)
    top = min(top, scores.shape[1])
    if top == 1:
        return scores.argmax(1) == labels
    return (scores.topk(top, dim=1).indices == labels.unsqueeze(1)).any(1)


def _rows(outputs: torch.Tensor, targets: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Scores [m, classes] and labels [m]; outputs are [n, classes], or [n, positions, classes]."""
    return outputs.float().reshape(-1, outputs.shape[-1]), targets.reshape(-1).long()


def _proportion(name: str, top: int) -> Metric:
    def compute(outputs: torch.Tensor, targets: torch.Tensor, reference: torch.Tensor) -> float:
        hits = _hits(outputs, targets, top)
        return int(hits.sum()) / max(1, hits.numel())

    def interval(outputs: torch.Tensor, targets: torch.Tensor, reference: torch.Tensor) -> Pair:
        hits = _hits(outputs, targets, top)
        return wilson(int(hits.sum()), hits.numel())

    return Metric(name=name, direction="maximize", unit="fraction", compute=compute, interval=interval)


def accuracy() -> Metric:
    """Share of samples whose largest score is the label's."""
    return _proportion("accuracy", 1)


def top5() -> Metric:
    """Share of samples whose label is among the five largest scores."""
    return _proportion("top5", 5)


def f1_macro() -> Metric:
    """F1 of each class, averaged over the classes that occur in labels or predictions."""

    def compute(outputs: torch.Tensor, targets: torch.Tensor, reference: torch.Tensor) -> float:
        import torch

        scores, labels = _rows(outputs, targets)
        classes = scores.shape[1]
        predicted = scores.argmax(1)
        true_positive = torch.bincount(labels[predicted == labels], minlength=classes).double()
        occurs = torch.bincount(labels, minlength=classes) + torch.bincount(predicted, minlength=classes)
        present = occurs > 0
        return float((2 * true_positive[present] / occurs[present]).mean())

    return Metric(name="f1_macro", direction="maximize", unit="fraction", compute=compute)


def _mean(name: str, unit: str, per_sample: Callable[..., torch.Tensor], final: Callable[[float], float]) -> Metric:
    """A metric that is ``final`` of a mean over samples, with the normal interval of that mean."""

    def compute(outputs: torch.Tensor, targets: torch.Tensor, reference: torch.Tensor) -> float:
        return final(float(per_sample(outputs, targets, reference).double().mean()))

    def interval(outputs: torch.Tensor, targets: torch.Tensor, reference: torch.Tensor) -> Pair:
        values = per_sample(outputs, targets, reference).double()
        half = _Z95 * float(values.std()) / math.sqrt(len(values)) if len(values) > 1 else math.inf
        middle = float(values.mean())
        return final(middle - half), final(middle + half)

    return Metric(name=name, direction="minimize", unit=unit, compute=compute, interval=interval)


def mse() -> Metric:
    """Mean squared error between outputs and targets of the same shape."""

    def per_sample(outputs: torch.Tensor, targets: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
        wanted = targets.float()
        if outputs.dim() == wanted.dim() + 1 and outputs.shape[-1] == 1:
            wanted = wanted.unsqueeze(-1)
        if outputs.shape != wanted.shape:
            raise ConfigError(
                f"metric mse: outputs have shape {tuple(outputs.shape)}, targets {tuple(wanted.shape)}; they must agree"
            )
        return (outputs.float() - wanted).square().flatten(1).mean(1)

    return _mean("mse", "squared error", per_sample, lambda value: value)


def kl() -> Metric:
    """Mean KL divergence of the output distribution from the float32 network's, in nats."""

    def per_sample(outputs: torch.Tensor, targets: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
        ours, theirs = outputs.float().log_softmax(-1), reference.float().log_softmax(-1)
        return (theirs.exp() * (theirs - ours)).sum(-1).reshape(len(ours), -1).mean(1)

    return _mean("kl", "nats", per_sample, lambda value: value)


def perplexity() -> Metric:
    """exp of the mean cross entropy of the targets; outputs [n, ..., classes], targets [n, ...]."""

    def per_sample(outputs: torch.Tensor, targets: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
        from torch.nn import functional as F

        scores, labels = _rows(outputs, targets)
        return F.cross_entropy(scores, labels, reduction="none").reshape(len(outputs), -1).mean(1)

    return _mean("perplexity", "perplexity", per_sample, lambda value: math.exp(min(value, 700.0)))


_BUILT_IN: dict[str, Callable[[], Metric]] = {f.__name__: f for f in (accuracy, top5, f1_macro, mse, kl, perplexity)}

_OF_LABELS = ("accuracy", "top5", "f1_macro", "perplexity")


def names() -> list[str]:
    """Names of the built-in metrics."""
    return list(_BUILT_IN)


def needs_labels(name: str) -> bool:
    """Whether the metric reads targets as class numbers."""
    return name in _OF_LABELS


def check_name(spec: str) -> None:
    """:class:`UnknownNameError` unless ``spec`` is a built-in name or looks like ``module:function``."""
    if spec not in _BUILT_IN and ":" not in spec:
        raise UnknownNameError("metric", spec, _BUILT_IN)


def resolve(spec: str) -> Metric:
    """The metric ``spec`` names.

    ``module:function`` (or ``path/file.py:function``) takes (outputs, targets, reference outputs) and
    returns a number; its attribute ``direction`` ("maximize" or "minimize") is required, ``unit`` is not.

    Raises:
        UnknownNameError: no built-in metric has this name.
        ConfigError: the function says no direction.
    """
    check_name(spec)
    if spec in _BUILT_IN:
        return _BUILT_IN[spec]()
    from autocomp.workloads.factories import load_object

    return from_object(load_object(spec, "metric"), spec)


def from_object(found: Any, name: str) -> Metric:
    """A :class:`Metric` from a user's object: a Metric already, or a function that says its direction."""
    if isinstance(found, Metric):
        return found
    if not callable(found):
        raise ConfigError(f"metric {name}: {type(found).__name__} cannot be called; give a function")
    direction = getattr(found, "direction", None)
    if direction not in ("maximize", "minimize"):
        function = getattr(found, "__name__", "function")
        raise ConfigError(
            f'metric {name}: which way is better is not said; set {function}.direction = "maximize" or "minimize"'
        )
    call: Function = found

    def compute(outputs: torch.Tensor, targets: torch.Tensor, reference: torch.Tensor) -> float:
        return float(call(outputs, targets, reference))

    return Metric(name=name, direction=direction, unit=str(getattr(found, "unit", "")), compute=compute)
