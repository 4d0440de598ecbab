"""What became of one evaluation. Failure is a value, never a number."""

from __future__ import annotations

import dataclasses
from typing import Any


@dataclasses.dataclass(frozen=True, kw_only=True)
class Measurement:
    """Raw latency samples and the conditions they were taken under.

    Attributes:
        samples_s: seconds of each repeat of the candidate.
        reference_s: seconds of the reference engine, interleaved with them (may be empty).
        source: "measured" or "predicted".
        conditions: device, runtime, versions, threads, load, batch size, ...
    """

    samples_s: tuple[float, ...]
    reference_s: tuple[float, ...] = ()
    source: str = "measured"
    conditions: dict[str, Any] = dataclasses.field(default_factory=dict)

    def median_s(self) -> float:
        """Median of the samples, seconds."""
        import statistics

        return statistics.median(self.samples_s)

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    @staticmethod
    def from_json(data: dict[str, Any]) -> Measurement:
        return Measurement(
            samples_s=tuple(data["samples_s"]),
            reference_s=tuple(data.get("reference_s", ())),
            source=data.get("source", "measured"),
            conditions=dict(data.get("conditions", {})),
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Completed:
    """A candidate that was built, scored and, where asked, timed.

    Attributes:
        file_bytes: size of the file that holds it.
        kl: KL divergence to the float32 network on the search split, nats; for tasks without class
            output the user's loss in its own unit.
        score: the metric on the search split.
        latency: the measurement, or None where no runtime was asked for.
        engine_bytes: size of the built engine, or None.
        seconds: wall seconds by stage ("build", "quality", "latency").
        cached: stages answered from a cache.
        notes: one line each, for the report ("layer3.0.conv2 runs float32: ...").
    """

    file_bytes: int
    kl: float
    score: float
    latency: Measurement | None = None
    engine_bytes: int | None = None
    seconds: dict[str, float] = dataclasses.field(default_factory=dict)
    cached: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        return {"state": "completed", **dataclasses.asdict(self)}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Failed:
    """An evaluation that could not be finished: where, what sort, and what was said.

    Attributes:
        stage: "build", "quality", "size", "latency", "worker".
        kind: exception class name or a fixed word ("timeout", "died", "nan").
        message: one line.
        traceback: full text for the log, never for the terminal.
    """

    stage: str
    kind: str
    message: str
    traceback: str = ""

    def to_json(self) -> dict[str, Any]:
        return {"state": "failed", **dataclasses.asdict(self)}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Stopped:
    """An evaluation given up on purpose ("over-budget", "interrupted", ...)."""

    reason: str

    def to_json(self) -> dict[str, Any]:
        return {"state": "stopped", "reason": self.reason}


Outcome = Completed | Failed | Stopped


def outcome_from_json(data: dict[str, Any]) -> Outcome:
    """Inverse of the ``to_json`` methods."""
    fields = {k: v for k, v in data.items() if k != "state"}
    match data.get("state"):
        case "completed":
            latency = fields.get("latency")
            fields["latency"] = Measurement.from_json(latency) if latency else None
            fields["cached"] = tuple(fields.get("cached", ()))
            fields["notes"] = tuple(fields.get("notes", ()))
            return Completed(**fields)
        case "failed":
            return Failed(**fields)
        case "stopped":
            return Stopped(**fields)
        case other:
            raise ValueError(f"unknown outcome state {other!r}")
