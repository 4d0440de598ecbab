"""What is compressed and on what it is judged: model, data splits, metric."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import torch
    from torch import nn


class Split(Protocol):
    """One part of the data, in a fixed order, ready for the model."""

    def __len__(self) -> int:
        """Number of samples."""
        ...

    def batches(self, batch_size: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """(inputs [n, ...] float32, targets [n]) in file order, the last batch may be short."""
        ...

    def head(self, count: int) -> Split:
        """The first ``count`` samples (splits are shuffled by seed when they are made)."""
        ...


@dataclass(frozen=True, kw_only=True)
class Metric:
    """The number that constraints and the answer speak of.

    Attributes:
        name: "accuracy", ...
        direction: "maximize" or "minimize".
        unit: "fraction", "nats", ...
        compute: (outputs [n, ...], targets [n], reference outputs [n, ...]) → value, over a whole split.
        interval: the same arguments → 95 % interval (low, high), or None where none is known.
    """

    name: str
    direction: str
    unit: str
    compute: Callable[[torch.Tensor, torch.Tensor, torch.Tensor], float]
    interval: Callable[[torch.Tensor, torch.Tensor, torch.Tensor], tuple[float, float]] | None = None

    def drop(self, reference: float, value: float) -> float:
        """How much worse ``value`` is than ``reference``; negative when better."""
        return reference - value if self.direction == "maximize" else value - reference


@dataclass(frozen=True, kw_only=True)
class Workload:
    """A trained network with its data. The three splits are disjoint.

    Attributes:
        name: for folders and titles ("resnet18").
        model: float32 network in evaluation mode on the CPU; nobody changes it in place.
        rebuild: makes an untrained copy of the architecture (used to load artifacts), or None.
        model_spec: what names the model in an artifact: only ever a hint.
        calibration, search, test: the splits; calibration comes from the training data; test is
            read once, for the final figures.
        metric: what is constrained.
        classes: number of classes, or None where the output is no class score.
        fingerprint: hash of weights and data: part of every cache key.
        facts: for the report: origin of data, normalisation, counts, training accuracy, ...
    """

    name: str
    model: nn.Module
    model_spec: str
    calibration: Split
    search: Split
    test: Split
    metric: Metric
    rebuild: Callable[[], nn.Module] | None = None
    classes: int | None = None
    fingerprint: str = ""
    facts: dict[str, Any] = field(default_factory=dict)

    def example(self, batch_size: int = 1) -> torch.Tensor:
        """Inputs [batch_size, ...] from the calibration split, repeated where it is shorter."""
        import torch

        inputs = next(iter(self.calibration.batches(min(batch_size, len(self.calibration)))))[0]
        repeats = -(-batch_size // len(inputs))
        return torch.cat([inputs] * repeats)[:batch_size] if repeats > 1 else inputs[:batch_size]

    def float32_bytes(self) -> int:
        """4 bytes for each floating-point element of the state dict."""
        state = self.model.state_dict()
        return 4 * sum(int(v.numel()) for v in state.values() if v.is_floating_point())
