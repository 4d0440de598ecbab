"""The range coder against a slow decoder written from the format's description, and its sizes against entropy."""

from __future__ import annotations

from contextlib import suppress

import numpy as np
import pytest
import slow_decoder
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from autocomp.coding.coders import range_coder
from autocomp.coding.contexts import Counts
from autocomp.errors import CorruptFileError


def laplace(shape, step, seed=0):
    """Rounded Laplace weights."""
    weights = np.random.default_rng(seed).laplace(size=shape)
    return np.rint(weights / weights.std() / step).astype(np.int32)


def smooth(shape, step, seed=0):
    """Rounded kernels whose neighbouring taps resemble each other."""
    weights = np.random.default_rng(seed).standard_normal(shape)
    weights = weights + np.roll(weights, 1, -1) + np.roll(weights, 1, -2)
    return np.rint(weights / weights.std() / step).astype(np.int32)


def entropy_bytes(symbols):
    """Ideal static code of one histogram, table not counted."""
    counts = np.unique(symbols, return_counts=True)[1]
    return float(-(counts * np.log2(counts / counts.sum())).sum()) / 8


CASES = {
    "kernel": smooth((12, 5, 3, 3), 0.5),
    "wide kernel": smooth((4, 2, 5, 7), 0.8),
    "depthwise": laplace((40, 1, 3, 3), 1.0),
    "matrix in runs": laplace((9, 128), 0.7),
    "odd matrix": laplace((10, 33), 1.5),
    "vector": laplace((300,), 0.3),
    "scalar": np.array(7, np.int32),
    "1d convolution": smooth((6, 4, 3), 0.6),
    "3d convolution": smooth((4, 3, 2, 3, 3), 0.6),
    "constant": np.full((6, 4, 3, 3), 0, np.int32),
    "centre": laplace((8, 40), 1.0) + 900,
    "low bits": laplace((8, 40), 0.01),
    "excess": np.where(np.arange(900) % 700 == 5, -3000, laplace((900,), 1.0)).astype(np.int32),
    "int16 range": np.random.default_rng(3).integers(-32768, 32768, (5, 70)).astype(np.int32),
    "symbol limit": np.array([-(1 << 17), 1 << 17, 0, 0], np.int32),
    "more taps than the model follows": laplace((1, 1, 1030), 1.0),
}


@pytest.mark.parametrize("name", CASES)
def test_round_trip_and_the_slow_decoder_agree(name):
    symbols = CASES[name]
    payload = range_coder.encode(symbols)
    decoded = range_coder.decode(payload, symbols.shape)
    assert decoded.dtype == np.int32
    assert decoded.shape == symbols.shape
    assert np.array_equal(decoded, symbols)
    assert slow_decoder.decode(payload, symbols.shape) == symbols.reshape(-1).tolist()


@pytest.mark.parametrize("name", ["kernel", "matrix in runs", "excess"])
def test_tables_a_symbol_and_models_a_run_give_the_same_bytes(name, monkeypatch):
    payloads = []
    for run in (0, 1 << 30):
        monkeypatch.setattr(range_coder, "_SHORT_RUN", run)
        payloads.append(range_coder.encode(CASES[name]))
        assert np.array_equal(range_coder.decode(payloads[0], CASES[name].shape), CASES[name])
    assert payloads[0] == payloads[1]


@given(arrays.arrays(np.int16, arrays.array_shapes(max_dims=4, min_side=0, max_side=9)), st.integers(0, 15))
def test_any_array_comes_back(symbols, shift):
    symbols = (symbols >> shift).astype(np.int32)
    assert np.array_equal(range_coder.decode(range_coder.encode(symbols), symbols.shape), symbols)


def test_counts_are_halved_alike_in_both_decoders(monkeypatch):
    monkeypatch.setattr(Counts, "HALVE_AT", 64)
    monkeypatch.setattr(slow_decoder, "HALVE_AT", 64)
    symbols = CASES["kernel"]
    payload = range_coder.encode(symbols)
    assert np.array_equal(range_coder.decode(payload, symbols.shape), symbols)
    assert slow_decoder.decode(payload, symbols.shape) == symbols.reshape(-1).tolist()


@pytest.mark.parametrize("step", [0.3, 0.7, 1.5])
def test_varying_input_channels_are_coded_below_the_static_entropy(step):
    rng = np.random.default_rng(0)
    weights = rng.standard_normal((64, 64, 3, 3)) * np.exp(0.4 * rng.standard_normal((1, 64, 1, 1)))
    symbols = np.rint(weights / weights.std() / step).astype(np.int32)
    assert len(range_coder.encode(symbols)) < 0.98 * entropy_bytes(symbols)


@pytest.mark.parametrize("step", [0.3, 0.7, 1.5, 3.0])
def test_independent_symbols_cost_little_more_than_the_static_entropy(step):
    symbols = laplace((64, 64, 3, 3), step)
    assert len(range_coder.encode(symbols)) < 1.015 * entropy_bytes(symbols) + 40


def test_small_tensors_are_not_dominated_by_overhead():
    symbols = laplace((500,), 0.7)
    assert len(range_coder.encode(symbols)) < 1.08 * entropy_bytes(symbols) + 8


def test_resembling_taps_are_exploited():
    symbols = smooth((64, 64, 3, 3), 0.7)
    assert len(range_coder.encode(symbols)) < 0.97 * entropy_bytes(symbols)


def test_one_large_symbol_does_not_widen_the_alphabet():
    symbols = laplace((5000,), 1.5)
    outlier = symbols.copy()
    outlier[17] = 30000
    assert len(range_coder.encode(outlier)) - len(range_coder.encode(symbols)) < 40


def test_equal_symbols_give_equal_bytes():
    symbols = laplace((32, 32, 3, 3), 0.5)
    assert range_coder.encode(symbols) == range_coder.encode(symbols.copy())


def test_empty():
    assert range_coder.encode(np.zeros((3, 0), np.int32)) == b""
    assert range_coder.decode(b"", (3, 0)).shape == (3, 0)


@pytest.mark.parametrize("at", range(4))
def test_damaged_headers_are_refused_or_decode_to_something(at):
    payload = bytearray(range_coder.encode(CASES["kernel"]))
    for value in range(0, 256, 3):
        payload[at] = value
        try:
            decoded = range_coder.decode(bytes(payload), (12, 5, 3, 3))
        except CorruptFileError:
            continue
        assert decoded.shape == (12, 5, 3, 3)


def test_truncated_and_lengthened_words_are_refused_or_decode_to_something():
    payload = range_coder.encode(CASES["kernel"])
    for cut in range(0, len(payload), 7):
        with suppress(CorruptFileError):
            range_coder.decode(payload[:cut], (12, 5, 3, 3))
    with pytest.raises(CorruptFileError, match="multiple of 4"):
        range_coder.decode(payload + b"x", (12, 5, 3, 3))
    with pytest.raises(CorruptFileError, match="left over"):
        range_coder.decode(payload + bytes(range(1, 9)), (12, 5, 3, 3))


def test_a_constant_costs_enough_that_bytes_bound_symbols():
    symbols = np.zeros(1 << 20, np.int32)
    assert symbols.size < 65536 * len(range_coder.encode(symbols))
