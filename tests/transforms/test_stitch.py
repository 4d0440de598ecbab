"""A candidate from its layers."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from autocomp.core.candidate import Candidate
from autocomp.core.encodings import Encoding, FloatTensor
from autocomp.core.network import Network
from autocomp.core.steps import Choice
from autocomp.graph.trace import build_network
from autocomp.transforms.problem import LayerProblem
from autocomp.transforms.quantize import QuantizeActivations, QuantizeWeights
from autocomp.transforms.stitch import float_encodings, stitch
from autocomp.transforms.weights import compress_layer


class Odd(nn.Module):
    """Buffers of all sorts and a norm that stays."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(4)
        self.body = nn.Linear(4, 4)
        self.head = nn.Linear(4, 2, bias=False)
        self.position = nn.Parameter(torch.randn(1, 4))
        self.register_buffer("table", torch.tensor([1.0, 2.0, 0.5, 4.0]))
        self.register_buffer("precise", torch.tensor([1.0, 1 / 3, 1e-9, 4.0]))
        self.register_buffer("passing", torch.ones(4), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(self.norm(x)).relu() * self.table * self.precise * self.passing + self.position)


@pytest.fixture(scope="module")
def network() -> Network:
    torch.manual_seed(0)
    return build_network(Odd().eval(), torch.randn(2, 4))


def widths(tensors: dict[str, Encoding]) -> dict[str, int]:
    return {k: e.width for k, e in tensors.items() if isinstance(e, FloatTensor)}


def test_every_float_tensor_once_and_by_its_role(network: Network) -> None:
    assert widths(float_encodings(network)) == {
        "norm.weight": 16,
        "norm.bias": 16,
        "norm.running_mean": 16,
        "norm.running_var": 16,
        "body.weight": 32,
        "body.bias": 16,
        "head.weight": 32,
        "position": 32,
        "table": 16,
        "precise": 32,
    }


def test_values_survive(network: Network) -> None:
    for key, encoding in float_encodings(network).items():
        assert torch.allclose(encoding.decode(), network.module.state_dict()[key], rtol=2**-11)


def test_chosen_layers_come_from_the_lookup(network: Network) -> None:
    four = QuantizeWeights(bits=4)
    candidate = Candidate({"body": Choice((four, QuantizeActivations())), "head": Choice((QuantizeActivations(),))})
    asked: list[tuple[str, str]] = []
    made = compress_layer(LayerProblem.of(network, "body"), [Choice((four,))])[0]

    def lookup(unit: str, choice: Choice) -> dict[str, Encoding]:
        asked.append((unit, choice.label()))
        return {"body.weight": made}

    compressed = stitch(network, candidate, lookup)
    assert asked == [("body", "4b")]  # activations are none of its business, float needs no lookup
    assert compressed.tensors["body.weight"] is made
    assert compressed.steps == ("quantize_weights",)
    assert compressed.candidate == candidate
    assert compressed.tensors.keys() == float_encodings(network).keys()


def test_tied_weights_are_stored_once() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Linear(4, 4)
            self.second = nn.Linear(4, 4)
            self.second.weight = self.first.weight

        def forward(self, x: Tensor) -> Tensor:
            return self.second(self.first(x).relu())

    tied = build_network(Tied().eval(), torch.randn(2, 4))
    assert list(float_encodings(tied)) == ["first.weight", "first.bias", "second.bias"]


def test_wrong_lookups(network: Network) -> None:
    candidate = Candidate({"body": Choice((QuantizeWeights(bits=4),))})
    with pytest.raises(ValueError, match="body"):
        stitch(network, candidate, lambda _u, _c: {})
    with pytest.raises(ValueError, match="nowhere"):
        stitch(network, Candidate({"nowhere": Choice((QuantizeWeights(bits=4),))}), lambda _u, _c: {})
