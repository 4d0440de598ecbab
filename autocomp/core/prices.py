"""The price table: what each (unit, choice) costs in bytes and does to the logits, measured once."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Self

from autocomp.core.candidate import Candidate
from autocomp.core.space import unit_and_axis
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

    def scaled(self, share: float) -> Prices:
        """The same choices where only this share of the weights is left."""
        return replace(self, bytes=(self.bytes * share).astype(self.bytes.dtype))

    def fixed(self, choice: Choice) -> Self:
        """Only the choice that ``choice`` makes here."""
        axes = {s.axis for c in self.choices for s in c.steps}
        pick = [self.index(choice.only(*axes))]
        return replace(self, choices=tuple(self.choices[i] for i in pick), **self._picked(pick))

    def _picked(self, pick: list[int]) -> dict[str, Any]:
        return {"bytes": self.bytes[pick], "kl": self.kl[pick], "delta": self.delta[pick]}


@dataclass(frozen=True, kw_only=True, eq=False)
class StructurePrices(Prices):
    """Prices of one structural decision ("<unit>:<axis>").

    Its ``bytes`` are zero: removing channels makes other tensors smaller.

    Attributes:
        shares: unit → float64 [choices], the share of the unit's weights that stays.
    """

    shares: Mapping[str, np.ndarray]

    def _picked(self, pick: list[int]) -> dict[str, Any]:
        return {**super()._picked(pick), "shares": {}}  # what was decided is in the bytes and counts already


@dataclass(frozen=True, kw_only=True, eq=False)
class PriceTable:
    """All prices of a survey.

    Attributes:
        storage: unit → prices of its storage choices.
        execution: unit → prices of its activation choices (bytes: its quantizers in the manifest).
        structure: "<unit>:<axis>" → prices of its structural choices; empty where there are none.
        fixed_bytes: file bytes that no unit decides (header, tensors left alone).
        macs: unit → multiply-accumulates of one sample.
        float_loss: loss of the float32 network on the same images, for reference.
    """

    storage: Mapping[str, Prices]
    execution: Mapping[str, Prices]
    fixed_bytes: int
    structure: Mapping[str, StructurePrices] = field(default_factory=dict)
    macs: Mapping[str, int] = field(default_factory=dict)
    float_loss: float = 0.0
    seconds: Mapping[str, float] = field(default_factory=dict)
    _under: dict[str, PriceTable] = field(default_factory=dict, init=False, repr=False)

    def shares(self, candidate: Candidate) -> dict[str, float]:
        """Unit → share of its weights that the candidate's structure keeps; 1 where not named.

        Shares of several decisions multiply: exact for channels removed at both ends of a layer.
        """
        out: dict[str, float] = {}
        for name, prices in self.structure.items():
            unit, axis = unit_and_axis(name)
            pick = prices.index(candidate[unit].only(axis))
            for changed, shares in prices.shares.items():
                out[changed] = out.get(changed, 1.0) * float(shares[pick])
        return {u: s for u, s in out.items() if s != 1.0}

    def under(self, candidate: Candidate) -> PriceTable:
        """The table of all candidates that have ``candidate``'s structure: bytes scaled, structure decided.

        The bytes are an estimate: what is left of a layer is taken to cost what the layer did, a weight.
        """
        key = candidate.structure().id
        if key not in self._under:
            shares = self.shares(candidate)
            self._under[key] = replace(
                self,
                storage={u: p.scaled(shares[u]) if u in shares else p for u, p in self.storage.items()},
                structure={n: p.fixed(candidate[unit_and_axis(n)[0]]) for n, p in self.structure.items()},
                macs=self.remaining_macs(candidate),
            )
        return self._under[key]

    def remaining_macs(self, candidate: Candidate) -> dict[str, int]:
        """Unit → multiply-accumulates with the candidate's structure, estimated by the shares of weights."""
        shares = self.shares(candidate)
        return {u: int(m * shares.get(u, 1.0)) for u, m in self.macs.items()}

    def file_bytes(self, candidate: Candidate) -> int:
        """Predicted size of the file that holds ``candidate``; an estimate where its structure is changed."""
        shares = self.shares(candidate)
        total = self.fixed_bytes
        for unit, prices in self.storage.items():
            size = int(prices.bytes[prices.index(candidate[unit].storage())])
            total += size if unit not in shares else int(size * shares[unit])
        for unit, prices in self.execution.items():
            total += int(prices.bytes[prices.index(candidate[unit].execution())])
        return total

    def predicted_kl(self, candidate: Candidate) -> float:
        """Second-order prediction ½‖Σu‖² in nats, cross terms included."""
        total: np.ndarray | None = None
        for prices, choice in self._parts(candidate):
            if choice == FLOAT:
                continue
            delta = prices.delta[prices.index(choice)]
            total = delta if total is None else total + delta
        return 0.0 if total is None else 0.5 * float((total.astype("float64") ** 2).sum())

    def _parts(self, candidate: Candidate) -> Iterator[tuple[Prices, Choice]]:
        """Every decision with its prices and what the candidate decides."""
        for unit, prices in self.storage.items():
            yield prices, candidate[unit].storage()
        for unit, prices in self.execution.items():
            yield prices, candidate[unit].execution()
        for name, structure in self.structure.items():
            unit, axis = unit_and_axis(name)
            yield structure, candidate[unit].only(axis)
