from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from autocomp.core.candidate import Candidate
from autocomp.core.prices import ManifestLine, PriceTable, StructurePrices
from autocomp.core.space import SearchSpace, Unit
from autocomp.core.steps import FLOAT, Choice
from autocomp.planner.neighbours import neighbours
from autocomp.planner.plan import plan, reachable, smallest, solve
from autocomp.planner.structures import UNCHANGED, saved_macs, structure_moves, structures
from autocomp.transforms.low_rank import Factorise
from autocomp.transforms.prune import PruneChannels
from tests.planner.tables import make

RATIOS = (0.25, 0.5)


def table() -> tuple[PriceTable, SearchSpace]:
    """The tables' units; the first prunes itself and the second, the third may be factorised."""
    prices, space = make()
    units = list(space.units)
    width = next(iter(prices.storage.values())).delta.shape[1]
    rng = np.random.default_rng(5)

    def decision(choices: tuple[Choice, ...], shares: dict[str, list[float]]) -> StructurePrices:
        scale = np.array([0.0, 0.05, 0.2])
        delta = (scale[:, None] * rng.normal(size=width)).astype(np.float32)
        return StructurePrices(
            choices=choices,
            bytes=np.zeros(3, np.int64),
            kl=0.5 * (delta.astype(np.float64) ** 2).sum(axis=1),
            delta=delta,
            shares={u: np.array(s) for u, s in shares.items()},
        )

    pruned = (FLOAT, *(Choice((PruneChannels(ratio=r),)) for r in RATIOS))
    ranks = (FLOAT, *(Choice((Factorise(rank=1 - r),)) for r in RATIOS))
    structure = {
        f"{units[0]}:prune": decision(pruned, {units[0]: [1, 0.75, 0.5], units[1]: [1, 0.75, 0.5]}),
        f"{units[2]}:rank": decision(ranks, {units[2]: [1, 0.8, 0.4]}),
    }
    wider = {}
    for name, unit in space.units.items():
        more = {}
        for key, decided in structure.items():
            if key.startswith(f"{name}:"):
                more[key.rpartition(":")[2]] = tuple(c.steps[0] if c.steps else None for c in decided.choices)
        wider[name] = Unit(name=name, layers=unit.layers, axes={**more, **unit.axes})
    macs = {u: 1000 * (i + 1) for i, u in enumerate(units)}
    return dataclasses.replace(prices, structure=structure, macs=macs), dataclasses.replace(space, units=wider)


def halved(prices: PriceTable) -> Candidate:
    first = next(iter(prices.storage))
    return Candidate({first: Choice((PruneChannels(ratio=0.5),))})


def test_removed_channels_take_their_bytes_along() -> None:
    prices, _ = table()
    first, second, *_ = prices.storage
    whole, half = prices.file_bytes(UNCHANGED), prices.file_bytes(halved(prices))
    expected = sum(int(prices.storage[u].bytes[prices.storage[u].index(FLOAT)]) / 2 for u in (first, second))
    assert whole - half == pytest.approx(expected, abs=2)
    assert prices.predicted_kl(halved(prices)) == pytest.approx(prices.structure[f"{first}:prune"].kl[2], rel=1e-5)


def test_a_table_under_a_structure_agrees_with_the_whole_one() -> None:
    prices, _ = table()
    structure = halved(prices)
    under = prices.under(structure)
    assert prices.under(structure) is under
    assert under.file_bytes(structure) == prices.file_bytes(structure)
    assert under.predicted_kl(structure) == pytest.approx(prices.predicted_kl(structure))
    with pytest.raises(KeyError):
        under.file_bytes(UNCHANGED)


