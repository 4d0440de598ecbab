"""How good a network is: KL divergence to the float32 network, and the metric."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from autocomp.core.workload import Metric, Split
from autocomp.errors import AutocompError
from autocomp.evaluators.scoring_device import CPU, exact
from autocomp.graph.capture import first_tensor

BATCH = 128


class NonFiniteError(AutocompError):
    """A network's outputs hold NaN or infinity."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Scored:
    """Outputs of a network on a split.

    Attributes:
        outputs: float32 [n, ...].
        targets: [n].
    """

    outputs: torch.Tensor
    targets: torch.Tensor


@dataclass(frozen=True, kw_only=True)
class Quality:
    """What a network is worth on a split.

    Attributes:
        loss: KL divergence to the float32 network, nats; the metric's drop where outputs are no class scores.
        score: the metric.
        interval: its 95 % interval, or None.
    """

    loss: float
    score: float
    interval: tuple[float, float] | None = None


def run_split(module: nn.Module, split: Split, device: torch.device = CPU, batch_size: int = BATCH) -> Scored:
    """Outputs of ``module``, which is on ``device``, on every sample of ``split``, in file order; on the CPU."""
    outputs, targets = [], []
    with torch.inference_mode(), exact(device):
        for inputs, labels in split.batches(batch_size):
            outputs.append(first_tensor(module(inputs.to(device))).float().to(CPU))
            targets.append(labels)
    return Scored(outputs=torch.cat(outputs), targets=torch.cat(targets))


def run_engine(run: Callable[[np.ndarray], np.ndarray], split: Split, batch_size: int) -> Scored:
    """The same of a built engine; ``run`` takes ``batch_size`` samples at a time; the last batch is filled up."""
    outputs, targets = [], []
    for inputs, labels in split.batches(batch_size):
        missing = batch_size - len(inputs)
        batch = torch.cat([inputs, inputs[:1].expand(missing, *inputs.shape[1:])]) if missing else inputs
        outputs.append(torch.from_numpy(np.array(run(batch.numpy())))[: len(inputs)].float())
        targets.append(labels)
    return Scored(outputs=torch.cat(outputs), targets=torch.cat(targets))


def kl_divergence(reference: torch.Tensor, outputs: torch.Tensor) -> float:
    """Mean KL(softmax(reference) ‖ softmax(outputs)) in nats; class scores [n, classes, ...].

    Computed in float64, so that equal networks give exactly 0 and near ones are not lost in rounding.
    """
    p = torch.log_softmax(reference.double(), dim=1)
    q = torch.log_softmax(outputs.double(), dim=1)
    return max(0.0, float((p.exp() * (p - q)).sum(dim=1).mean()))


def judge(scored: Scored, reference: Scored, metric: Metric, *, classes: int | None, interval: bool = False) -> Quality:
    """Loss and metric of ``scored`` beside the float32 network's ``reference`` on the same split.

    Raises:
        NonFiniteError: outputs with NaN or infinity.
    """
    if not torch.isfinite(scored.outputs).all():
        raise NonFiniteError("the network's outputs hold NaN or infinity")
    score = metric.compute(scored.outputs, scored.targets, reference.outputs)
    if classes is not None:
        loss = kl_divergence(reference.outputs, scored.outputs)
    else:
        base = metric.compute(reference.outputs, reference.targets, reference.outputs)
        loss = metric.drop(base, score)
    span = None
    if interval and metric.interval is not None:
        span = metric.interval(scored.outputs, scored.targets, reference.outputs)
    return Quality(loss=loss, score=score, interval=span)
