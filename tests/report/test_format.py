"""Numbers as people read them."""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autocomp.report import format as fmt
from autocomp.testing.summaries import fake_summary

ACCURACY = {"name": "accuracy", "direction": "maximize", "unit": "fraction"}
MSE = {"name": "mse", "direction": "minimize", "unit": ""}


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1.00 kB"),
        (999_600, "1.00 MB"),
        (3_999_999, "4.00 MB"),
        (44_726_568, "44.7 MB"),
        (None, "–"),
    ],
)
def test_size(value: float | None, text: str) -> None:
    assert fmt.size(value) == text


@pytest.mark.parametrize(
    ("value", "text"), [(2.8, "2.80"), (0.0123456, "0.0123"), (123.4, "123"), (1234.5, "1,234"), (0.0, "0")]
)
def test_digits(value: float, text: str) -> None:
    assert fmt.digits(value) == text


@given(st.floats(min_value=1e-6, max_value=1e9))
def test_three_digits_are_close(value: float) -> None:
    """Half a unit of the third digit is at most 0.5 %."""
    assert float(fmt.digits(value).replace(",", "")) == pytest.approx(value, rel=0.00501)


def test_scores() -> None:
    assert fmt.score(0.98611, ACCURACY) == "98.61 %"
    assert fmt.score(0.98611, MSE) == "0.98611"
    assert fmt.score(None, MSE) == "–"
    assert fmt.score_interval((0.5, 0.625), ACCURACY) == "[50.00, 62.50] %"
    assert fmt.score_interval((0.5, 0.625), MSE) == "[0.5, 0.625]"
    assert fmt.drop(0.01, ACCURACY) == "1.00 points"


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.5, "0.5 s"), (59.4, "59 s"), (61, "1 min 01 s"), (3599.7, "1 h 00 min"), (7260, "2 h 01 min")],
)
def test_seconds(value: float, text: str) -> None:
    assert fmt.seconds(value) == text


def test_latency() -> None:
    assert fmt.latency(1.3) == "1.30 ms"
    assert fmt.latency(0.0456) == "45.6 µs"
    assert fmt.latency_interval((1.27, 1.36)) == "[1.27, 1.36] ms"
    assert fmt.latency_interval((0.01, 0.02)) == "[10.0, 20.0] µs"


def test_energy() -> None:
    assert [fmt.energy(v) for v in (2500.0, 3.0, 0.02, None)] == ["2.50 J", "3.00 mJ", "20.0 µJ", fmt.NONE]


def test_quantity_goes_by_the_unit_in_the_name() -> None:
    assert fmt.quantity("max_latency_s", 0.002, ACCURACY) == "2.00 ms"
    assert fmt.quantity("max_engine_bytes", 8e6, ACCURACY) == "8,000,000 bytes (8.00 MB)"
    assert fmt.quantity("max_drop", 0.01, ACCURACY) == "1.00 points"
    assert fmt.quantity("score", 0.5, ACCURACY) == "50.00 %"


def test_recipe_counts_choices() -> None:
    best = fake_summary().best
    assert best is not None
    counted = sum(int(part.split(" × ")[0]) for part in fmt.recipe(best, most=99).split(", "))
    assert counted == len(best.recipe)
    assert set(fmt.legend([best])) >= {"int8"}


def test_unknown_steps_are_shown_as_they_are() -> None:
    best = fake_summary().best
    assert best is not None
    odd = dataclasses.replace(best, recipe={"a": [{"kind": "fold_space", "by": 0.5}], "b": "x", "c": [3], "d": [{}]})
    assert "fold space (by 0.5)" in fmt.recipe(odd)