def test_biases_densities_and_lines_of_the_manifest_have_their_own_shares() -> None:
    prices, _ = table()
    first, second, *_ = prices.storage
    decision = dataclasses.replace(
        prices.structure[f"{first}:prune"],
        outputs={first: np.array([1, 0.75, 0.5])},
        density={second: np.array([[1.0], [1.1], [1.2]]) * np.ones(len(prices.storage[second].choices))},
    )
    storage = {u: dataclasses.replace(p, biases=30) for u, p in prices.storage.items()}
    both = frozenset({f"{first}:prune", f"{second}:prune"})
    prices = dataclasses.replace(
        prices,
        storage=storage,
        structure={**prices.structure, f"{first}:prune": decision},
        lines=(*prices.lines, ManifestLine(owners=(both,), bytes=20.0)),
    )
    half = halved(prices)
    one, two = (int(storage[u].bytes[storage[u].index(FLOAT)]) - 30 for u in (first, second))
    lost = one * 0.5 + 30 * 0.5 + two * (1 - 0.5 * 1.2) - 20
    assert prices.file_bytes(UNCHANGED) - prices.file_bytes(half) == pytest.approx(lost, abs=2)
    assert prices.under(half).file_bytes(half) == prices.file_bytes(half)
    found = solve(prices, prices.file_bytes(half) // 2, structure=half)
    assert found.file_bytes == prices.file_bytes(found.candidate)


def test_a_value_that_two_units_quantize_is_there_once() -> None:
    prices, _ = table()
    first, second, *_ = prices.execution
    shared = ManifestLine(owners=(frozenset({f"{first}:int8", f"{second}:int8"}),), bytes=20.0)
    prices = dataclasses.replace(prices, lines=(shared,))
    int8 = {u: prices.execution[u].choices[1] for u in (first, second)}
    sizes = [prices.file_bytes(Candidate({u: int8[u] for u in units})) for units in ((first,), (second,), int8)]
    assert sizes == [prices.file_bytes(UNCHANGED) + 20] * 3


def test_a_line_that_takes_two_decisions_waits_for_both() -> None:
    prices, _ = table()
    third = list(prices.execution)[2]
    needs = (frozenset({f"{third}:rank"}), frozenset({f"{third}:int8"}))
    prices = dataclasses.replace(prices, lines=(ManifestLine(owners=needs, bytes=20.0),))
    factorised, int8 = Choice((Factorise(rank=0.5),)), prices.execution[third].choices[1]
    both = Candidate({third: Choice((*factorised.steps, *int8.steps))})
    without = dataclasses.replace(prices, lines=())
    extra = [
        prices.file_bytes(c) - without.file_bytes(c)
        for c in (Candidate({third: factorised}), Candidate({third: int8}), both)
    ]
    assert extra == [0, 0, 20]
    assert prices.under(both).file_bytes(both) == prices.file_bytes(both)
    assert not prices.under(UNCHANGED).lines


def test_solutions_keep_the_structure_and_the_budget() -> None:
    prices, space = table()
    structure = halved(prices)
    budget = int(prices.file_bytes(UNCHANGED) * 0.15)
    found = solve(prices, budget, execution="int8", structure=structure)
    assert found.candidate.structure() == structure
    assert found.file_bytes == prices.file_bytes(found.candidate) <= budget
    assert found.kl == pytest.approx(prices.predicted_kl(found.candidate), rel=1e-4)
    assert found.candidate in space
    assert solve(prices, budget).candidate.structure() == UNCHANGED


def test_structures_save_more_and_more_at_rising_loss() -> None:
    prices, space = table()
    found = structures(prices, count=10)
    assert len(found) == len({c.id for c in found}) >= 3
    macs = [sum(prices.remaining_macs(c).values()) for c in found]
    assert macs == sorted(macs, reverse=True)
    assert macs[0] < sum(prices.macs.values())
    assert all(c in space and len(c) for c in found)
    assert structures(prices, count=1) != []
    assert structures(dataclasses.replace(prices, structure={}), count=4) == []


def test_structures_are_the_best_for_their_price() -> None:
    """Each minimises KL + λ MACs over all combinations for some λ."""
    prices, _ = table()
    names = list(prices.structure)
    points = []
    for i in range(3):
        for j in range(3):
            kl = prices.structure[names[0]].kl[i] + prices.structure[names[1]].kl[j]
            saved = (
                saved_macs(prices, prices.structure[names[0]])[i] + saved_macs(prices, prices.structure[names[1]])[j]
            )
            points.append((kl, saved, i, j))
    for candidate in structures(prices, count=10):
        picks = [prices.structure[n].index(candidate[n.rpartition(":")[0]].only(n.rpartition(":")[2])) for n in names]
        kl, saved = next((k, s) for k, s, i, j in points if [i, j] == picks)
        rates = np.geomspace(1e-9, 1e3, 20_000)
        best = np.min([k - rates * s for k, s, *_ in points], axis=0)
        assert np.any(kl - rates * saved <= best + 1e-12)


def test_warm_starts_change_structure_now_and_then() -> None:
    prices, space = table()
    budget = int(prices.file_bytes(UNCHANGED) * 0.2)
    found = plan(prices, space, budget_bytes=budget, count=16)
    changed = [c for c in found if c.structure() != UNCHANGED]
    assert 2 <= len(changed) <= 4
    assert found[0].structure() == UNCHANGED
    assert all(c in space for c in found)


def test_neighbours_keep_the_structure() -> None:
    prices, space = table()
    base = solve(prices, int(prices.file_bytes(UNCHANGED) * 0.2), structure=halved(prices)).candidate
    near = [c for c, _ in neighbours(prices, space, base, budget_bytes=None)][:50]
    assert near
    assert all(c.structure() == base.structure() and c != base for c in near)


def test_moves_change_one_decision_by_one_step() -> None:
    prices, space = table()
    base = halved(prices)
    found = structure_moves(prices, base)
    assert {c.id for c in found} == {
        UNCHANGED.replace({u: Choice((s,)) for u, s in pairs}).id
        for first, third in [(next(iter(space.units)), list(space.units)[2])]
        for pairs in (
            [(first, PruneChannels(ratio=0.25))],
            [(first, PruneChannels(ratio=0.5)), (third, Factorise(rank=0.75))],
        )
    }
    assert all(c in space for c in found)
    assert structure_moves(dataclasses.replace(prices, structure={}), base) == []


def test_no_moves_from_a_structure_that_was_never_priced() -> None:
    prices, space = table()
    first = next(iter(space.units))
    unpriced = halved(prices).replace({first: Choice((PruneChannels(ratio=0.9),))})
    assert structure_moves(prices, unpriced) == []
    assert list(neighbours(prices, space, unpriced, budget_bytes=None)) == []


def test_removing_channels_brings_smaller_files_within_reach() -> None:
    prices, space = table()
    low, high = reachable(prices)
    whole, _ = reachable(dataclasses.replace(prices, structure={}))
    found = smallest(prices)
    assert low < whole < high
    assert found in space
    assert prices.file_bytes(found) == pytest.approx(low, abs=3)
    assert len(found.structure()) == 2
    between = (low + whole) // 2
    plans = plan(prices, space, budget_bytes=between, count=12)
    assert any(prices.file_bytes(c) <= between for c in plans)
