"""Activation ranges."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

import autocomp.transforms.observe as observe
from autocomp.core.candidate import Candidate
from autocomp.core.compressed import ActivationQuantizer
from autocomp.core.encodings import FloatTensor
from autocomp.errors import DataError, UnsupportedError
from autocomp.graph.program import fake_quantize
from autocomp.graph.trace import build_network
from autocomp.transforms.calibrate import BINS, ValueObserver, calibrate_activations, entropy_range, quantizer_for
from autocomp.transforms.quantize import QuantizeActivations
from autocomp.transforms.stitch import stitch

CALIBRATORS = ["minmax", "percentile", "mse", "entropy"]


def observed(
    value: Tensor, calibrator: str, *, symmetric: bool = False, precision: str = "int8"
) -> ActivationQuantizer:
    step = QuantizeActivations(precision=precision, calibrator=calibrator)
    observer = ValueObserver("v", step, symmetric=symmetric)
    observer.see_all(value)
    return observer.quantizer()


def squared(value: Tensor, quantizer: ActivationQuantizer) -> float:
    return float((fake_quantize(value, quantizer) - value).square().mean())


def heavy(signed: bool) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    value = torch.randn(200_000, generator=generator)
    value[:20] *= 30
    return value if signed else value.relu()


@pytest.mark.parametrize("calibrator", CALIBRATORS)
def test_grids(calibrator: str) -> None:
    positive = observed(heavy(False), calibrator)
    assert (positive.zero_point, positive.low, positive.high) == (0, 0, 255)
    signed = observed(heavy(True), calibrator)
    assert 60 < signed.zero_point < 196
    assert (signed.low, signed.high) == (0, 255)
    symmetric = observed(heavy(True), calibrator, symmetric=True)
    assert (symmetric.zero_point, symmetric.low, symmetric.high) == (0, -128, 127)
    for quantizer in (positive, signed, symmetric):
        assert quantizer.scale == float(torch.tensor(quantizer.scale))  # a float32 number
        assert ActivationQuantizer.from_json(quantizer.to_json()) == quantizer
        assert len(str(quantizer.to_json()[0])) <= len("0x1.ffp-10")
        assert float(fake_quantize(torch.zeros(1), quantizer)) == 0.0
    top = 255 * positive.scale
    largest = float(heavy(False).max())
    if calibrator == "minmax":  # all of it, and no more than rounding the scale up to 8 significant bits costs
        assert largest <= top * (1 + 1e-6) <= largest * (1 + 2.0**-7)
    else:
        assert top < largest


@pytest.mark.parametrize("calibrator", ["minmax", "percentile", "mse"])
def test_float8_has_one_scale_and_no_zero_point(calibrator: str) -> None:
    for symmetric in (False, True):
        quantizer = observed(heavy(True), calibrator, symmetric=symmetric, precision="float8")
        assert quantizer == ActivationQuantizer.float8(quantizer.scale)
        assert ActivationQuantizer.from_json(quantizer.to_json()) == quantizer
    largest, top = float(heavy(True).abs().max()), 448 * quantizer.scale
    if calibrator == "minmax":
        assert largest <= top * (1 + 1e-6) <= largest * (1 + 2.0**-7)
    else:
        assert top <= largest * (1 + 2.0**-7)


def test_float8_is_finer_than_int8_where_values_have_a_tail() -> None:
    """8 bits either way: a relative error against one that the largest values set."""
    value = heavy(True)
    assert squared(value, observed(value, "mse", precision="float8")) < squared(value, observed(value, "mse"))


def test_percentile_leaves_out_the_tail() -> None:
    value = torch.linspace(0, 1, 100_000)
    value[-5:] = 50.0  # 0.005 %
    assert 255 * observed(value, "percentile").scale == pytest.approx(1.0, abs=50 / BINS)


@pytest.mark.parametrize("signed", [True, False])
@pytest.mark.parametrize("symmetric", [True, False])
def test_mse_is_the_best_clip_of_all(signed: bool, symmetric: bool) -> None:
    value = heavy(signed)
    got = squared(value, observed(value, "mse", symmetric=symmetric))
    low, high = float(value.min()), float(value.max())
    tried = [
        squared(value, quantizer_for(r * low, r * high, symmetric=symmetric))
        for r in torch.linspace(0.05, 1, 60).tolist()
    ]
    assert got <= 1.05 * min(tried)


def test_entropy_equals_the_plain_algorithm() -> None:
    """Migacz 2017, written with loops, for a value that is never negative."""
    histogram = torch.histc(heavy(False), BINS, 0, float(heavy(False).max())).double()
    counts = histogram.clone()
    counts[0] = counts[1]
    best, least = 0, float("inf")
    for size in range(256, BINS + 1, 16):
        inside = counts[:size].tolist()
        p = list(inside)
        p[-1] += float(counts[size:].sum())
        levels: list[list[int]] = [[] for _ in range(256)]
        for i in range(size):
            levels[i * 256 // size].append(i)
        q = [0.0] * size
        for members in levels:
            filled = [i for i in members if inside[i] > 0]
            for i in filled:
                q[i] = sum(inside[j] for j in members) / len(filled)
        total_p, total_q = sum(p), sum(q)
        divergence = sum(
            a / total_p * math.log(a / total_p / max(b / total_q, 1e-9)) for a, b in zip(p, q, strict=True) if a > 0
        )
        if divergence <= least + 1e-12:
            best, least = size, divergence
    high = float(heavy(False).max())
    assert entropy_range(histogram, 0.0, high, 256)[1] == pytest.approx(high * best / BINS)


@pytest.mark.parametrize("calibrator", CALIBRATORS)
@pytest.mark.parametrize(
    "value", [torch.zeros(9), torch.full((9,), 3.0), torch.full((9,), -3.0), torch.full((9,), 1e-38)]
)
def test_degenerate_values(calibrator: str, value: Tensor) -> None:
    for symmetric in (True, False):
        quantizer = observed(value, calibrator, symmetric=symmetric)
        assert quantizer.scale > 0
        assert quantizer.low <= quantizer.zero_point <= quantizer.high
        assert torch.allclose(fake_quantize(value, quantizer), value, rtol=0.02, atol=1e-6)


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.head = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.conv(x).relu().mean((2, 3)))


def test_values_of_a_network(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    network = build_network(Model().eval(), torch.randn(2, 3, 8, 8))
    images = torch.randn(32, 3, 8, 8)
    for calibrator in CALIBRATORS:
        values = dict.fromkeys(network.values, QuantizeActivations(calibrator=calibrator))
        found = calibrate_activations(network, values, [images[:20], images[20:]])
        assert list(found) == list(values)
        for key, quantizer in found.items():
            if network.values[key].nonnegative:
                assert quantizer.zero_point == 0
        monkeypatch.setattr(observe, "_PASS_BYTES", 8 * 16 * 3 * 64)
        chunked = calibrate_activations(network, values, [images])
        for key, quantizer in found.items():  # a float32 sum may fall into the next bin
            assert chunked[key].scale == pytest.approx(quantizer.scale, rel=0.02)
            assert abs(chunked[key].zero_point - quantizer.zero_point) <= 2
        monkeypatch.undo()
    span = found["input"].scale * 255
    assert span <= float(images.max() - images.min()) * (1 + 2.0**-7)
    compressed = stitch(network, Candidate({}), lambda _u, _c: {})
    doubled = FloatTensor(values=2 * network.module.get_parameter("conv.weight").detach())
    tensors = {**compressed.tensors, "conv.weight": doubled}
    key = network.layers["conv"].output_value
    assert key is not None
    one, two = (
        calibrate_activations(network, {key: QuantizeActivations(calibrator="minmax")}, [images], compressed=c)[
            key
        ].scale
        for c in (None, compressed.replace(tensors=tensors))
    )
    assert two > 1.5 * one


def test_bad_values() -> None:
    network = build_network(Model().eval(), torch.randn(2, 3, 8, 8))
    with pytest.raises(DataError, match="input"):
        calibrate_activations(network, {"input": QuantizeActivations()}, [torch.full((2, 3, 8, 8), float("nan"))])
    with pytest.raises(DataError, match="at least one"):
        calibrate_activations(network, {"input": QuantizeActivations()}, [])
    assert calibrate_activations(network, {}, []) == {}


def test_without_a_graph() -> None:
    class Branching(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(3, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(x) if float(x.sum()) > 0 else self.head(-x)

    network = build_network(Branching().eval(), torch.ones(2, 3))
    assert network.graph is None
    with pytest.raises(UnsupportedError, match="graph"):
        calibrate_activations(network, {"input": QuantizeActivations()}, [torch.ones(2, 3)])
