"""The price table: what each (unit, choice) costs in bytes and does to the logits, measured once."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Self

from autocomp.core.candidate import Candidate
from autocomp.core.space import unit_and_axis
from autocomp.core.steps import FLOAT, Choice

if TYPE_CHECKING:
    import numpy as np


@dataclass(frozen=True, kw_only=True, eq=False)
class Remainder:
    """What a structure leaves of one unit.

    Attributes:
        weights: share of its weights.
        outputs: share of its output channels, which biases go with.
        density: float64 [storage choices], coded bytes a weight relative to the whole layer's; or one for all.
    """

    weights: float = 1.0
    outputs: float = 1.0
    density: np.ndarray | float = 1.0


@dataclass(frozen=True, kw_only=True)
class ManifestLine:
    """What decisions put into the manifest together.

    Attributes:
        owners: sets of decisions: "<unit>:<axis>", made where the candidate has a step there, or
            "<unit>:<8-bit precision>"; the line is there where one of each set is made.
        bytes: in the file, on average.
    """

    owners: tuple[frozenset[str], ...]
    bytes: float

    def after(self, made: Collection[str], decided: Collection[str]) -> ManifestLine | None:
        """What the line depends on once ``decided`` is, ``made`` of it; None where it is not there."""
        if any(names.issubset(decided) and names.isdisjoint(made) for names in self.owners):
            return None
        return replace(self, owners=tuple(names for names in self.owners if names.isdisjoint(made)))


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
        biases: how many of any choice's bytes are of tensors with one number an output channel.
    """

    choices: tuple[Choice, ...]
    bytes: np.ndarray
    kl: np.ndarray
    delta: np.ndarray
    biases: int = 0

    def index(self, choice: Choice) -> int:
        """Position of ``choice``; KeyError where it was never priced."""
        try:
            return self.choices.index(choice)
        except ValueError:
            raise KeyError(f"choice {choice.label()} was not priced") from None

    def left(self, remainder: Remainder) -> Prices:
        """The same choices of what a structure leaves."""
        weights = (self.bytes - self.biases) * (remainder.weights * remainder.density)
        return replace(self, bytes=(weights + self.biases * remainder.outputs).astype(self.bytes.dtype))

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
        outputs: unit → float64 [choices], the share of its output channels that stays; all where not named.
        density: unit → float64 [choices, the unit's storage choices], coded bytes a weight relative to the
            whole layer's; 1 where not named.
    """

    shares: Mapping[str, np.ndarray]
    outputs: Mapping[str, np.ndarray] = field(default_factory=dict)
    density: Mapping[str, np.ndarray] = field(default_factory=dict)

    def remainders(self, pick: int) -> dict[str, Remainder]:
        """Unit → what choice number ``pick`` leaves of it."""
        return {
            u: Remainder(
                weights=float(shares[pick]),
                outputs=float(self.outputs[u][pick]) if u in self.outputs else 1.0,
                density=self.density[u][pick] if u in self.density else 1.0,
            )
            for u, shares in self.shares.items()
        }

    def _picked(self, pick: list[int]) -> dict[str, Any]:
        # what was decided is in the bytes and counts already
        return {**super()._picked(pick), "shares": {}, "outputs": {}, "density": {}}


@dataclass(frozen=True, kw_only=True, eq=False)
class PriceTable:
    """All prices of a survey.

    Attributes:
        storage: unit → prices of its storage choices.
        execution: unit → prices of its activation choices (bytes: its part of the quantizers in the manifest,
            so that the sum over all units is right).
        structure: "<unit>:<axis>" → prices of its structural choices; empty where there are none.
        fixed_bytes: file bytes that no unit decides (header, tensors left alone).
        lines: of the manifest, by the decisions that put them there.
        exact_shares: structure → unit → share of its weights that stays, from shapes; None: the product over
            decisions, which is not exact for a layer that is pruned and factorised.
        macs: unit → multiply-accumulates of one sample.
        float_loss: loss of the float32 network on the same images, for reference.
    """

    storage: Mapping[str, Prices]
    execution: Mapping[str, Prices]
    fixed_bytes: int
    lines: tuple[ManifestLine, ...] = ()
    exact_shares: Callable[[Candidate], Mapping[str, float]] | None = None
    structure: Mapping[str, StructurePrices] = field(default_factory=dict)
    macs: Mapping[str, int] = field(default_factory=dict)
    float_loss: float = 0.0
    seconds: Mapping[str, float] = field(default_factory=dict)
    _under: dict[str, PriceTable] = field(default_factory=dict, init=False, repr=False)
    _left: dict[str, dict[str, Remainder]] = field(default_factory=dict, init=False, repr=False)

    def shares(self, candidate: Candidate) -> dict[str, float]:
        """Unit → share of its weights that the candidate's structure keeps; 1 where not named."""
        return {u: left.weights for u, left in self.remainders(candidate).items() if left.weights != 1.0}

    def remainders(self, candidate: Candidate) -> dict[str, Remainder]:
        """Unit → what the candidate's structure leaves of it; all where not named."""
        structure = candidate.structure()
        if structure.id not in self._left:
            self._left[structure.id] = self._remainders(structure)
        return self._left[structure.id]

    def _remainders(self, candidate: Candidate) -> dict[str, Remainder]:
        out: dict[str, Remainder] = {}
        for name, prices in self.structure.items():
            unit, axis = unit_and_axis(name)
            for changed, more in prices.remainders(prices.index(candidate[unit].only(axis))).items():
                old = out.get(changed, Remainder())
                out[changed] = Remainder(
                    weights=old.weights * more.weights,
                    outputs=old.outputs * more.outputs,
                    density=old.density * more.density,
                )
        exact = self.exact_shares(candidate) if self.exact_shares is not None and self.structure else None
        return out if exact is None else {u: replace(left, weights=exact.get(u, 1.0)) for u, left in out.items()}

    def under(self, candidate: Candidate) -> PriceTable:
        """The table of all candidates that have ``candidate``'s structure: bytes scaled, structure decided.

        The bytes are an estimate: each decision was coded alone, and on few of the unit's choices.
        """
        structure = candidate.structure()
        if structure.id not in self._under:
            left = self.remainders(candidate)
            made = _made(structure)
            lines = [now for line in self.lines if (now := line.after(made, self.structure)) is not None]
            self._under[structure.id] = replace(
                self,
                storage={u: p.left(left[u]) if u in left else p for u, p in self.storage.items()},
                structure={n: p.fixed(candidate[unit_and_axis(n)[0]]) for n, p in self.structure.items()},
                macs=self.remaining_macs(candidate),
                fixed_bytes=self.fixed_bytes + round(sum(line.bytes for line in lines if not line.owners)),
                lines=tuple(line for line in lines if line.owners),
                exact_shares=None,
            )
        return self._under[structure.id]

    def _line_bytes(self, candidate: Candidate) -> int:
        """Bytes of the manifest's lines that the candidate has."""
        made = _made(candidate)
        there = (line for line in self.lines if not any(names.isdisjoint(made) for names in line.owners))
        return round(sum(line.bytes for line in there))

    def remaining_macs(self, candidate: Candidate) -> dict[str, int]:
        """Unit → multiply-accumulates with the candidate's structure, estimated by the shares of weights."""
        shares = self.shares(candidate)
        return {u: int(m * shares.get(u, 1.0)) for u, m in self.macs.items()}

    def file_bytes(self, candidate: Candidate) -> int:
        """Predicted size of the file that holds ``candidate``; an estimate where its structure is changed."""
        left = self.remainders(candidate)
        total = self.fixed_bytes + self._line_bytes(candidate)
        for unit, prices in self.storage.items():
            now = prices.left(left[unit]) if unit in left else prices
            total += int(now.bytes[prices.index(candidate[unit].storage())])
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


def _made(candidate: Candidate) -> set[str]:
    """ "<unit>:<axis>" of every step, and "<unit>:<precision>" where a unit executes in 8 bits."""
    steps = {f"{unit}:{step.axis}" for unit, choice in candidate.items() for step in choice.steps}
    return steps | {f"{unit}:{c.precision}" for unit, c in candidate.items() if c.precision is not None}
