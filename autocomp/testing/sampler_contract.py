"""What every sampler must do: inherit the class in a test; samplers are found by themselves."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from autocomp.core import plugins
from autocomp.core.executor import Job
from autocomp.core.outcome import Failed
from autocomp.core.space import SearchSpace
from autocomp.planner.plan import plan
from autocomp.search.coordinator import Coordinator
from autocomp.search.sampler import PACKAGE, SamplerContext, make_sampler
from autocomp.search.storage import open_storage
from autocomp.testing.study_fakes import BUDGET_BYTES, fake_outcome, fake_prices, fake_space, within_budget

NAMES = plugins.names(PACKAGE)


def context_for(space: SearchSpace, *, starts: int = 5, prices: bool = True, seed: int = 3) -> SamplerContext:
    """What a search of the fake space would give its sampler."""
    table = fake_prices(space)
    return SamplerContext(
        space=space,
        prices=table if prices else None,
        plan=tuple(plan(table, space, budget_bytes=None, count=starts)),
        budget_bytes=BUDGET_BYTES,
        seed=seed,
    )


def coordinate(
    folder: Path,
    name: str,
    context: SamplerContext,
    trials: int,
    *,
    jobs: int = 1,
    stop_after: int | None = None,
    url: str = "",
) -> Coordinator:
    """Run a study in ``folder``, or at ``url``, to its end. Every 7th row fails.

    Once ``stop_after`` more rows are told, everything is dropped.
    """
    with open_storage(url or folder / "study.journal", study="contract") as storage:
        coordinator = Coordinator(
            space=context.space,
            sampler=make_sampler(name, context),
            storage=storage,
            study_name="contract",
            identity={"seed": context.seed},
            budget_trials=trials,
            constraints=within_budget,
        )
        running: list[Job] = []
        told = 0
        while True:
            while len(running) < jobs and (job := coordinator.ask()) is not None:
                running.append(job)
            if not running or told == stop_after:
                return coordinator
            job = running.pop(0)
            failed = Failed(stage="latency", kind="timeout", message="as every seventh")
            coordinator.tell(job.number, failed if job.number % 7 == 6 else fake_outcome(job.candidate, context.space))
            told += 1


def candidates(coordinator: Coordinator) -> list[str]:
    """Ids of the candidates by trial number."""
    return [coordinator.records[n].candidate.id for n in sorted(coordinator.records)]


@pytest.mark.parametrize("name", NAMES)
class SamplerContract:
    """Inherit as is."""

    @pytest.mark.parametrize("prices", [True, False])
    def test_stays_in_space_without_repeats(self, name: str, prices: bool, tmp_path: Path) -> None:
        space = fake_space(4, activations=True)
        coordinator = coordinate(tmp_path, name, context_for(space, prices=prices), 30, jobs=3)
        assert all(record.candidate in space for record in coordinator.records.values())
        ids = candidates(coordinator)
        assert len(set(ids)) == len(ids)
        assert coordinator.cache_hits == 0

    def test_small_space_is_visited_completely_then_ends(self, name: str, tmp_path: Path) -> None:
        space = fake_space(2, bits=(4, 8))
        context = context_for(space, starts=9)
        coordinator = coordinate(tmp_path, name, context, 100)
        expected = len(context.starts()) if name == "plan" else 9
        assert len(set(candidates(coordinator))) == coordinator.evaluations == expected

    def test_replayed_history_gives_the_same_suggestions(self, name: str, tmp_path: Path) -> None:
        context = context_for(fake_space(4))
        whole = coordinate(tmp_path / "whole", name, context, 32)
        for _ in range(6):
            coordinate(tmp_path / "parts", name, context, 32, stop_after=5)
        parts = coordinate(tmp_path / "parts", name, context, 32)
        assert candidates(parts) == candidates(whole)

    def test_plan_comes_first(self, name: str, tmp_path: Path) -> None:
        context = context_for(fake_space(4))
        coordinator = coordinate(tmp_path, name, context, 8)
        starts = [c.id for c in context.starts()]
        if name == "random":
            pytest.skip("random is the baseline without a warm start")
        assert candidates(coordinator)[: len(starts)] == starts

    def test_a_new_plan_is_tried_when_the_study_goes_on(self, name: str, tmp_path: Path) -> None:
        """Another budget on the same study has another plan; its rows count wherever the numbers stand."""
        if name == "random":
            pytest.skip("random is the baseline without a warm start")
        context = context_for(fake_space(4))
        coordinate(tmp_path, name, context, 9)
        fresh = tuple(context.space.decode({"layer0:weights": i, "layer3:weights": 5 - i}) for i in range(6))
        again = coordinate(tmp_path, name, dataclasses.replace(context, plan=fresh), 20)
        assert {c.id for c in fresh} <= set(candidates(again))

    def test_another_seed_is_another_search(self, name: str, tmp_path: Path) -> None:
        if name == "plan":
            pytest.skip("the plan has nothing random")
        space = fake_space(4)
        one = coordinate(tmp_path / "one", name, context_for(space, seed=1), 12)
        two = coordinate(tmp_path / "two", name, context_for(space, seed=2), 12)
        assert candidates(one) != candidates(two)
