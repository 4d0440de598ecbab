"""The survey of a session: prices, coded tensors, activation quantizers."""

from __future__ import annotations

from autocomp.core.progress import Progress
from autocomp.planner.plan import reachable
from autocomp.search.evaluator import Evaluator
from autocomp.search.session import Session
from autocomp.stages.limits import unreachable_budget
from autocomp.survey.survey import survey


def survey_session(session: Session, progress: Progress) -> Evaluator:
    """Price every (unit, choice) once, or read the prices of an earlier run; returns what evaluates.

    Raises:
        InfeasibleError: the budget is below the smallest reachable file.
    """
    found = survey(
        session.workload,
        session.network,
        session.space,
        session.target.profile,
        calibration=session.calibration,
        sensitivity=session.settings.spend.sensitivity,
        cache=session.run.cache,
        shared=session.shared_cache,
        progress=progress,
        seed=session.settings.seed,
    )
    budget = session.settings.budget_bytes
    smallest, _ = reachable(found.prices)
    if budget is not None and budget < smallest:
        raise unreachable_budget(budget, smallest)
    return Evaluator(session, found)
