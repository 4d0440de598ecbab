"""Constraints of a run: their limits, who violates them, and the row that is the answer."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from autocomp.core.row import Row
from autocomp.core.settings import Settings
from autocomp.core.workload import Metric
from autocomp.errors import InfeasibleError


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What a row must keep to be feasible. None: not limited.

    Attributes:
        file_bytes, latency_s, engine_bytes: upper limits.
        drop: largest loss of the metric against ``reference_score``.
        reference_score: the float32 network on the search split.
        metric: gives the direction.
    """

    file_bytes: int | None
    latency_s: float | None
    engine_bytes: int | None
    drop: float | None
    reference_score: float
    metric: Metric

    @staticmethod
    def of(settings: Settings, metric: Metric, reference_score: float) -> Limits:
        """The limits that ``settings`` ask for."""
        return Limits(
            file_bytes=settings.budget_bytes,
            latency_s=settings.max_latency_s,
            engine_bytes=settings.max_engine_bytes,
            drop=settings.max_drop,
            reference_score=reference_score,
            metric=metric,
        )

    def to_json(self) -> dict[str, float]:
        """Only those that were set, by the names of the options."""
        named = {
            "budget": self.file_bytes,
            "max_latency_s": self.latency_s,
            "max_engine_bytes": self.engine_bytes,
            "max_drop": self.drop,
        }
        return {k: v for k, v in named.items() if v is not None}

    def violations(
        self, *, file_bytes: int, score: float, latency_s: float | None, engine_bytes: int | None
    ) -> dict[str, float]:
        """Constraint → relative excess; at most 0 where it holds (Optuna's convention)."""
        out: dict[str, float] = {}
        if self.file_bytes is not None:
            out["file_bytes"] = file_bytes / self.file_bytes - 1.0
        if self.latency_s is not None:
            out["latency"] = math.inf if latency_s is None else latency_s / self.latency_s - 1.0
        if self.engine_bytes is not None:
            out["engine_bytes"] = math.inf if engine_bytes is None else engine_bytes / self.engine_bytes - 1.0
        if self.drop is not None:
            out["drop"] = self.metric.drop(self.reference_score, score) - self.drop
        return out

    def feasible(self, row: Row) -> bool:
        """Whether ``row`` keeps every limit."""
        latency_s = None if row.latency_ms is None else row.latency_ms / 1e3
        found = self.violations(
            file_bytes=row.file_bytes, score=row.score_search, latency_s=latency_s, engine_bytes=row.engine_bytes
        )
        # 1e-9: a drop of exactly the limit must not fail on binary fractions
        return all(v <= 1e-9 for v in found.values())

    def rank(self, row: Row) -> tuple[float, float, int]:
        """Sort key of the answer: best score, then lower KL, then smaller file.

        Scores above float32's own tie with it: on some hundred samples, being right once more often than the network
        that is copied is luck (ResNet-18 on digits: 389 of 390 against 388, and 1.5 points lost on the test split).
        """
        drop = max(0.0, self.metric.drop(self.reference_score, row.score_search))
        return (drop, row.kl_search, row.file_bytes)

    def best(self, rows: Iterable[Row]) -> Row | None:
        """The feasible row with the best search score, or None."""
        return min((r for r in rows if r.feasible), key=self.rank, default=None)

    def nearest(self, rows: Sequence[Row]) -> dict[str, float]:
        """Nearest miss: smallest size, lowest latency, best metric among ``rows``."""
        if not rows:
            return {}
        pick = max if self.metric.direction == "maximize" else min
        out: dict[str, float] = {
            "file_bytes": min(r.file_bytes for r in rows),
            "score": pick(r.score_search for r in rows),
        }
        latencies = [r.latency_ms for r in rows if r.latency_ms is not None]
        if latencies:
            out["latency_ms"] = min(latencies)
        return out


def unreachable_budget(budget: int, smallest: int) -> InfeasibleError:
    """The error for a budget below what any candidate of the space can reach."""
    return InfeasibleError(
        f"no network of this search space fits in {budget:,} bytes; the smallest reachable file is {smallest:,} bytes: "
        f"raise --budget to at least that, or give a space with coarser choices",
        {"file_bytes": smallest},
    )
