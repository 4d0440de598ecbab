"""Samplers: the contract, and what is particular to each."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import optuna
import pytest
from optuna.trial import TrialState, create_trial

from autocomp.errors import UnknownNameError
from autocomp.search._optuna_private import study_system_attrs
from autocomp.search.sampler import SamplerContext, derived_seed, make_sampler, untried_near
from autocomp.search.samplers._residual import fit_residual
from autocomp.testing.sampler_contract import SamplerContract, context_for, coordinate
from autocomp.testing.study_fakes import BUDGET_BYTES, fake_outcome, fake_prices, fake_space


class TestSamplers(SamplerContract): ...


def test_unknown_name_offers_the_nearest() -> None:
    with pytest.raises(UnknownNameError, match="did you mean hybrid"):
        make_sampler("hybird", SamplerContext(space=fake_space()))


def test_derived_seeds_are_fixed_for_ever() -> None:
    assert [derived_seed(0, 0), derived_seed(0, 1), derived_seed(1, 0, "tpe")] == [1427366890, 2839049726, 730432412]


def test_starts_leave_out_repetitions_and_what_is_outside() -> None:
    space, larger = fake_space(2), fake_space(3)
    inside, outside = space.decode({"layer0:weights": 1}), larger.decode({"layer2:weights": 1})
    context = SamplerContext(space=space, plan=(inside, outside, inside))
    assert context.starts() == (inside,)


def test_warm_starts_are_parents_of_nsga2(tmp_path: Path) -> None:
    context = context_for(fake_space(4), starts=24)
    coordinator = coordinate(tmp_path, "nsga2", context, 60)
    assert any("parent" in key for key in study_system_attrs(coordinator._mirror))
    starts = {c.id for c in context.starts()}
    generations = [
        next(v for k, v in t.system_attrs.items() if k.endswith("generation")) for t in coordinator._mirror.trials
    ]
    first = [r.number for r in coordinator.records.values() if r.candidate.id in starts]
    assert {generations[n] for n in first} == {0}
    assert max(generations) >= 1


def test_hybrid_beats_its_plan_and_random(tmp_path: Path) -> None:
    """On a loss whose pairwise terms the prices do not know."""
    space = fake_space(6)
    context = context_for(space, starts=8)
    best = {}
    for name in ("plan", "random", "hybrid"):
        records = coordinate(tmp_path / name, name, context, 48).records.values()
        best[name] = min(r.values(("loss",))[0] for r in records if r.feasible)
    assert best["hybrid"] < best["plan"]
    assert best["hybrid"] < best["random"]


def test_hybrid_keeps_neighbours_inside_the_budget(tmp_path: Path) -> None:
    context = context_for(fake_space(6), starts=8)
    coordinator = coordinate(tmp_path, "hybrid", context, 40)
    near = [coordinator.records[n] for n in coordinator.records if n >= 8 and n % 4 in (0, 2) and n % 7 != 6]
    assert all(r.feasible for r in near)
    assert sum(r.outcome.file_bytes > 0.9 * BUDGET_BYTES for r in near) >= len(near) / 2


def test_hybrid_without_completed_rows_still_suggests() -> None:
    study = optuna.create_study(directions=["minimize"] * 2)
    study.add_trial(create_trial(state=TrialState.RUNNING))
    sampler = make_sampler("hybrid", SamplerContext(space=fake_space(), prices=fake_prices(fake_space())))
    params = sampler.suggest(study, 0)
    assert params is not None
    fake_space().decode(params)


def test_untried_near_finds_the_last_point() -> None:
    space = fake_space(3, bits=(4, 8))
    points = [
        {"layer0:weights": a, "layer1:weights": b, "layer2:weights": c}
        for a in range(3)
        for b in range(3)
        for c in range(3)
    ]
    last = points.pop(13)
    tried = {space.decode(p).id for p in points}
    rng = np.random.default_rng(0)
    assert untried_near(space, points[0], tried, rng) == last
    assert untried_near(space, points[0], tried | {space.decode(last).id}, rng) is None


def test_residual_learns_what_the_prediction_misses() -> None:
    space, rng = fake_space(5), np.random.default_rng(0)
    counts = space.parameters()
    drawn = [space.decode({n: int(rng.integers(c)) for n, c in counts.items()}) for _ in range(80)]
    missed = [0.2 * (space.encode(c)["layer2:weights"] == 5) for c in drawn]
    residual = fit_residual(space, drawn[:60], missed[:60])
    assert residual is not None
    predicted = [residual(c) for c in drawn[60:]]
    assert np.corrcoef(predicted, missed[60:])[0, 1] > 0.8
    assert fit_residual(space, drawn[:60], [fake_outcome(drawn[0], space).kl] * 60) is None
    assert fit_residual(space, drawn[:5], missed[:5]) is None
