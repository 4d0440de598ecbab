"""Candidates, choices, outcomes, rows: canonical forms and round trips."""

from __future__ import annotations

import json

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from autocomp.core.candidate import Candidate
from autocomp.core.encodings import QuantizedTensor, round_half
from autocomp.core.outcome import Completed, Failed, Measurement, Outcome, Stopped, outcome_from_json
from autocomp.core.row import Row
from autocomp.core.space import SearchSpace, Unit
from autocomp.core.steps import FLOAT, Choice, StepConfig
from autocomp.errors import ConfigError, UnknownNameError
from autocomp.transforms.quantize import QuantizeActivations, QuantizeWeights

weights = st.one_of(
    st.builds(QuantizeWeights, bits=st.sampled_from([2, 3, 4, 8, 16]), scale=st.sampled_from(["mse", "max"])),
    st.builds(QuantizeWeights, step=st.floats(0.01, 8), granularity=st.sampled_from(["channel", "tensor"])),
)
choices = st.builds(
    lambda w, a: Choice(tuple(s for s in (w, a) if s is not None)),
    st.one_of(st.none(), weights),
    st.one_of(st.none(), st.just(QuantizeActivations())),
)


@given(st.dictionaries(st.sampled_from(["a", "b.c", "d"]), choices))
def test_candidate_round_trip_and_id(mapping: dict[str, Choice]) -> None:
    candidate = Candidate(mapping)
    again = Candidate.from_json(json.loads(json.dumps(candidate.to_json())))
    assert again == candidate
    assert again.id == candidate.id
    assert candidate == Candidate(dict(reversed(mapping.items())))
    assert all(candidate[u] == mapping.get(u, FLOAT) for u in ("a", "b.c", "d"))


def test_naming_a_float_unit_changes_nothing() -> None:
    assert Candidate({"a": FLOAT}).id == Candidate({}).id


def test_steps_are_put_in_recipe_order_and_axes_are_exclusive() -> None:
    w, a = QuantizeWeights(bits=4), QuantizeActivations()
    assert Choice((a, w)).steps == (w, a)
    with pytest.raises(ValueError, match="two steps on one axis"):
        Choice((w, QuantizeWeights(bits=2)))


def test_bad_steps_say_value_and_limit() -> None:
    with pytest.raises(ConfigError, match="bits = 9; allowed 2 to 8 and 16"):
        QuantizeWeights(bits=9)
    with pytest.raises(ConfigError, match="either bits or step"):
        QuantizeWeights()
    with pytest.raises(UnknownNameError, match="quantize_weights"):
        StepConfig.from_json({"kind": "quantise_weights"})


@pytest.mark.parametrize(
    "outcome",
    [
        Completed(file_bytes=3, kl=0.5, score=0.9, latency=Measurement(samples_s=(1.0, 2.0)), notes=("n",)),
        Completed(file_bytes=3, kl=0.5, score=0.9),
        Failed(stage="build", kind="ValueError", message="m", traceback="t"),
        Stopped(reason="over-budget"),
    ],
)
def test_outcome_round_trip(outcome: Outcome) -> None:
    assert outcome_from_json(json.loads(json.dumps(outcome.to_json()))) == outcome


def test_row_round_trip() -> None:
    row = Row(name="x", file_bytes=1, score_search=0.5, kl_search=0.1, latency_ms_ci95=(1.0, 2.0), techniques=("a",))
    assert Row.from_json(json.loads(json.dumps(row.to_json()))) == row


@given(st.lists(st.floats(-1e30, 1e30, allow_subnormal=False), min_size=1, max_size=20))
def test_round_half_is_idempotent_and_close(values: list[float]) -> None:
    tensor = torch.tensor(values, dtype=torch.float32)
    once = round_half(tensor)
    assert torch.equal(round_half(once), once)
    # float16 has 11 significant bits; values 2**-15 below the largest lose theirs one by one
    assert bool(((once - tensor).abs() <= tensor.abs() * 2**-11 + tensor.abs().max() * 2**-38).all())


def test_quantized_tensor_decodes_by_one_multiplication() -> None:
    encoding = QuantizedTensor(
        symbols=torch.tensor([[1, -2], [3, 4]], dtype=torch.int16),
        scale=torch.tensor([0.5, 0.25]),
        zero_point=torch.tensor([1, 0], dtype=torch.int16),
    )
    assert encoding.decode().tolist() == [[0.0, -1.5], [0.75, 1.0]]
    assert encoding.with_gain(torch.tensor([2.0, 4.0])).decode().tolist() == [[0.0, -3.0], [3.0, 4.0]]


def test_space_decodes_and_encodes() -> None:
    space = SearchSpace(
        name="s",
        units={
            "a": Unit(
                name="a",
                layers=("a",),
                axes={
                    "weights": (None, QuantizeWeights(bits=8), QuantizeWeights(bits=4)),
                    "activations": (None, QuantizeActivations()),
                },
            ),
            "b": Unit(name="b", layers=("b",), axes={"weights": (QuantizeWeights(bits=8),)}),
        },
    )
    assert space.parameters() == {"a:weights": 3, "a:activations": 2}
    candidate = space.decode({"a:weights": 2, "a:activations": 1})
    assert candidate["a"].label() == "4b+int8"
    assert candidate["b"].label() == "8b"
    assert space.encode(candidate) == {"a:weights": 2, "a:activations": 1}
    assert candidate in space
    assert Candidate({"z": Choice((QuantizeWeights(bits=8),))}) not in space
    assert Candidate({}) not in space  # b has no float option
    assert len(space.units["a"].choices()) == 6
