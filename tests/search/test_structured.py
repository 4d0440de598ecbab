"""Structures in the evaluator: what is shared, what is made anew, and that sizes are those of the coded tensors."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

from autocomp.core.candidate import Candidate
from autocomp.core.run_folder import RunFolder
from autocomp.core.steps import Choice
from autocomp.evaluators import artifact
from autocomp.evaluators.artifact import read_compressed
from autocomp.search.evaluator import STRUCTURES_KEPT, Evaluator
from autocomp.survey.stored import load_survey
from autocomp.survey.survey import survey
from autocomp.testing.joint import joint_session
from autocomp.testing.networks import example
from autocomp.transforms.low_rank import Factorise
from autocomp.transforms.prune import PruneChannels
from autocomp.transforms.quantize import QuantizeActivations, QuantizeWeights

TABLES = {
    "prune": {"multiple": 1, "ratio": [0.25, 0.5]},
    "rank": {"rank": [0.5, 0.25]},
    "weights": {"bits": [8], "steps": [0.5, 1.0]},
    "activations": {"precisions": ["float32", "int8"], "calibrator": "minmax"},
}


@pytest.fixture(scope="module")
def evaluator(tmp_path_factory: pytest.TempPathFactory) -> Evaluator:
    model, inputs = example("residual", samples=24)
    session = joint_session(model, inputs, tmp_path_factory.mktemp("run"), tables=TABLES, classes=5)
    found = survey(dataclasses.replace(session.survey_order(), sensitivity=24))
    return Evaluator(session, found)


def pruned(evaluator: Evaluator, *steps: QuantizeWeights | QuantizeActivations, ratio: float = 0.5) -> Candidate:
    """Every unit with ``steps``; the first prunable one also loses channels."""
    root = next(iter(evaluator.session.coupling().groups))
    units = evaluator.session.space.units
    return Candidate({u: Choice((*steps, *([PruneChannels(ratio=ratio)] if u == root else []))) for u in units})


def test_candidates_of_one_structure_share_it(evaluator: Evaluator) -> None:
    first, second = pruned(evaluator, QuantizeWeights(bits=8)), pruned(evaluator, QuantizeWeights(step=1.0))
    assert evaluator.structured(first) is evaluator.structured(second)
    assert evaluator.structured(Candidate({})) is evaluator.base
    assert evaluator.structured(pruned(evaluator, ratio=0.25)) is not evaluator.structured(first)


def test_only_the_last_structures_are_kept_and_made_anew_alike(evaluator: Evaluator) -> None:
    candidate = pruned(evaluator, QuantizeWeights(step=0.5))
    before = evaluator.realise(candidate)
    layers = [u for u, unit in evaluator.session.space.units.items() if len(unit.axes.get("rank", ())) > 1]
    for layer in layers[:2]:
        for rank in (0.5, 0.25):
            evaluator.structured(Candidate({layer: Choice((Factorise(rank=rank),))}))
    assert len(evaluator._structures) == STRUCTURES_KEPT
    assert candidate.structure().id not in evaluator._structures
    after = evaluator.realise(candidate)
    assert before.tensors.keys() == after.tensors.keys()
    for name, encoding in before.tensors.items():
        assert torch.equal(encoding.decode(), after.tensors[name].decode()), name


def test_the_file_holds_the_coded_tensors_of_its_structure(evaluator: Evaluator, tmp_path: Path) -> None:
    candidate = pruned(evaluator, QuantizeWeights(step=0.5))
    compressed = evaluator.realise(candidate)
    assert compressed.edits
    size = evaluator.write(compressed, tmp_path / "small.autocomp")
    assert size == (tmp_path / "small.autocomp").stat().st_size
    fresh = artifact.records(compressed)
    assert fresh == evaluator.records(compressed)
    read = read_compressed(tmp_path / "small.autocomp", candidate)
    assert read.edits == compressed.edits
    whole = evaluator.write(
        evaluator.realise(Candidate({u: candidate[u].storage() for u in candidate})), tmp_path / "w"
    )
    assert size < whole


def test_sizes_of_structures_are_predicted(evaluator: Evaluator, tmp_path: Path) -> None:
    rng, counts = np.random.default_rng(0), evaluator.session.space.parameters()
    for _ in range(8):
        candidate = evaluator.session.space.decode({n: int(rng.integers(c)) for n, c in counts.items()})
        size = evaluator.write(evaluator.realise(candidate), tmp_path / "x.autocomp")
        # the whole network is 2 KB: a record's head, a line of the manifest are per cents of it
        assert evaluator.survey.prices.file_bytes(candidate) == pytest.approx(size, rel=0.08), candidate


def test_values_that_only_the_structure_has_get_their_own_ranges(evaluator: Evaluator) -> None:
    units = evaluator.session.space.units
    layer = next(u for u, unit in units.items() if len(unit.axes.get("rank", ())) > 1)
    int8 = (QuantizeWeights(bits=8), QuantizeActivations(calibrator="minmax"))
    steps = {u: Choice((*int8, *([Factorise(rank=0.5)] if u == layer else []))) for u in units}
    candidate = Candidate(steps)
    form = evaluator.structured(candidate)
    assert set(form.layers[layer]) == {f"{layer}.0", f"{layer}.1"}
    assert set(form.executed_layers(candidate)) == set(form.network.layers)
    compressed = evaluator.realise(candidate)
    fresh = set(compressed.activations) - {key for key, _ in evaluator.survey.quantizers}
    assert any(key.startswith(f"{layer}.0:") for key in fresh)
    assert form.executes(compressed, set(form.network.layers)) == dict.fromkeys(form.network.layers, "int8")


def test_fewer_channels_need_no_new_export(evaluator: Evaluator) -> None:
    base = evaluator.base.exporter
    narrow = evaluator.structured(pruned(evaluator, QuantizeWeights(bits=8))).exporter
    assert narrow.skeleton is base.skeleton
    layer = next(u for u, unit in evaluator.session.space.units.items() if len(unit.axes.get("rank", ())) > 1)
    chain = evaluator.structured(Candidate({layer: Choice((Factorise(rank=0.5),))})).exporter
    assert {f"{layer}.0.weight", f"{layer}.1.weight"} <= set(chain.skeleton.tensors.values())


def test_another_process_reads_the_structural_prices(evaluator: Evaluator) -> None:
    session = evaluator.session
    again = load_survey(session.network, session.space, RunFolder(session.run.path).cache)
    assert again.prices.structure.keys() == evaluator.survey.prices.structure.keys() != set()
    for name, prices in evaluator.survey.prices.structure.items():
        assert again.prices.structure[name].choices == prices.choices
        assert list(again.prices.structure[name].kl) == list(prices.kl)
    root = next(iter(session.coupling().groups))
    prune = again.prices.structure[f"{root}:prune"]
    assert list(prune.kl) == sorted(prune.kl)
    assert [float(s) for s in prune.shares[root]] == [1.0, 0.75, 0.5]
