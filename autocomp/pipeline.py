"""survey → plan → search → finish → decide → pack → report: each stage takes what the one before returned."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from autocomp.core.progress import Progress, Silent
from autocomp.core.progress_log import logged
from autocomp.core.result import RunSummary
from autocomp.core.run_folder import RunFolder
from autocomp.core.settings import Settings
from autocomp.core.workload import Workload
from autocomp.report.live import SEARCH_STAGES
from autocomp.stages import exporting, opening, verifying
from autocomp.stages.clock import Clock
from autocomp.stages.clustering import joined
from autocomp.stages.deciding import decide
from autocomp.stages.exploring import explore, prepare_study
from autocomp.stages.finishing import finish_best
from autocomp.stages.surveying import survey_session
from autocomp.stages.workers import hired
from autocomp.stages.wrapping import wrap_up


def search(
    settings: Settings, progress: Progress | None = None, *, fresh: bool = False, workload: Workload | None = None
) -> RunSummary:
    """The main job. The same settings again resume, or show a finished run at once.

    Args:
        settings: resolved settings.
        progress: receiver of progress.
        fresh: start over in a folder that holds an earlier run.
        workload: given where the caller's own objects are searched; else loaded by its spec.

    Raises:
        InfeasibleError: nothing reachable meets the budget (raised before the search where that is certain;
            otherwise the summary has ``best`` None).
    """
    progress, clock = progress or Silent(), Clock()
    run = RunFolder(settings.out).open(settings, fresh=fresh, say=progress.note)
    try:
        finished = opening.already_finished(run, settings)
        if finished is not None:
            progress.note(f"this run is finished; shown again from {run.path} (--fresh starts over)")
            return finished
        with (
            logged(run, settings, progress, SEARCH_STAGES) as progress,
            joined(settings, progress, scores=True) as bench,
        ):
            with clock("load"):
                session = opening.open_run(settings, run, workload, progress, bench)
                opening.check_reachable(session)
                prepare_study(session, progress)
                run.forget_summary()
            with hired(session, workload) as executor:
                with clock("survey"):
                    evaluator = survey_session(session, progress, executor)
                with clock("search"):
                    explored = explore(evaluator, executor, progress)
                with clock("finish"):
                    finalists = finish_best(evaluator, explored, executor, progress)
            with clock("finish"):  # the workers are gone: nothing else keeps this machine busy
                answer = decide(evaluator, finalists, progress)
            return wrap_up(evaluator, explored, answer, clock, progress)
    finally:
        run.close()


def survey(settings: Settings, progress: Progress | None = None) -> list[dict[str, Any]]:
    """Price every layer and choice; the sensitivity table, one row a (unit, choice)."""
    from autocomp.survey.stored import sensitivity_table

    progress = progress or Silent()
    settings = dataclasses.replace(settings, device="cpu")  # nothing is scored
    run = RunFolder(settings.out).open(settings, say=progress.note)
    try:
        with logged(run, settings, progress, ("survey",)) as progress, joined(settings, progress) as bench:
            session = opening.open_run(settings, run, None, progress, bench)
            with hired(session, None) as executor:
                return sensitivity_table(survey_session(session, progress, executor).survey)
    finally:
        run.close()


def report(run: str | Path) -> list[Path]:
    """Rebuild the report of a finished run from its summary; returns the files written."""
    from autocomp.report import write_report

    folder = RunFolder.existing(Path(run))
    return write_report(opening.summary_of(folder), folder.path)


def export(run: str | Path, pick: str = "best", file_format: str = "autocomp", out: Path | None = None) -> Path:
    """Write the best, the knee or a trial of a run as autocomp, onnx, safetensors or tensorrt."""
    folder = RunFolder.existing(Path(run))
    return exporting.export_row(folder, opening.summary_of(folder), pick, file_format, out)


def verify(path: str | Path, progress: Progress | None = None) -> list[verifying.Check]:
    """Measure again what a run folder or an ``.autocomp`` file claims."""
    progress, path = progress or Silent(), Path(path)
    if path.is_file():
        return verifying.verify_file(path, progress)
    run = RunFolder.existing(path)
    with joined(opening.settings_of(run), progress) as bench:
        return verifying.verify_run(run, opening.summary_of(run), progress, bench)
