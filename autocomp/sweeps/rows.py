"""The table of a sweep: one row a search, made from its summary or from the error that ended it."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from autocomp.core.result import RunSummary
from autocomp.errors import AutocompError, ConfigError, InfeasibleError
from autocomp.report import format as fmt
from autocomp.sweeps.plan import Search

if TYPE_CHECKING:
    import pandas as pd

WAITING, BEGUN, DONE, INFEASIBLE, FAILED = "waiting", "begun", "done", "infeasible", "failed"
"""States of a search; one that was killed stays "begun" until the same command goes on with it."""

STATE = "sweep.json"
"""File of the sweep's folder that holds the rows."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class SweepRow:
    """One search. Numbers are None until there is an answer.

    Attributes:
        model, target, budget, seed: what was asked; the budget as it was written, "" without one.
        state: one of the states above.
        file_bytes: size of the answer's file.
        score_search, score_test: its metric.
        drop: loss of the metric against float32 on the search split, above 0 where it is worse.
        latency_ms, latency_source: of one batch; "measured" or "predicted".
        latency_ratio: to float32's, the two timed in turn: what compares between searches that ran at other moments.
        evaluations, engine_builds: of the search.
        seconds: wall seconds of the search's last start, all stages.
        folder: absolute path of the search's run folder.
        reason: why there is no answer, one line.
        metric: {"name", "direction", "unit"}.
        resumed: ``seconds`` leave out what earlier starts took.
    """

    model: str
    target: str
    budget: str
    seed: int
    state: str = WAITING
    file_bytes: int | None = None
    score_search: float | None = None
    score_test: float | None = None
    drop: float | None = None
    latency_ms: float | None = None
    latency_source: str | None = None
    latency_ratio: float | None = None
    evaluations: int | None = None
    engine_builds: int | None = None
    seconds: float | None = None
    folder: str = ""
    reason: str = ""
    metric: dict[str, str] = dataclasses.field(default_factory=dict)
    resumed: bool = False

    @staticmethod
    def waiting(search: Search) -> SweepRow:
        """The row before the search has begun."""
        return SweepRow(
            model=search.model,
            target=search.target,
            budget=search.budget,
            seed=search.settings.seed,
            folder=str(search.settings.out),
        )

    def ended(self, summary: RunSummary, *, resumed: bool) -> SweepRow:
        """This row with what the search found."""
        found = dataclasses.replace(
            self,
            state=INFEASIBLE if summary.best is None else DONE,
            evaluations=summary.evaluations,
            engine_builds=summary.engine_builds,
            seconds=round(sum(summary.seconds.values()), 2),
            reason=fmt.answer(summary) if summary.best is None else "",
            metric=dict(summary.metric),
            resumed=resumed,
        )
        if summary.best is None:
            return found
        best, base = summary.best, summary.float32
        sign = 1 if summary.metric["direction"] == "maximize" else -1
        return dataclasses.replace(
            found,
            file_bytes=best.file_bytes,
            score_search=best.score_search,
            score_test=best.score_test,
            drop=sign * (base.score_search - best.score_search),
            latency_ms=best.latency_ms,
            latency_source=best.latency_source,
            latency_ratio=best.latency_ratio,
        )

    def failed(self, error: AutocompError) -> SweepRow:
        """This row with the one line of what went wrong."""
        state = INFEASIBLE if isinstance(error, InfeasibleError) else FAILED
        return dataclasses.replace(self, state=state, reason=" ".join(str(error).split()))

    @property
    def name(self) -> str:
        """Name of the search's folder."""
        return Path(self.folder).name


COLUMNS = tuple(f.name for f in dataclasses.fields(SweepRow) if f.name not in ("metric", "resumed"))
"""Of the table; the JSON holds the others too."""


def exit_code(rows: Iterable[SweepRow]) -> int:
    """0: every search has its answer; 2: one failed; 3: one has constraints that nothing meets, and none failed."""
    states = {row.state for row in rows}
    return ConfigError.exit_code if FAILED in states else InfeasibleError.exit_code if INFEASIBLE in states else 0


def frame(rows: Sequence[SweepRow]) -> pd.DataFrame:
    """One row a search, columns as in ``sweep.csv``."""
    import pandas as pd

    table = pd.DataFrame([[getattr(r, c) for c in COLUMNS] for r in rows], columns=list(COLUMNS))
    kinds: dict[str, Any] = dict.fromkeys(("seed", "file_bytes", "evaluations", "engine_builds"), "Int64")
    kinds |= dict.fromkeys(("score_search", "score_test", "drop", "latency_ms", "latency_ratio", "seconds"), "float64")
    return table.astype(kinds)


def earlier(folder: Path) -> dict[str, SweepRow]:
    """The rows that an earlier start left in ``folder``, by name; empty where there are none that can be read.

    Nothing but figures for people comes from them: what is done is told by the run folders themselves.
    """
    try:
        rows = json.loads((folder / STATE).read_text(encoding="utf-8"))["rows"]
        return {row.name: row for row in (SweepRow(**fields) for fields in rows)}
    except (OSError, ValueError, KeyError, TypeError):
        return {}
