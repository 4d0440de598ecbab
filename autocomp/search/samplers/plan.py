"""The planner's candidates and nothing else: what the solver alone is worth."""

from __future__ import annotations

from typing import TYPE_CHECKING

from autocomp.search.sampler import Sampler, SamplerContext, next_start, tried_ids

if TYPE_CHECKING:
    from optuna.study import Study


class PlanSampler:
    """Hands out the plan in order.

    Args:
        context: space and plan.
    """

    def __init__(self, context: SamplerContext) -> None:
        self._space = context.space
        self._starts = context.starts()

    def suggest(self, study: Study, number: int) -> dict[str, int] | None:
        """See :class:`autocomp.search.sampler.Sampler`; None behind the end of the plan."""
        start = next_start(self._starts, tried_ids(study))
        return None if start is None else self._space.encode(start)


def make(context: SamplerContext) -> Sampler:
    """The sampler."""
    return PlanSampler(context)
