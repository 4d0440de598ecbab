"""Whatever goes in comes out: any integers, any shape, any float bits, any damage."""

from __future__ import annotations

from contextlib import suppress

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from autocomp.coding.arrays import decode_float32, decode_integers, encode_float32, encode_integers
from autocomp.coding.coders import coders
from autocomp.coding.container import overhead_bytes, pack_artifact, unpack_artifact
from autocomp.coding.tensors import decode_tensor, encode_tensor
from autocomp.core.encodings import FloatTensor, QuantizedTensor
from autocomp.errors import CorruptFileError

shapes = hnp.array_shapes(min_dims=0, max_dims=5, min_side=0, max_side=7)
symbols = hnp.arrays(
    np.int32, shapes, elements=st.one_of(st.integers(-2, 2), st.integers(-40, 40), st.integers(-(1 << 17), 1 << 17))
)


@settings(max_examples=60, deadline=None)
@given(symbols, st.sampled_from(sorted(coders())))
def test_coders_round_trip(array, name):
    coder = coders()[name]
    size = coder.size(array)
    if size == -1:
        return
    data = coder.encode(array)
    assert size is None or size == len(data)
    decoded = coder.decode(data, array.shape)
    assert np.array_equal(decoded, array)
    assert decoded.shape == array.shape


@settings(max_examples=40, deadline=None)
@given(symbols)
def test_the_smallest_coder_is_kept(array):
    data = encode_integers(array)
    assert np.array_equal(decode_integers(data, array.shape), array)
    sizes = [c.size(array) for c in coders().values()]
    assert len(data) - 1 <= min(s for s in sizes if s is not None and s >= 0)


@settings(max_examples=60, deadline=None)
@given(hnp.arrays(np.uint32, shapes, elements=st.integers(0, (1 << 32) - 1)))
def test_any_float_bits_come_back(bits):
    values = bits.view(np.float32)
    assert np.array_equal(decode_float32(encode_float32(values), values.shape).view(np.uint32), bits)


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_records_round_trip(data):
    shape = data.draw(hnp.array_shapes(min_dims=1, max_dims=4, max_side=6))
    axis = data.draw(st.integers(0, min(1, len(shape) - 1)))
    channels = data.draw(st.sampled_from([1, shape[axis]]))
    array = data.draw(hnp.arrays(np.int16, shape, elements=st.integers(-32768, 32767)))
    zero = data.draw(st.none() | hnp.arrays(np.int16, channels, elements=st.integers(-32768, 32767)))
    scale = data.draw(hnp.arrays(np.float32, channels, elements=st.floats(width=32)))
    encoding = QuantizedTensor(
        symbols=torch.from_numpy(array),
        scale=torch.from_numpy(scale),
        zero_point=None if zero is None else torch.from_numpy(zero),
        axis=axis,
        bits=data.draw(st.none() | st.integers(1, 16)),
    )
    decoded = decode_tensor(encode_tensor(encoding))
    assert isinstance(decoded, QuantizedTensor)
    assert torch.equal(decoded.symbols, encoding.symbols)
    assert np.array_equal(decoded.scale.numpy().view(np.uint32), scale.view(np.uint32))
    assert (decoded.axis, decoded.bits) == (encoding.axis, encoding.bits)
    assert (zero is None and decoded.zero_point is None) or np.array_equal(decoded.zero_point.numpy(), zero)


FILE = pack_artifact(
    {"model": "x", "list": [1, 2, 3]},
    {
        "a.weight": encode_tensor(QuantizedTensor(symbols=torch.arange(-40, 41).short() // 9, scale=torch.ones(1))),
        "a.bias": encode_tensor(FloatTensor.half(torch.arange(9.0))),
    },
)


@settings(max_examples=300, deadline=None)
@given(st.integers(0, len(FILE) - 1), st.integers(1, 255))
def test_any_flipped_byte_is_a_corrupt_file_error(at, flip):
    damaged = bytearray(FILE)
    damaged[at] ^= flip
    with pytest.raises(CorruptFileError):
        unpack_artifact(bytes(damaged))


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=200))
def test_any_bytes_are_a_record_or_a_corrupt_file_error(data):
    with suppress(CorruptFileError):
        decode_tensor(data[:1] + b"\x02\x03\x04" + data[1:])


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
unicode_text = st.text(st.characters(codec="utf-8"), max_size=12)


@settings(max_examples=60, deadline=None)
@given(st.dictionaries(st.text(), json_values, max_size=4), st.dictionaries(unicode_text, st.binary(), max_size=6))
def test_containers_round_trip_and_their_size_is_known(manifest, records):
    try:
        data = pack_artifact(manifest, records)
    except UnicodeEncodeError:  # lone surrogates are no text
        return
    artifact = unpack_artifact(data)
    assert artifact.manifest == manifest
    assert list(artifact.records.items()) == list(records.items())
    lengths = [len(r) for r in records.values()]
    assert len(data) == overhead_bytes(manifest, list(records), lengths) + sum(lengths)
