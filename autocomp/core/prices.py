"""The price table: what each (unit, choice) costs in bytes and does to the logits, measured once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from autocomp.core.candidate import Candidate
from autocomp.core.steps import FLOAT, Choice

if TYPE_CHECKING:
    import numpy as np


@dataclass(frozen=True, kw_only=True, eq=False)
class Prices:
    """Prices of one unit's choices on one axis group (weights, or activations).

    Attributes:
        choices: the choices, float first, then by falling bytes.
        bytes: int64 [choices]: bytes that the unit's coded tensors really take.
        kl: float64 [choices]: KL divergence to the float32 network with only this choice made, nats.
        delta: float32 [choices, d]: whitened logit change u with E[vᵀFv] = ‖u‖² (F = diag(p) − ppᵀ,
            averaged over the calibration images); a choice's predicted KL is ½‖u‖², that of several
            ½‖Σu‖², so cross terms are free (reference: CLADO's pairwise terms, without its forwards).
    """

    choices: tuple[Choice, ...]
    bytes: np.ndarray
    kl: np.ndarray
    delta: np.ndarray

    def index(self, choice: Choice) -> int:
        """Position of ``choice``; KeyError where it was never priced."""
        try:
            return self.choices.index(choice)
        except ValueError:
            raise KeyError(f"choice {choice.label()} was not priced") from None


@dataclass(frozen=True, kw_only=True, eq=False)
class PriceTable:
    """All prices of a survey.

    Attributes:
        storage: unit → prices of its storage choices (everything but activations).
        execution: unit → prices of its activation choices (bytes: its quantizers in the manifest).
        fixed_bytes: file bytes that no unit decides (header, tensors left alone).
        float_loss: loss of the float32 network on the same images, for reference.
    """

    storage: Mapping[str, Prices]
    execution: Mapping[str, Prices]
    fixed_bytes: int
    float_loss: float = 0.0
    seconds: Mapping[str, float] = field(default_factory=dict)

    def file_bytes(self, candidate: Candidate) -> int:
        """Predicted size of the file that holds ``candidate``."""
        total = self.fixed_bytes
        for unit, prices in self.storage.items():
            total += int(prices.bytes[prices.index(candidate[unit].without("activations"))])
        for unit, prices in self.execution.items():
            total += int(prices.bytes[prices.index(candidate[unit].only("activations"))])
        return total

    def predicted_kl(self, candidate: Candidate) -> float:
        """Second-order prediction ½‖Σu‖² in nats, cross terms included."""
        total: np.ndarray | None = None
        for table, part in ((self.storage, "storage"), (self.execution, "execution")):
            for unit, prices in table.items():
                choice = candidate[unit]
                choice = choice.without("activations") if part == "storage" else choice.only("activations")
                if choice == FLOAT:
                    continue
                delta = prices.delta[prices.index(choice)]
                total = delta if total is None else total + delta
        return 0.0 if total is None else 0.5 * float((total.astype("float64") ** 2).sum())
