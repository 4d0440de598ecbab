"""Constraints: what is feasible, what is the answer, what is the nearest miss."""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autocomp.core.row import Row
from autocomp.core.workload import Metric
from autocomp.stages.exporting import knee
from autocomp.stages.finishing import choose_finalists
from autocomp.stages.limits import Limits, unreachable_budget
from autocomp.stages.summarising import front_of

ACCURACY = Metric(name="accuracy", direction="maximize", unit="fraction", compute=lambda *_: 0.0)
LOSS = dataclasses.replace(ACCURACY, name="mse", direction="minimize")


def limits(metric: Metric = ACCURACY, **changes: object) -> Limits:
    base = Limits(file_bytes=None, latency_s=None, engine_bytes=None, drop=None, reference_score=0.9, metric=metric)
    return dataclasses.replace(base, **changes)


def row(
    file_bytes: int = 100, score: float = 0.9, kl: float = 0.1, latency_ms: float | None = 1.0, **more: object
) -> Row:
    made = Row(name="r", file_bytes=file_bytes, score_search=score, kl_search=kl, latency_ms=latency_ms)
    return dataclasses.replace(made, **more)


@pytest.mark.parametrize(
    ("limit", "holds", "breaks"),
    [
        ({"file_bytes": 100}, row(file_bytes=100), row(file_bytes=101)),
        ({"latency_s": 0.001}, row(latency_ms=1.0), row(latency_ms=1.001)),
        ({"latency_s": 0.001}, row(latency_ms=0.5), row(latency_ms=None)),
        ({"engine_bytes": 10}, row(engine_bytes=10), row(engine_bytes=11)),
        # 0.9 - 0.89 is a little more than 0.01 in binary: exactly the limit must still hold
        ({"drop": 0.01}, row(score=0.89), row(score=0.889)),
    ],
)
def test_each_limit_holds_up_to_its_value(limit: dict[str, float], holds: Row, breaks: Row) -> None:
    assert limits(**limit).feasible(holds)
    assert not limits(**limit).feasible(breaks)


def test_drop_follows_the_metric_s_direction() -> None:
    assert limits(LOSS, drop=0.01, reference_score=0.5).feasible(row(score=0.51))
    assert not limits(LOSS, drop=0.01, reference_score=0.5).feasible(row(score=0.52))


def test_the_answer_is_the_best_score_then_the_lower_kl_then_the_smaller_file() -> None:
    rows = [
        row(score=0.95, feasible=False),
        row(score=0.9, kl=0.2, feasible=True),
        row(score=0.9, kl=0.1, file_bytes=90, feasible=True),
        row(score=0.9, kl=0.1, file_bytes=80, feasible=True),
        row(score=0.8, kl=0.0, feasible=True),
    ]
    assert limits().best(rows) is rows[3]
    assert limits().best(rows[:1]) is None
    assert choose_finalists(rows, limits(), 2) == [rows[3], rows[2]]


def test_only_limits_that_were_set_are_named() -> None:
    assert limits(file_bytes=5, drop=0.1).to_json() == {"budget": 5, "max_drop": 0.1}


def test_nearest_miss_names_what_was_reachable() -> None:
    rows = [row(file_bytes=50, score=0.5, latency_ms=3.0), row(file_bytes=70, score=0.8, latency_ms=2.0)]
    assert limits().nearest(rows) == {"file_bytes": 50, "score": 0.8, "latency_ms": 2.0}


def test_unreachable_budget_names_the_smallest_size() -> None:
    error = unreachable_budget(1000, 4321)
    assert error.exit_code == 3
    assert "1,000 bytes" in str(error)
    assert "4,321 bytes" in str(error)
    assert "\n" not in str(error)


points = st.lists(
    st.tuples(st.integers(1, 50), st.floats(0, 10, allow_nan=False), st.floats(0.1, 10)), min_size=1, max_size=30
)


@given(points)
def test_the_front_holds_exactly_what_nothing_dominates(values: list[tuple[int, float, float]]) -> None:
    rows = [row(file_bytes=b, kl=k, latency_ms=t, trial=i) for i, (b, k, t) in enumerate(values)]
    front = front_of(rows)

    def dominated(a: Row) -> bool:
        mine = (a.file_bytes, a.kl_search, a.latency_ms or 0.0)
        others = [(b.file_bytes, b.kl_search, b.latency_ms or 0.0) for b in rows]
        return any(all(x <= y for x, y in zip(o, mine, strict=True)) and o != mine for o in others)

    assert {r.trial for r in front} == {r.trial for r in rows if not dominated(r)}
    assert [r.file_bytes for r in front] == sorted(r.file_bytes for r in front)


def test_the_knee_is_the_corner() -> None:
    rows = [row(file_bytes=b, kl=k) for b, k in ((10, 1.0), (20, 0.01), (1000, 0.005))]
    assert knee(rows) is rows[1]
    assert knee(rows[:1]) is rows[0]


def test_a_score_above_float32_is_no_better_than_float32() -> None:
    lucky, close, worse = (
        row(score=0.92, kl=0.2, feasible=True),
        row(score=0.9, kl=0.001, feasible=True),
        row(score=0.89, kl=0.0001, feasible=True),
    )
    assert limits().best([lucky, close, worse]) is close
    assert limits().best([lucky, worse]) is lucky
