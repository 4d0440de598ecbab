"""Recovering finalists: the file keeps the budget and uses it; other steps than the priced ones."""

from __future__ import annotations

import dataclasses
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autocomp.core.candidate import Candidate
from autocomp.core.compressed import CompressedModel
from autocomp.core.encodings import QuantizedTensor
from autocomp.core.executor import Event, Executor, Finishing, Task
from autocomp.core.outcome import Completed, Failed
from autocomp.core.progress import Silent
from autocomp.core.run_folder import RunFolder
from autocomp.core.settings import Settings
from autocomp.core.steps import Choice
from autocomp.errors import UnsupportedError
from autocomp.evaluators.quality import Quality
from autocomp.executors import processes
from autocomp.search.evaluator import Evaluator
from autocomp.search.finishing import FILL, finish, fitted, matching, starting_point
from autocomp.search.job import Guarded
from autocomp.search.loop import SearchStats
from autocomp.search.reopening import WorkerFactory
from autocomp.stages.exploring import Explored
from autocomp.stages.finishing import NEGLIGIBLE_KL, attempts, finish_best
from autocomp.stages.limits import Limits
from autocomp.stages.opening import open_run
from autocomp.stages.rows import make_row, read_row
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


def evaluated(evaluator: Evaluator, limits: Limits, candidate: Candidate) -> Explored:
    """What a search leaves that evaluated ``candidate`` only."""
    path = evaluator.path_of(candidate)
    size = evaluator.write(evaluator.realise(candidate), path)
    quality = evaluator.quality(evaluator.realise(candidate))
    done = Completed(file_bytes=size, kl=max(quality.loss, 10 * NEGLIGIBLE_KL), score=quality.score)
    row = make_row("trial 3", candidate, done, limits, trial=3, file=str(path))
    stats = SearchStats(evaluations=1, cache_hits=0)
    return Explored(rows=(row,), float32=row, baselines={}, limits=limits, stats=stats)


def test_the_best_row_is_finished_and_respaced(evaluator: Evaluator) -> None:
    limits = limits_of(evaluator, 8_000)
    candidate = uniform(evaluator, QuantizeWeights(step=1.0))
    explored = evaluated(evaluator, limits, candidate)
    found = finish_best(evaluator, explored, None, Silent())
    rows = {row.name: row for row in found.explored.rows}
    assert set(rows) == {"trial 3", "trial 3 finished", "trial 3 respaced"}
    assert {row.name for row in found.rows} == {"trial 3 finished", "trial 3 respaced"}
    assert rows["trial 3 finished"].candidate == candidate.id != rows["trial 3 respaced"].candidate
    for row in found.rows:
        assert row.trial == 3
        assert row.feasible
        assert row.techniques == ("quantize_weights", "finish_ptq")
        assert row.kl_search < explored.rows[0].kl_search
        assert os.stat(row.file or "").st_size == row.file_bytes <= 8_000
        assert evaluator.quality(read_row(row)).loss == pytest.approx(row.kl_search, rel=1e-6)


def test_workers_finish_as_this_process_does(evaluator: Evaluator) -> None:
    session, limits = evaluator.session, limits_of(evaluator, 7_800)
    explored = evaluated(evaluator, limits, uniform(evaluator, QuantizeWeights(step=1.0)))
    alone = finish_best(evaluator, explored, None, Silent())
    made = [Path(row.file or "").read_bytes() for row in alone.rows]
    shutil.rmtree(session.run.cache / "finished")
    factory = Guarded(WorkerFactory(settings=session.settings, folder=session.run.path))
    executor = processes.make(factory, jobs=2)
    try:
        together = finish_best(evaluator, explored, executor, Silent())
    finally:
        executor.close()
    assert together == alone
    assert [Path(row.file or "").read_bytes() for row in together.rows] == made


