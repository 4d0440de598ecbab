"""What the rules say of a structure, against the network that really is made with it."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from autocomp.core.candidate import Candidate
from autocomp.core.steps import Choice, StepConfig
from autocomp.search.session import Session
from autocomp.search.variants import make_variant
from autocomp.survey.hessians import Hessians
from autocomp.testing.families import make_family
from autocomp.testing.joint import joint_session, raw_candidates
from autocomp.transforms.binarize import BinarizeWeights
from autocomp.transforms.hashing import HashWeights
from autocomp.transforms.low_rank import Factorise
from autocomp.transforms.prune import PruneChannels
from autocomp.transforms.recipe import Recipe
from autocomp.transforms.sparsify import Sparsify


@pytest.fixture(scope="module", params=["densenet", "resnext", "mobilenet_v2"])
def session(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Session:
    model, family = make_family(request.param)
    return joint_session(model, family.inputs(2), tmp_path_factory.mktemp("run"), classes=10)


def one(unit: str, *steps: StepConfig) -> Candidate:
    return Candidate({unit: Choice(steps)})


def rules(session: Session) -> Recipe:
    assert isinstance(session.space.rules, Recipe)
    return session.space.rules


def test_shares_are_those_of_the_network_that_is_made(session: Session) -> None:
    images = torch.cat(list(session.calibration))
    checked = 0
    for candidate in raw_candidates(session.space, 40, seed=1):
        structure = rules(session).legal(candidate.structure())
        if not len(structure) or checked == 3:
            continue
        checked += 1
        variant = make_variant(session, structure, Hessians(session.network, images))
        for unit, names in variant.parts().items():
            before = math.prod(session.network.layers[unit].weight_shape)
            after = sum(math.prod(variant.network.layers[n].weight_shape) for n in names)
            expected = after / before
            assert rules(session).shares(structure).get(unit, 1.0) == pytest.approx(expected), (unit, structure)
            bias = session.network.layers[unit].bias
            if bias is not None:
                left = variant.network.module.get_parameter(variant.network.layers[names[-1]].bias).numel()
                whole = session.network.module.get_parameter(bias).numel()
                assert rules(session).outputs(structure).get(unit, 1.0) == pytest.approx(left / whole)
    assert checked == 3


def test_legal_repairs_and_leaves_legal_ones_alone(session: Session) -> None:
    for candidate in raw_candidates(session.space, 60):
        legal = rules(session).legal(candidate)
        assert rules(session).reason(legal) is None
        assert (legal == candidate) == (rules(session).reason(candidate) is None)
        for unit, choice in legal.items():
            assert set(choice.steps) <= set(candidate[unit].steps)


def test_a_reason_is_the_same_when_asked_again_and_depends_on_what_pruning_leaves(tmp_path: Path) -> None:
    model, family = make_family("resnet")
    session = joint_session(model, family.inputs(2), tmp_path, classes=10)
    recipe = rules(session)
    pattern, pruned = Sparsify(pattern="2:4"), PruneChannels(ratio=0.25, criterion="l2")
    assert recipe.reason(one("layer2.0.conv1", pattern)) is None
    candidate = Candidate({"conv1": Choice((PruneChannels(ratio=0.1),)), "layer2.0.conv1": Choice((pattern,))})
    for _ in range(2):
        assert recipe.reason(candidate) == (
            "layer2.0.conv1: pattern 2:4: 14 input channels a group are no multiple of 4"
        )
        assert recipe.reason(one("layer2.0.conv1", pattern, pruned)) is None
    assert recipe.reason(one("fc", pruned)) == "fc: tied to the network's output: no layer reads these channels"
    assert (
        recipe.reason(one("layer1.0.conv2", pruned)) == "layer1.0.conv2: its channels are removed with another layer's"
    )
    assert recipe.reason(one("nowhere", pruned)) == "nowhere: the network has no such unit"


def test_combinations_that_no_layer_takes(tmp_path: Path) -> None:
    model, family = make_family("resnet")
    recipe = rules(joint_session(model, family.inputs(2), tmp_path, classes=10))
    half = Sparsify(ratio=0.5)
    assert recipe.reason(one("conv1", half, BinarizeWeights())) is None
    assert "keeps no zeros" in str(recipe.reason(one("conv1", half, HashWeights())))
    assert recipe.reason(one("conv1", Factorise(method="svd", rank=0.5), HashWeights())) is None
    assert "all of it" in str(recipe.reason(one("conv1", Factorise(method="svd", rank=0.999))))
    assert "below 1" in str(recipe.reason(one("conv1", Factorise(method="svd", rank=0.001))))
