"""Random joint candidates: legal or refused with a reason, and whatever is legal can be built."""

from __future__ import annotations

import itertools
import json
from collections import Counter
from pathlib import Path

import pytest
import torch

from autocomp.search.session import Session
from autocomp.testing.coverage import check_candidates
from autocomp.testing.families import make_family, settle
from autocomp.testing.joint import JOINT, joint_session, raw_candidates
from autocomp.workloads.models.cifar_resnet import resnet20

MANY = 10_000
BUILT = 100
RESULTS = Path(__file__).parents[2] / "benchmarks" / "results" / "candidates.json"


@pytest.fixture(scope="module", params=["resnet20", "mobilenet_v2"])
def session(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Session:
    torch.manual_seed(0)
    inputs = torch.randn(4, 3, 32, 32)
    if request.param == "resnet20":
        model = resnet20(10)
        with torch.no_grad():
            settle(model, torch.randn(16, 3, 32, 32))
        model.eval()
    else:
        model, _ = make_family("mobilenet_v2")
    return joint_session(model, inputs, tmp_path_factory.mktemp(request.param), tables=JOINT, classes=10)


def test_every_candidate_is_legal_or_refused_with_a_reason(session: Session) -> None:
    assert session.space.rules is not None
    reasons: Counter[str | None] = Counter()
    for candidate in raw_candidates(session.space, MANY // 2):
        reasons[session.space.rules.reason(candidate)] += 1
    assert reasons[None] > MANY // 20
    refused = [reason for reason in reasons if reason is not None]
    assert refused
    assert all(reason.partition(": ")[0] in session.space.units for reason in refused)
    assert all("\n" not in reason and len(reason) < 200 for reason in refused)


@pytest.mark.slow
def test_what_is_legal_is_built_run_and_written(session: Session, request: pytest.FixtureRequest) -> None:
    """100 on each of the two networks: ``pytest tests/coverage/test_candidates.py -m slow``."""
    rules = session.space.rules
    assert rules is not None
    legal = (c for c in raw_candidates(session.space, MANY, seed=3) if rules.reason(c) is None)
    done = check_candidates(session, list(itertools.islice(legal, BUILT)), export=False)
    name = "resnet20" if len(session.network.layers) == 20 else "mobilenet_v2"
    found = json.loads(RESULTS.read_text()) if RESULTS.is_file() else {}
    found[name] = {"drawn": BUILT, "built": done.built, "techniques": done.techniques, "failures": done.failures}
    RESULTS.write_text(json.dumps(found, indent=1))
    assert done.failures == ()
    assert done.built == BUILT
