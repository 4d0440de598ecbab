"""A search of fake evaluations on a Ray cluster: what the cluster benchmarks start, break and start again.

Usage: cluster_driver.py FOLDER ADDRESS TRIALS WORKERS SLEEP_S SILENCE_S. Nothing here imports torch.
Exit codes: 0 finished; 2 an error of one line; 130 interrupted.
"""

from __future__ import annotations

import json
import os
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from autocomp.core.executor import Evaluate, Job
    from autocomp.core.outcome import Outcome

UNITS = 60


@dataclass(frozen=True)
class Timer:
    """What stands for the bench: its process id is known, and it answers after a moment."""

    folder: Path

    def __call__(self) -> Timer:
        (self.folder / "timer.pid").write_text(str(os.getpid()))
        return self

    def time(self, number: int) -> float:
        time.sleep(0.02)
        return 1e-3 + number * 1e-6


@dataclass(frozen=True)
class Factory:
    """Evaluations that wait, ask the timer, and count what was begun."""

    folder: Path
    sleep_s: float
    timer: Any

    def __call__(self) -> Evaluate:
        from autocomp.testing.study_fakes import fake_outcome, fake_space

        space = fake_space(UNITS)

        def evaluate(job: Job) -> Outcome:
            with (self.folder / "starts.log").open("a") as log:
                log.write(f"{job.number} {job.attempt}\n")
            began = time.time()
            time.sleep(self.sleep_s)
            self.timer.call("time", job.number)
            with (self.folder / "spans.log").open("a") as log:
                log.write(f"{began} {time.time()}\n")
            return fake_outcome(job.candidate, space)

        return evaluate


def drive(folder: Path, address: str, trials: int, workers: int, sleep_s: float, silence_s: float) -> None:
    from autocomp.cluster.actor import Versions, start
    from autocomp.cluster.connection import connected, ray
    from autocomp.cluster.remote import Remote
    from autocomp.executors.ray_actors import RayActors
    from autocomp.search.coordinator import Coordinator
    from autocomp.search.job import Guarded
    from autocomp.search.loop import run_search
    from autocomp.search.sampler import SamplerContext, make_sampler
    from autocomp.search.storage import open_storage
    from autocomp.testing.study_fakes import fake_space, within_budget

    context = SamplerContext(space=fake_space(UNITS), seed=3)
    with connected(address) as cluster, open_storage(folder / "study.journal") as storage:
        actor = start(Timer(folder), resources={}, node=cluster.here(), restarts=-1)
        ray().get(actor.open.remote(Versions()))
        timer = Remote((actor,), "the timer", silence_s)
        coordinator = Coordinator(
            space=context.space,
            sampler=make_sampler("random", context),
            storage=storage,
            study_name="cluster",
            identity={"seed": context.seed},
            budget_trials=trials,
            constraints=within_budget,
        )
        executor = RayActors(Guarded(Factory(folder, sleep_s, timer)), jobs=workers, silence_s=silence_s, nobody_s=60)
        try:
            stats = run_search(coordinator, executor)
        finally:
            executor.close()
    print(json.dumps({"evaluations": stats.evaluations, "failures": stats.failures, "seconds": stats.seconds}))


if __name__ == "__main__":
    from autocomp.errors import AutocompError

    try:
        path, where, *numbers = sys.argv[1:]
        drive(Path(path), where, int(numbers[0]), int(numbers[1]), float(numbers[2]), float(numbers[3]))
    except AutocompError as error:
        print(error, file=sys.stderr)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        sys.exit(130)
