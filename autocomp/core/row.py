"""One row of every table: what a network is, and what was measured on it."""

from __future__ import annotations

import dataclasses
from typing import Any


@dataclasses.dataclass(frozen=True, kw_only=True)
class Row:
    """float32, each baseline, each candidate and ``best``: the same kind of row (see the --json summary).

    Attributes:
        trial: number in the study; None for rows that are no trial (float32, finished files).
        name: label for tables ("float32", "uniform-4bit", "trial 12", "best").
        candidate: id of the candidate, "" for float32.
        feasible: meets every constraint.
        file: absolute path of the written file, or None where none was written.
        file_bytes: size of that file (or what it would be: exact, from the same coder).
        engine_bytes: size of the engine, or None.
        score_search, score_test: the metric; test only for finalists.
        score_test_ci95: 95 % interval of ``score_test``.
        score_engine: the metric of the built engine itself on the search split; finalists on a device that is here.
        kl_search: KL divergence to the float32 network on the search split.
        latency_ms, latency_ms_ci95: median and its 95 % bootstrap interval (none where predicted).
        latency_ratio: median ratio to float32's latency, the two measured in turn in one run; None where they were not.
        latency_source: "measured" or "predicted", None without latency.
        energy_mj: millijoules of one inference, of the whole device; None where it does not count them.
        techniques: names really used.
        recipe: unit → choice as JSON.
        notes: one line each.
    """

    name: str
    trial: int | None = None
    candidate: str = ""
    feasible: bool = False
    file: str | None = None
    file_bytes: int
    engine_bytes: int | None = None
    score_search: float
    score_test: float | None = None
    score_test_ci95: tuple[float, float] | None = None
    score_engine: float | None = None
    kl_search: float
    latency_ms: float | None = None
    latency_ms_ci95: tuple[float, float] | None = None
    latency_ratio: float | None = None
    latency_source: str | None = None
    energy_mj: float | None = None
    techniques: tuple[str, ...] = ()
    recipe: dict[str, Any] = dataclasses.field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    @staticmethod
    def from_json(data: dict[str, Any]) -> Row:
        """Inverse of :meth:`to_json`; lists become tuples again."""
        fixed: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in data.items()}
        return Row(**fixed)
