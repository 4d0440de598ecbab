"""Recovering finalists: the file keeps the budget and uses it; other steps than the priced ones."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from autocomp.core.candidate import Candidate
from autocomp.core.encodings import QuantizedTensor
from autocomp.core.outcome import Completed
from autocomp.core.progress import Silent
from autocomp.core.run_folder import RunFolder
from autocomp.core.settings import Settings
from autocomp.core.steps import Choice
from autocomp.search.evaluator import Evaluator
from autocomp.stages.limits import Limits
from autocomp.stages.opening import open_run
from autocomp.stages.recovering import (
    FILL,
    NEGLIGIBLE_KL,
    finish_row,
    fitted,
    matching,
    respaced_finalist,
    starting_point,
)
from autocomp.stages.rows import make_row
from autocomp.stages.surveying import survey_session
from autocomp.transforms.quantize import QuantizeWeights

MODEL = """
import torch
from torch import nn

def model(num_classes=10):
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 32, 3, stride=2, padding=1), nn.ReLU(),
        nn.Conv2d(32, 32, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, num_classes),
    )
"""

SPACE = """
[weights]
bits = [16, 8, 4]
steps = [0.1, 0.25, 0.5, 1.0, 2.0]
granularity = ["channel"]
symmetric = [true]
rounding = "compensated"
"""


@pytest.fixture(scope="module")
def evaluator(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Evaluator]:
    import numpy as np
    from sklearn.datasets import load_digits

    folder = tmp_path_factory.mktemp("recovering")
    (folder / "net.py").write_text(MODEL)
    (folder / "space.toml").write_text(SPACE)
    digits = load_digits()
    images = (digits.images[:, None] / 8.0 - 1.0).astype(np.float32)
    labels = digits.target.astype(np.int64)
    np.savez(folder / "d.npz", x_train=images[:900], y_train=labels[:900], x_test=images[900:], y_test=labels[900:])
    settings = Settings(
        model=f"{folder / 'net.py'}:model",
        data=f"npz:{folder / 'd.npz'}",
        normalize="none",
        preset="quick",
        space=str(folder / "space.toml"),
        out=folder / "run",
    )
    run = RunFolder(settings.out).open(settings)
    yield survey_session(open_run(settings, run, None, Silent()), Silent())
    run.close()


def uniform(evaluator: Evaluator, config: QuantizeWeights) -> Candidate:
    return Candidate({u: Choice((config,)) for u in evaluator.session.space.units})


def limits_of(evaluator: Evaluator, budget: int) -> Limits:
    return Limits(
        file_bytes=budget,
        latency_s=None,
        engine_bytes=None,
        drop=None,
        reference_score=0.1,
        metric=evaluator.session.workload.metric,
    )


@given(st.integers(1, 4000), st.floats(0.5, 2.0))
def test_steps_widen_for_a_file_over_budget_and_narrow_for_one_below(off: int, factor: float) -> None:
    assert matching(factor, 100_000 + off, 100_000, 4000) > factor
    assert matching(factor, 100_000 - 301 - off, 100_000, 4000) < factor
    assert 0.5 * factor <= matching(factor, 100_000 + 300 * off, 100_000, 4000) <= 2.0 * factor
    assert matching(1.0, 100_500, 100_000, 40_000) < matching(1.0, 101_000, 100_000, 40_000)


@pytest.mark.parametrize("budget", [7_000, 9_000, 12_000])
def test_the_finished_file_is_just_below_the_budget(evaluator: Evaluator, tmp_path: Path, budget: int) -> None:
    before = evaluator.realise(uniform(evaluator, QuantizeWeights(step=0.5)))
    path = tmp_path / "x.autocomp"
    after, file_bytes = fitted(evaluator, before, path, budget)
    assert os.stat(path).st_size == file_bytes
    assert FILL * budget <= file_bytes <= budget
    assert after.candidate == before.candidate


def test_bit_widths_are_left_alone(evaluator: Evaluator, tmp_path: Path) -> None:
    before = evaluator.realise(uniform(evaluator, QuantizeWeights(bits=4)))
    after, file_bytes = fitted(evaluator, before, tmp_path / "x.autocomp", 10**6)
    assert file_bytes < 10**5
    assert all(e.bits == 4 for e in after.tensors.values() if isinstance(e, QuantizedTensor))


def test_steps_that_were_never_priced_start_from_nearest_rounding(evaluator: Evaluator) -> None:
    candidate = uniform(evaluator, QuantizeWeights(step=0.77, granularity="tensor"))
    before = starting_point(evaluator, candidate)
    assert before.candidate == candidate
    for layer in evaluator.session.network.layers.values():
        stored = before.tensors[layer.weight]
        weight = evaluator.session.network.module.get_parameter(layer.weight)
        assert isinstance(stored, QuantizedTensor)
        assert stored.scale.unique().numel() == 1
        assert float((stored.decode() - weight).abs().max()) <= 0.5001 * float(stored.scale[0])


def test_the_respaced_finalist_is_a_row_of_its_own(evaluator: Evaluator) -> None:
    budget = 8_000
    limits = limits_of(evaluator, budget)
    candidate = uniform(evaluator, QuantizeWeights(step=1.0))
    compressed = evaluator.realise(candidate)
    path = evaluator.path_of(candidate)
    size = evaluator.write(compressed, path)
    quality = evaluator.quality(compressed)
    done = Completed(file_bytes=size, kl=max(quality.loss, 10 * NEGLIGIBLE_KL), score=0.0)
    row = make_row("trial 3", candidate, done, limits, trial=3)
    made = respaced_finalist(evaluator, [row], limits)
    assert made is not None
    assert (made.row.trial, made.row.name) == (3, "trial 3 respaced")
    assert made.row.feasible
    assert made.row.techniques == ("quantize_weights", "finish_ptq")
    assert made.row.candidate == made.compressed.candidate.id != candidate.id
    assert os.stat(made.row.file or "").st_size == made.row.file_bytes <= budget
    assert made.row.kl_search < row.kl_search
    plain = finish_row(evaluator, row, limits)
    assert plain is not None
    assert plain.row.candidate == candidate.id
    assert respaced_finalist(evaluator, [], limits) is None
    perfect = dataclasses.replace(row, kl_search=NEGLIGIBLE_KL / 2)
    assert respaced_finalist(evaluator, [perfect], limits) is None
    assert finish_row(evaluator, perfect, limits) is None
    logits = evaluator.simulated(made.compressed)(torch.zeros(1, 1, 8, 8))
    assert bool(torch.isfinite(logits).all())
