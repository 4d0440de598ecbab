"""Relative indices: the paper's figure, exact round trips and sizes, agreement with a plain reader, refusals."""

from __future__ import annotations

from contextlib import suppress

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from slow_decoder import Bytes

from autocomp.coding.arrays import coder_name, decode_integers, encode_integers
from autocomp.coding.coders import bitpack, huffman, relative_index
from autocomp.errors import CorruptFileError


def sparse(shape, share, seed=0, spread=3.0):
    """Integers of which ``share`` are not zero."""
    rng = np.random.default_rng(seed)
    values = np.rint(rng.standard_normal(shape) * spread)
    return np.where(rng.random(shape) < share, values, 0).astype(np.int32)


def plain_decode(data, shape):
    """docs/format.md read with plain integers; the streams inside are those of other tests."""
    reader, count = Bytes(data), int(np.prod(shape))
    background, many = reader.signed(), reader.varint()
    out = []
    if many:
        flags = reader.byte()
        size = reader.varint()
        parts = data[reader.at : reader.at + size], data[reader.at + size :]
        gaps = (huffman if flags & 16 else bitpack).decode(parts[0], (many,)).tolist()
        values = (huffman if flags & 32 else bitpack).decode(parts[1], (many,)).tolist()
        for gap, value in zip(gaps, values, strict=True):
            out += [background] * gap + [value]
    return out + [background] * (count - len(out))


def test_figure_2_of_the_paper():
    """Nonzeros at 1, 4 and 15, gaps in 3 bits: the paper pads at place 12, eight behind the last."""
    symbols = np.zeros(16, np.int32)
    symbols[[1, 4, 15]] = 34, 9, 17
    gaps, values = relative_index.entries(symbols, 3)
    assert gaps.tolist() == [1, 2, 7, 2]
    assert values.tolist() == [34, 9, 0, 17]


@settings(max_examples=80, deadline=None)
@given(
    hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=9),
    st.floats(0, 0.6),
    st.integers(0, 99),
    st.sampled_from([0.6, 3.0, 2000.0]),
    st.integers(-300, 300),
)
def test_round_trip_size_and_plain_reader(shape, share, seed, spread, offset):
    symbols = sparse(shape, share, seed, spread) + np.int32(offset)
    size = relative_index.size(symbols)
    if size == -1:
        with pytest.raises(ValueError, match="relative index"):
            relative_index.encode(symbols)
        return
    data = relative_index.encode(symbols)
    assert len(data) == size
    assert np.array_equal(relative_index.decode(data, shape), symbols)
    assert relative_index.decode(data, shape).shape == shape
    assert not symbols.size or plain_decode(data, shape) == symbols.reshape(-1).tolist()


@pytest.mark.parametrize("share", [0.001, 0.02, 0.1, 0.4])
def test_no_other_number_of_gap_bits_is_smaller(share):
    symbols = sparse((120, 250), share)
    size = relative_index.size(symbols)
    for bits in range(1, 9):
        streams = relative_index.entries(symbols, bits)
        assert size - 12 <= sum(min(bitpack.size(s), huffman.size(s)) for s in streams)


def test_a_tenth_kept_takes_little_more_than_the_entropy():
    symbols = sparse((300, 784), 0.1, spread=8.0)
    share = np.bincount(symbols.reshape(-1) - symbols.min()) / symbols.size
    entropy = -(share[share > 0] * np.log2(share[share > 0])).sum() * symbols.size / 8
    assert entropy < relative_index.size(symbols) < 1.05 * entropy


def test_small_sparse_arrays_are_stored_so():
    symbols = sparse((30, 30), 0.03, spread=30.0)
    data = encode_integers(symbols)
    assert coder_name(data) == "relative_index"
    assert np.array_equal(decode_integers(data, symbols.shape), symbols)


def test_dense_and_huge_arrays_are_left_to_other_coders():
    assert relative_index.size(np.array([0, 0, 1, 2, 3], np.int32)) == -1
    assert relative_index.size(np.zeros(relative_index.MAX_SYMBOLS + 1, np.int32)) == -1
    with pytest.raises(CorruptFileError, match="at most"):
        relative_index.decode(b"\0\0", (relative_index.MAX_SYMBOLS + 1,))


@pytest.mark.parametrize("share", [0.0, 0.03, 0.3])
def test_damaged_payloads_are_refused_or_other_values(share):
    symbols = sparse((20, 30), share)
    data = relative_index.encode(symbols)
    for cut in range(len(data)):
        with pytest.raises(CorruptFileError):
            relative_index.decode(data[:cut], symbols.shape)
    with pytest.raises(CorruptFileError):
        relative_index.decode(data + b"\0", symbols.shape)
    for at in range(len(data)):
        for change in (1, 16, 128, 255):
            damaged = data[:at] + bytes([data[at] ^ change]) + data[at + 1 :]
            with suppress(CorruptFileError):
                assert relative_index.decode(damaged, symbols.shape).shape == symbols.shape


def test_gaps_beyond_the_array_are_refused():
    data = relative_index.encode(sparse((20, 30), 0.1))
    with pytest.raises(CorruptFileError, match="beyond"):
        relative_index.decode(data, (20, 20))
