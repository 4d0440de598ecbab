"""The survey of a session: prices, coded tensors, activation quantizers."""

from __future__ import annotations

from autocomp.core.executor import Executor
from autocomp.core.progress import Progress
from autocomp.planner.plan import reachable
from autocomp.search.evaluator import Evaluator
from autocomp.search.session import Session
from autocomp.search.shares import price_together
from autocomp.stages.limits import unreachable_budget
from autocomp.survey.survey import survey


def survey_session(session: Session, progress: Progress, executor: Executor | None = None) -> Evaluator:
    """Price every (unit, choice) once, or read the prices of an earlier run; returns what evaluates.

    Args:
        session: what is surveyed.
        progress: one step a price.
        executor: its workers price parts of it; None: this process prices everything.

    Raises:
        InfeasibleError: the budget is below the smallest reachable file.
    """
    if executor is not None:
        price_together(session, executor, progress)
    found = survey(session.survey_order(), progress)
    budget = session.settings.budget_bytes
    smallest, _ = reachable(found.prices)
    if budget is not None and budget < smallest:
        raise unreachable_budget(budget, smallest)
    return Evaluator(session, found)
