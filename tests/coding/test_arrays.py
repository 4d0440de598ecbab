"""Float arrays: every bit pattern comes back, and few or coarse values are short."""

from __future__ import annotations

from contextlib import suppress

import numpy as np
import pytest
import slow_decoder
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from autocomp.coding.arrays import decode_float16, decode_float32, encode_float16, encode_float32
from autocomp.errors import CorruptFileError


def halves(values, bits=11):
    """float32 ``values`` rounded to ``bits`` significant bits, as float16 holds them."""
    mantissa, exponent = np.frexp(np.asarray(values, np.float32))
    return np.ldexp(np.rint(mantissa * 2**bits) / 2**bits, exponent).astype(np.float16).astype(np.float32)


def scales(count, seed=0):
    return halves(np.exp(0.4 * np.random.default_rng(seed).standard_normal(count)) * 0.06)


@given(arrays.arrays(np.uint32, arrays.array_shapes(min_dims=1, max_dims=2, min_side=0, max_side=40)))
def test_float32_bits_come_back(bits):
    values = bits.view(np.float32)
    assert np.array_equal(decode_float32(encode_float32(values), values.shape).view(np.uint32), bits)


@given(arrays.arrays(np.uint16, st.integers(0, 60), elements=st.integers(0, 0xFFFF)), st.integers(0, 10))
def test_float16_bits_come_back(bits, dropped):
    words = (bits >> dropped) << dropped
    values = words.view(np.float16).astype(np.float32)
    values[~np.isfinite(values)] = -1.5
    data = encode_float16(values)
    if data is not None:  # values far below the largest may be no halves under the shared exponent
        assert np.array_equal(decode_float16(data, values.shape).view(np.uint32), values.view(np.uint32))


@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("count", [1, 5, 16, 64, 300])
def test_a_few_scales_take_less_than_13_bits_and_their_signs(count, signed):
    values = scales(count) * np.where(signed & (np.arange(count) % 3 == 0), -1, 1).astype(np.float32)
    data = encode_float16(values)
    assert len(data) <= (13 + signed) * count / 8 + 5
    assert np.array_equal(decode_float16(data, (count,)), values)


def test_bits_that_no_value_uses_are_not_stored():
    coarse = halves(scales(64), bits=7)
    assert len(encode_float16(coarse)) <= len(encode_float16(scales(64))) - 4 * 64 // 8 + 1


def test_scales_that_hardly_differ_take_few_bits():
    close = halves(0.055 + 0.001 * np.random.default_rng(1).standard_normal(64), bits=8)
    data = encode_float16(close)
    assert 3 < data[1] <= 13, "integers without the low bits that no value uses"
    assert len(data) <= 5 * 64 // 8 + 4
    assert np.array_equal(decode_float16(data, (64,)), close)


@pytest.mark.parametrize(("spread", "bits", "signed"), [(0.02, 8, False), (0.4, 11, False), (1.5, 11, True)])
def test_the_slow_decoder_reads_the_same_words(spread, bits, signed):
    rng = np.random.default_rng(2)
    values = halves(np.exp(spread * rng.standard_normal(40)) * 0.06, bits)
    values *= np.where(signed & (rng.random(40) < 0.5), -1, 1).astype(np.float32)
    data = encode_float16(values)
    exponent, words = slow_decoder.halves(data, 40)
    found = np.array(words, np.uint16).view(np.float16).astype(np.float32) * np.float32(2.0**exponent)
    assert np.array_equal(found, values)


@pytest.mark.parametrize("bits", [7, 11])
def test_damaged_split_floats_are_refused_or_other_values(bits):
    data = encode_float16(-halves(scales(20), bits))
    assert data[1] & 16, "the split form is the smallest here"
    for cut in range(2, len(data)):
        with pytest.raises(CorruptFileError):
            decode_float16(data[:cut], (20,))
    with pytest.raises(CorruptFileError):
        decode_float16(data + b"\0", (20,))
    for value in range(256):
        for at in (1, 2):
            damaged = bytearray(data)
            damaged[at] = value
            with suppress(CorruptFileError):
                assert decode_float16(bytes(damaged), (20,)).shape == (20,)
