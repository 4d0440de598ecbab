"""The survey of one network by several workers: each prices a part, and what they write is read as one survey."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from autocomp.core.executor import Executor, Share, carried_out
from autocomp.core.outcome import Failed
from autocomp.core.progress import Progress
from autocomp.search.session import Session
from autocomp.survey.survey import price, unpriced

WORTH = 3
"""Below so many prices a worker, opening the network in the workers costs more than it saves."""


def price_share(session: Session, names: Sequence[str]) -> None:
    """Price units and structural decisions, and write them where the survey looks for them."""
    price(session.survey_order(), names=frozenset(names))


def shares(units: Sequence[str], structures: Sequence[str], workers: int) -> list[tuple[str, ...]]:
    """At most two a worker: neighbouring units, which a walk through the network reaches in turn; then structures.

    Args:
        units: in order of execution.
        structures: "<unit>:<axis>" of structural decisions.
        workers: at most so many shares of either kind.
    """
    cuts = [round(i * len(units) / workers) for i in range(workers + 1)]
    parts = [tuple(units[a:b]) for a, b in itertools.pairwise(cuts)]
    parts += [tuple(structures[i::workers]) for i in range(workers)]
    return [part for part in parts if part]


def price_together(session: Session, executor: Executor, progress: Progress) -> None:
    """Have the workers price what the survey lacks. What fails is left: the survey prices it itself, and says why."""
    names = unpriced(session.survey_order())
    workers = executor.slots()
    if workers < 2 or len(names) < WORTH * workers:
        return
    units = [name for name in names if name in session.space.units]
    structures = [name for name in names if name not in session.space.units]
    parts = shares(units, structures, workers)
    progress.stage("survey", total=len(names))
    for event in carried_out(executor, (Share(number=i, attempt=1, names=part) for i, part in enumerate(parts))):
        assert isinstance(event.job, Share)
        if isinstance(event.outcome, Failed):
            progress.note(f"pricing {event.job.names[0]} and others failed in a worker: {event.outcome.message}")
        progress.advance(len(event.job.names), unit=event.job.names[-1])
