"""Rows of the study as values, and outcomes as rows: the one place that knows how they are written."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from optuna.trial import TrialState

from autocomp.core.candidate import Candidate
from autocomp.core.outcome import Completed, Failed, Outcome, Stopped, outcome_from_json
from autocomp.core.space import SearchSpace
from autocomp.errors import StorageError

if TYPE_CHECKING:
    from optuna.study import Study
    from optuna.trial import FrozenTrial

Constraints = Callable[[Completed], Mapping[str, float]]
"""Name → how far a completed row is beyond a limit; at most 0 is feasible. Scaled to be of order 1."""

OBJECTIVES: dict[str, Callable[[Completed], float]] = {
    "loss": lambda o: o.kl,
    "file_bytes": lambda o: float(o.file_bytes),
    "latency_s": lambda o: o.latency.median_s() if o.latency is not None else math.nan,
}
"""What may be minimised, by the name shown in the study."""

CANDIDATE, OUTCOME, ATTEMPT, CACHED, FAILURE = "candidate", "outcome", "attempt", "cached_from", "failure"
"""Keys of a row's user attributes."""


@dataclass(frozen=True, kw_only=True)
class Record:
    """A finished row.

    Attributes:
        number: trial number.
        candidate: what was evaluated.
        outcome: what became of it.
        attempt: how often it was started.
        constraints: by the limits of this run; empty unless completed.
        cached_from: number of the row that answered it, None where it was evaluated.
    """

    number: int
    candidate: Candidate
    outcome: Outcome
    attempt: int = 1
    constraints: Mapping[str, float] = dataclasses.field(default_factory=dict)
    cached_from: int | None = None

    @property
    def feasible(self) -> bool:
        """Completed, and within every limit."""
        return isinstance(self.outcome, Completed) and all(v <= 0 for v in self.constraints.values())

    @property
    def state(self) -> TrialState:
        """The state of its row in the study."""
        match self.outcome:
            case Completed():
                return TrialState.COMPLETE
            case Failed():
                return TrialState.FAIL
            case Stopped():
                return TrialState.PRUNED

    def values(self, objectives: Sequence[str]) -> list[float] | None:
        """The objectives of a completed row, else None."""
        if not isinstance(self.outcome, Completed):
            return None
        return [OBJECTIVES[name](self.outcome) for name in objectives]

    def attributes(self) -> dict[str, Any]:
        """User attributes that are known once the outcome is."""
        out: dict[str, Any] = {OUTCOME: self.outcome.to_json()}
        if isinstance(self.outcome, Failed):
            out[FAILURE] = f"{self.outcome.stage}/{self.outcome.kind}: {self.outcome.message}"
        return out


def checked(outcome: Outcome, objectives: Sequence[str]) -> Outcome:
    """``outcome``, or :class:`Failed` where a number the search would compare is missing, NaN or infinite."""
    if not isinstance(outcome, Completed):
        return outcome
    if "latency_s" in objectives and (outcome.latency is None or not outcome.latency.samples_s):
        return Failed(stage="latency", kind="missing", message="no latency was measured, but it is an objective")
    for name, stage, value in (
        *((name, "latency" if name == "latency_s" else "quality", OBJECTIVES[name](outcome)) for name in objectives),
        ("score", "quality", outcome.score),
    ):
        if not math.isfinite(value):
            return Failed(stage=stage, kind="nan", message=f"{name} is {value}")
    return outcome


def make_record(
    number: int,
    candidate: Candidate,
    outcome: Outcome,
    constraints: Constraints,
    *,
    attempt: int = 1,
    cached_from: int | None = None,
) -> Record:
    """A record with its constraints worked out."""
    limits = {k: float(v) for k, v in constraints(outcome).items()} if isinstance(outcome, Completed) else {}
    return Record(
        number=number,
        candidate=candidate,
        outcome=outcome,
        attempt=attempt,
        constraints=limits,
        cached_from=cached_from,
    )


def candidate_of(trial: FrozenTrial, space: SearchSpace) -> Candidate | None:
    """The candidate of a row; None for rows that the search did not write.

    Raises:
        StorageError: the row names another candidate than its parameters mean in ``space``.
    """
    written = trial.user_attrs.get(CANDIDATE)
    if written is None:
        return None
    candidate = space.decode(trial.params)
    if candidate.id != written:
        raise StorageError(
            f"trial {trial.number} of the study was made in another search space; choose another --out, or --fresh"
        )
    return candidate


def record_of(trial: FrozenTrial, space: SearchSpace, constraints: Constraints) -> Record | None:
    """A row as a value; None while it has no outcome, and for rows that the search did not write."""
    candidate = candidate_of(trial, space)
    if candidate is None or OUTCOME not in trial.user_attrs:
        return None
    return make_record(
        trial.number,
        candidate,
        outcome_from_json(trial.user_attrs[OUTCOME]),
        constraints,
        attempt=int(trial.user_attrs.get(ATTEMPT, 1)),
        cached_from=trial.user_attrs.get(CACHED),
    )


def read_records(study: Study, space: SearchSpace, constraints: Constraints) -> list[Record]:
    """All finished rows of a study by number, with constraints by the limits given here."""
    rows = (record_of(t, space, constraints) for t in study.get_trials(deepcopy=False) if t.state.is_finished())
    return [row for row in rows if row is not None]
