"""Metrics agree with plain slow definitions."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import f1_score, top_k_accuracy_score

from autocomp.core.workload import Metric
from autocomp.errors import ConfigError, DataError, UnknownNameError
from autocomp.workloads import metrics


def sample(n: int = 200, classes: int = 7) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    reference = torch.randn(n, classes, generator=generator) * 2
    outputs = reference + 0.5 * torch.randn(n, classes, generator=generator)
    targets = torch.multinomial(reference.softmax(1), 1, generator=generator).squeeze(1)
    return outputs, targets, reference


def test_classification_metrics_agree_with_scikit_learn() -> None:
    outputs, targets, reference = sample()
    y, scores = targets.numpy(), outputs.numpy()
    expected = {
        "accuracy": top_k_accuracy_score(y, scores, k=1),
        "top5": top_k_accuracy_score(y, scores, k=5),
        "f1_macro": f1_score(y, scores.argmax(1), average="macro"),
    }
    for name, value in expected.items():
        metric = metrics.resolve(name)
        assert metric.compute(outputs, targets, reference) == pytest.approx(value, abs=1e-12)
        assert (metric.name, metric.direction, metric.unit) == (name, "maximize", "fraction")


def test_top5_of_few_classes_is_one() -> None:
    assert metrics.resolve("top5").compute(torch.randn(9, 3), torch.arange(9) % 3, torch.zeros(9, 3)) == 1.0


def test_kl_and_perplexity_agree_with_their_definitions() -> None:
    outputs, targets, reference = sample(20)
    p, q = reference.double().softmax(1), outputs.double().softmax(1)
    kl = sum(float(a * (a / b).log()) for ps, qs in zip(p, q, strict=True) for a, b in zip(ps, qs, strict=True)) / 20
    assert metrics.resolve("kl").compute(outputs, targets, reference) == pytest.approx(kl, rel=1e-5)
    nll = -sum(float(qs[t].log()) for qs, t in zip(q, targets, strict=True)) / 20
    assert metrics.resolve("perplexity").compute(outputs, targets, reference) == pytest.approx(math.exp(nll), rel=1e-5)


def test_perplexity_over_positions() -> None:
    outputs, targets = torch.randn(4, 5, 11), torch.randint(0, 11, (4, 5))
    metric = metrics.resolve("perplexity")
    flat = metric.compute(outputs.view(20, 11), targets.view(20), outputs)
    assert metric.compute(outputs, targets, outputs) == pytest.approx(flat)


def test_mse() -> None:
    metric = metrics.resolve("mse")
    outputs, targets = torch.tensor([[1.0], [3.0]]), torch.tensor([0.0, 1.0])
    assert metric.compute(outputs, targets, outputs) == pytest.approx(2.5)
    assert metric.direction == "minimize"
    with pytest.raises(ConfigError, match="must agree"):
        metric.compute(torch.zeros(2, 3), targets, outputs)


def test_wilson_interval_is_the_published_one() -> None:
    # Newcombe 1998, Statistics in Medicine 17, table I: 81 of 263, 15 of 148, 0 of 20 and 1 of 29
    for successes, total, low, high in [
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ]:
        assert metrics.wilson(successes, total) == pytest.approx((low, high), abs=5e-5)


@given(st.integers(0, 500), st.integers(1, 500))
def test_wilson_holds_the_rate(successes: int, total: int) -> None:
    successes = min(successes, total)
    low, high = metrics.wilson(successes, total)
    assert 0 <= low <= successes / total + 1e-12
    assert successes / total - 1e-12 <= high <= 1


@pytest.mark.parametrize("name", metrics.names())
def test_values_lie_in_their_intervals(name: str) -> None:
    outputs, targets, reference = sample()
    if name == "mse":
        targets = reference
    metric = metrics.resolve(name)
    value = metric.compute(outputs, targets, reference)
    if metric.interval is not None:
        low, high = metric.interval(outputs, targets, reference)
        assert low < value < high


def test_unknown_names_offer_the_nearest() -> None:
    with pytest.raises(UnknownNameError, match="did you mean accuracy"):
        metrics.resolve("acuracy")


def hinge(outputs: torch.Tensor, targets: torch.Tensor, reference: torch.Tensor) -> float:
    return float(outputs.sum())


def test_own_functions_must_say_their_direction() -> None:
    with pytest.raises(ConfigError, match=r"hinge\.direction"):
        metrics.from_object(hinge, "own:hinge")
    hinge.direction = "minimize"  # type: ignore[attr-defined]
    try:
        metric = metrics.from_object(hinge, "own:hinge")
    finally:
        del hinge.direction  # type: ignore[attr-defined]
    assert isinstance(metric, Metric)
    assert metric.direction == "minimize"
    assert metric.compute(torch.ones(2, 2), torch.zeros(2), torch.ones(2, 2)) == 4.0


def test_missing_modules_are_named() -> None:
    with pytest.raises(ConfigError, match="no module no_such_module"):
        metrics.resolve("no_such_module:f")
    with pytest.raises((ConfigError, DataError), match="there is no file"):
        metrics.resolve("no/such.py:f")
