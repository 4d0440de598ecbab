"""Huffman, bit packing, fixed-width fields, varints: exact round trips, exact sizes, clear refusals."""

from __future__ import annotations

import numpy as np
import pytest

from autocomp.coding.bits import pack, packed_bytes, unpack
from autocomp.coding.coders import bitpack, coder_names, coders, huffman
from autocomp.coding.varint import Reader, put, put_signed
from autocomp.errors import CorruptFileError

RNG = np.random.default_rng(5)
ARRAYS = {
    "peaky": np.rint(RNG.standard_normal((40, 30)) * 0.5).astype(np.int32),
    "flat": RNG.integers(-8, 8, (7, 3, 2)).astype(np.int32),
    "constant": np.full((5, 5), -3, np.int32),
    "two": np.array([0, 1, 1, 0, 1], np.int32),
    "scalar": np.array(12, np.int32),
    "fibonacci": np.repeat(np.arange(24), [int(1.62**k) + 1 for k in range(24)]).astype(np.int32),
    "empty": np.zeros((0, 4), np.int32),
}


@pytest.mark.parametrize("name", ARRAYS)
@pytest.mark.parametrize("coder", [bitpack, huffman])
def test_round_trip_and_exact_size(coder, name):
    symbols = ARRAYS[name]
    payload = coder.encode(symbols)
    assert coder.size(symbols) == len(payload)
    decoded = coder.decode(payload, symbols.shape)
    assert decoded.dtype == np.int32
    assert np.array_equal(decoded, symbols)
    assert decoded.shape == symbols.shape


def test_huffman_is_within_one_bit_of_the_entropy_and_optimal_for_dyadic_counts():
    lengths = huffman.code_lengths(np.array([8, 4, 2, 1, 1]))
    assert lengths.tolist() == [1, 2, 3, 4, 4]


def test_huffman_lengths_are_limited_and_still_a_complete_code():
    lengths = huffman.code_lengths(np.array([int(1.7**k) + 1 for k in range(30)])).astype(np.int64)
    assert lengths.max() <= 15
    assert (2.0**-lengths).sum() <= 1


def test_huffman_spans_pieces(monkeypatch):
    monkeypatch.setattr(huffman, "_PIECE", 64)
    symbols = ARRAYS["peaky"]
    assert np.array_equal(huffman.decode(huffman.encode(symbols), symbols.shape), symbols)


def test_huffman_says_when_the_alphabet_is_too_wide():
    wide = np.array([0, 5000], np.int32)
    assert huffman.size(wide) == -1
    with pytest.raises(ValueError, match="4096"):
        huffman.encode(wide)


@pytest.mark.parametrize("coder", [bitpack, huffman])
def test_truncated_or_lengthened_payloads_are_refused(coder):
    symbols = ARRAYS["flat"]
    payload = coder.encode(symbols)
    for cut in range(len(payload)):
        with pytest.raises(CorruptFileError):
            coder.decode(payload[:cut], symbols.shape)
    with pytest.raises(CorruptFileError):
        coder.decode(payload + b"\0", symbols.shape)


def test_coders_have_distinct_numbers_and_are_found_by_name():
    assert set(coders()) == {"bitpack", "huffman", "range_coder", "relative_index"}
    assert coder_names() == {0: "bitpack", 1: "huffman", 2: "range_coder", 3: "relative_index"}


@pytest.mark.parametrize("width", [0, 1, 3, 8, 11, 18])
def test_pack_is_big_endian_without_gaps(width):
    values = RNG.integers(0, 1 << width, 37).astype(np.int32)
    data = pack(values, width)
    assert len(data) == packed_bytes(37, width)
    assert "".join(f"{b:08b}" for b in data)[: 37 * width] == "".join(f"{v:0{width}b}" for v in values) * (width > 0)
    assert np.array_equal(unpack(data, 37, width), values)


def test_varints():
    for value in (0, 1, 127, 128, 300, 1 << 40):
        assert Reader(put(value), "x").varint(1 << 41) == value
        assert Reader(put_signed(-value), "x").signed(1 << 41) == -value
    with pytest.raises(CorruptFileError, match="larger than 5"):
        Reader(put(6), "x").varint(5)
    with pytest.raises(CorruptFileError):
        Reader(b"\xff" * 30, "x").varint(1 << 60)
