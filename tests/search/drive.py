"""Drives a study with a fake evaluator: what the kill tests start and kill.

Usage: drive.py FOLDER SAMPLER TRIALS JOBS SLEEP_S [EXECUTOR [URL [STUDY]]].
Exit codes: 0 finished, 2 refused, 130 interrupted.
"""

from __future__ import annotations

import sys
from pathlib import Path

from autocomp.core import plugins
from autocomp.errors import AutocompError
from autocomp.search.job import Guarded
from autocomp.testing.study_fakes import FakeFactory, fake_space, within_budget


def drive(
    folder: Path,
    sampler: str,
    trials: int,
    jobs: int,
    sleep_s: float,
    executor_name: str = "",
    url: str = "",
    study: str = "killed",
) -> None:
    """Run the study in ``folder``, or at ``url``, to its end; every evaluation is logged before it starts."""
    # Workers import this file too: they need none of these.
    from autocomp.search.coordinator import Coordinator
    from autocomp.search.loop import run_search
    from autocomp.search.sampler import SamplerContext, make_sampler
    from autocomp.search.storage import open_storage

    context = SamplerContext(space=fake_space(5), seed=3)
    factory = Guarded(FakeFactory(units=5, sleep_s=sleep_s, log=folder / "starts.log"))
    name = executor_name or ("inline" if jobs == 1 else "processes")
    with open_storage(url or folder / "study.journal", study=study) as storage:
        coordinator = Coordinator(
            space=context.space,
            sampler=make_sampler(sampler, context),
            storage=storage,
            study_name=study,
            identity={"seed": context.seed},
            budget_trials=trials,
            constraints=within_budget,
        )
        executor = plugins.find("autocomp.executors", "executor", name).make(factory, jobs=jobs)
        try:
            run_search(coordinator, executor)
        finally:
            executor.close()


if __name__ == "__main__":
    try:
        drive(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), int(sys.argv[4]), float(sys.argv[5]), *sys.argv[6:])
    except AutocompError as error:
        print(error, file=sys.stderr)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        sys.exit(130)
