"""kill -9 at random moments: no completed trial lost, none counted twice, sequential studies identical."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import optuna
import psutil
import pytest
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState

from autocomp.search.records import ATTEMPT, CANDIDATE, OUTCOME

ROOT = Path(__file__).parents[2]
TRIALS = 48
DEADLINE_S = 120.0
SET_STATE = 6  # Optuna's journal operation


def start(folder: Path, sampler: str, jobs: int, sleep_s: float = 0.02) -> subprocess.Popen[bytes]:
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, str(Path(__file__).with_name("drive.py")), str(folder), sampler]
    command += [str(TRIALS), str(jobs), str(sleep_s)]
    return subprocess.Popen(command, env=env, stderr=subprocess.PIPE)


def starts(folder: Path) -> list[list[int]]:
    """[number, attempt] of every evaluation begun."""
    log = folder / "starts.log"
    return [[int(x) for x in line.split()] for line in log.read_text().splitlines()] if log.exists() else []


def rows(folder: Path) -> list[optuna.trial.FrozenTrial]:
    path = folder / "study.journal"
    if not path.exists() or not path.stat().st_size:
        return []
    storage = JournalStorage(JournalFileBackend(str(path)))
    names = [s.study_name for s in storage.get_all_studies()]
    return optuna.load_study(study_name="killed", storage=storage).get_trials(deepcopy=False) if names else []


def finished(folder: Path) -> dict[int, tuple[Any, ...]]:
    return {
        t.number: (t.state, t.values, t.params, t.user_attrs[OUTCOME]) for t in rows(folder) if t.state.is_finished()
    }


def running(folder: Path) -> set[int]:
    return {t.number for t in rows(folder) if not t.state.is_finished()}


def kill_during(folder: Path, sampler: str, jobs: int, rng: random.Random, evaluations: int) -> None:
    """Start the driver and kill it at a random moment after so many evaluations more have begun.

    With any, the rows that the last kill left are waited for: one killed ``ATTEMPTS`` times would fail by right.
    """
    seen, left = len(starts(folder)), running(folder)
    process = start(folder, sampler, jobs)
    until = time.monotonic() + DEADLINE_S
    while evaluations and process.poll() is None:
        if len(starts(folder)) >= seen + evaluations and not left & running(folder):
            break
        assert time.monotonic() < until, "the driver does not get on"
        time.sleep(0.003)
    time.sleep(rng.uniform(0.0, 0.05 if evaluations else 0.6))
    children = psutil.Process(process.pid).children(recursive=True) if process.poll() is None else []
    process.kill()
    assert process.wait() == -signal.SIGKILL
    process.stderr.close()  # type: ignore[union-attr]
    _, alive = psutil.wait_procs(children, timeout=DEADLINE_S)
    assert alive == [], "workers outlive a killed driver"


def finish(folder: Path, sampler: str, jobs: int) -> None:
    process = start(folder, sampler, jobs, sleep_s=0.0)
    _, errors = process.communicate(timeout=DEADLINE_S)
    assert (process.returncode, errors.decode()) == (0, "")


def check(folder: Path) -> None:
    """Every number finished exactly once, none without an outcome, no evaluation counted twice."""
    trials = rows(folder)
    assert [t.number for t in trials] == list(range(TRIALS))
    assert {t.state for t in trials} == {TrialState.COMPLETE}
    assert len({t.user_attrs[CANDIDATE] for t in trials}) == TRIALS
    lines = [json.loads(line) for line in (folder / "study.journal").read_text().splitlines()]
    ends = Counter(x["trial_id"] for x in lines if x["op_code"] == SET_STATE and x["state"] == TrialState.COMPLETE)
    assert set(ends.values()) == {1}
    assert len(ends) == TRIALS
    begun = Counter(number for number, _ in starts(folder))
    for trial in trials:
        assert begun[trial.number] <= trial.user_attrs[ATTEMPT], "begun again without a new attempt"


@pytest.mark.parametrize(("sampler", "jobs", "kills"), [("tpe", 1, 10), ("random", 2, 3)])
def test_killed_at_random_moments(sampler: str, jobs: int, kills: int, tmp_path: Path) -> None:
    rng = random.Random(20)
    before: dict[int, tuple[Any, ...]] = {}
    for kill in range(kills):
        kill_during(tmp_path, sampler, jobs, rng, evaluations=0 if kill % 5 == 4 else rng.randint(1, 4))
        now = finished(tmp_path)
        assert {n: now.get(n) for n in before} == before, "a finished trial was lost or changed"
        before = now
    assert before
    assert len(before) < TRIALS
    finish(tmp_path, sampler, jobs)
    after = finished(tmp_path)
    assert {n: after[n] for n in before} == before
    check(tmp_path)
    if jobs == 1:
        whole = tmp_path / "whole"
        whole.mkdir()
        finish(whole, sampler, 1)
        assert finished(whole) == after


def test_interrupt_leaves_a_study_that_goes_on(tmp_path: Path) -> None:
    process = start(tmp_path, "random", 1)
    while len(starts(tmp_path)) < 3:
        time.sleep(0.005)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=DEADLINE_S)
    assert (process.returncode, errors.decode()) == (130, "")
    before = finished(tmp_path)
    assert len(before) >= 2
    finish(tmp_path, "random", 1)
    after = finished(tmp_path)
    assert {n: after[n] for n in before} == before
    check(tmp_path)


def test_two_processes_cannot_drive_one_study(tmp_path: Path) -> None:
    first = start(tmp_path, "random", 1)
    try:
        while not starts(tmp_path):
            time.sleep(0.005)
        first.send_signal(signal.SIGSTOP)
        second = start(tmp_path, "random", 1)
        _, errors = second.communicate(timeout=DEADLINE_S)
        assert second.returncode == 2
        assert f"process {first.pid} is driving this study" in errors.decode()
        assert errors.decode().count("\n") == 1
    finally:
        first.kill()
        first.communicate()