def test_rows_with_nothing_to_recover_are_left_alone(evaluator: Evaluator) -> None:
    limits = limits_of(evaluator, 8_000)
    row = evaluated(evaluator, limits, uniform(evaluator, QuantizeWeights(step=1.0))).rows[0]
    assert [a.respaced for a in attempts(evaluator, [row], limits, 4)] == [True, False]
    assert [a.respaced for a in attempts(evaluator, [row, row, row], limits, 2)] == [True, False]
    perfect = dataclasses.replace(row, kl_search=NEGLIGIBLE_KL / 2)
    assert attempts(evaluator, [perfect], limits, 4) == []
    assert attempts(evaluator, [], limits, 4) == []
    unlimited = dataclasses.replace(limits, file_bytes=None)
    assert [a.respaced for a in attempts(evaluator, [row, row], unlimited, 1)] == [False]


def test_a_finished_file_is_not_made_again_unless_it_is_gone_or_asked_for_otherwise(evaluator: Evaluator) -> None:
    job = Finishing(number=0, attempt=1, candidate=uniform(evaluator, QuantizeWeights(step=1.1)), budget_bytes=9_000)
    first = finish(evaluator, job)
    path = Path(first.path)
    made = path.stat().st_mtime_ns
    assert finish(evaluator, job) == first
    assert path.stat().st_mtime_ns == made
    path.unlink()
    assert finish(evaluator, job) == first
    assert path.stat().st_size == first.file_bytes
    made = path.stat().st_mtime_ns
    other = finish(evaluator, dataclasses.replace(job, budget_bytes=7_500))
    assert path.stat().st_mtime_ns != made
    assert other.file_bytes == path.stat().st_size <= 7_500


def test_a_folder_that_was_copied_keeps_to_itself(evaluator: Evaluator, tmp_path: Path) -> None:
    job = Finishing(number=0, attempt=1, candidate=uniform(evaluator, QuantizeWeights(step=1.3)), budget_bytes=9_000)
    first = finish(evaluator, job)
    shutil.copytree(evaluator.session.run.path, tmp_path / "copy")
    session = dataclasses.replace(evaluator.session, run=RunFolder(tmp_path / "copy"))
    other = finish(Evaluator(session, evaluator.survey), job)
    assert other == dataclasses.replace(first, path=str(tmp_path / "copy" / "candidates" / Path(first.path).name))
    assert not list(tmp_path.glob("**/*.draft"))


class Dying(Executor):
    """Two workers that die of everything."""

    def __init__(self) -> None:
        self.jobs: list[Task] = []

    def slots(self) -> int:
        return 2 - len(self.jobs)

    def submit(self, job: Task) -> None:
        self.jobs.append(job)

    def next_event(self, timeout_s: float | None = None) -> Event | None:
        outcome = Failed(stage="worker", kind="died", message="the worker was killed, 3 times in a row")
        return Event(job=self.jobs.pop(), outcome=outcome)

    def close(self) -> None: ...


def test_what_workers_die_of_is_tried_once_more_here(evaluator: Evaluator) -> None:
    limits = limits_of(evaluator, 7_600)
    explored = evaluated(evaluator, limits, uniform(evaluator, QuantizeWeights(step=1.0)))
    found = finish_best(evaluator, explored, Dying(), Silent())
    assert {row.name for row in found.rows} == {"trial 3 finished", "trial 3 respaced"}


class Broken(Evaluator):
    """Cannot score what was finished."""

    def quality(self, compressed: CompressedModel) -> Quality:
        if compressed.steps == ("loaded",):
            raise UnsupportedError("no kernel for this")
        return super().quality(compressed)


def test_a_row_whose_finishing_fails_stays_as_it_was(evaluator: Evaluator) -> None:
    limits = limits_of(evaluator, 7_000)
    explored = evaluated(evaluator, limits, uniform(evaluator, QuantizeWeights(step=2.0)))
    said: list[str] = []
    progress = Silent()
    progress.note = said.append  # type: ignore[method-assign]
    found = finish_best(Broken(evaluator.session, evaluator.survey), explored, None, progress)
    assert found.rows == explored.rows
    assert len(said) == 2
    assert all("trial 3 stays as it was" in line and "no kernel for this" in line for line in said)
    assert [f"{note} (more in {evaluator.session.run.log})" for note in found.explored.notes] == said
    assert "UnsupportedError: no kernel for this" in evaluator.session.run.log.read_text()
