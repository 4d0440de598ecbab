"""Records of sparse floats, codebooks, hashes and DCTs: exact round trips, sizes, and hostile bytes."""

from __future__ import annotations

import math
from contextlib import suppress

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from autocomp.coding.parts import FREE_ELEMENTS, Parts
from autocomp.coding.tensors import decode_tensor, describe, elements, encode_tensor, with_scale
from autocomp.core.encodings import CodebookTensor, DctTensor, Float8Tensor, FloatTensor, HashedTensor, round_half
from autocomp.errors import CorruptFileError


def bits(tensor):
    return tensor.numpy().view(np.uint32)


def same(a, b):
    """Bit-identical encodings."""
    assert type(a) is type(b)
    for name, value in vars(a).items():
        other = getattr(b, name)
        if isinstance(value, torch.Tensor):
            assert value.shape == other.shape
            assert value.dtype == other.dtype
            as_bits = bits if value.dtype == torch.float32 else torch.Tensor.numpy
            assert np.array_equal(as_bits(value), as_bits(other))
        else:
            assert value == other


def indices(shape, entries, seed=0):
    return torch.randint(entries, shape, generator=torch.Generator().manual_seed(seed)).to(torch.int16)


def normal(*shape, seed=1):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def sparse(shape, zeros, seed=2):
    kept = torch.rand(shape, generator=torch.Generator().manual_seed(seed)) >= zeros
    return torch.where(kept, normal(*shape), 0.0)


ENCODINGS = {
    "codebook": CodebookTensor(
        symbols=indices((8, 4, 3, 3), 16),
        codebook=round_half(normal(1, 16, 1).sort(1).values),
        scale=torch.ones(1),
        shape=(8, 4, 3, 3),
    ),
    "codebooks of groups": CodebookTensor(
        symbols=indices((8, 20), 4), codebook=normal(4, 4, 1), scale=round_half(normal(8).abs()), shape=(8, 20)
    ),
    "codebook, axis 1": CodebookTensor(
        symbols=indices((5, 6, 2), 3), codebook=normal(2, 3, 1), scale=torch.ones(6), shape=(5, 6, 2), axis=1
    ),
    "vectors": CodebookTensor(
        symbols=indices((6, 4), 7), codebook=normal(1, 7, 9), scale=torch.ones(6), shape=(6, 4, 3, 3)
    ),
    "vectors, axis 1": CodebookTensor(
        symbols=indices((3, 10), 7), codebook=normal(1, 7, 2), scale=torch.ones(1), shape=(5, 3, 4), axis=1
    ),
    "hashed": HashedTensor(values=round_half(normal(30)), scale=torch.ones(8), shape=(8, 4, 3, 3), seed=2**32 - 1),
    "hashed raw": HashedTensor(values=normal(3), scale=torch.tensor([1 / 3]), shape=(7,), axis=0),
    "hashed zeros": HashedTensor(values=torch.zeros(1000), scale=torch.ones(1), shape=(100, 20)),
    "dct": DctTensor(symbols=indices((6, 4, 3, 3), 9) - 4, scale=round_half(normal(6).abs())),
    "float8": Float8Tensor(symbols=indices((6, 4, 3, 3), 253) - 126, scale=round_half(normal(6).abs())),
    "float8, axis 1": Float8Tensor(symbols=indices((6, 4), 253) - 126, scale=torch.ones(4), axis=1),
    "dct, axis 1": DctTensor(symbols=indices((6, 4, 5), 9) - 4, scale=torch.ones(4), axis=1),
    "sparse": FloatTensor(values=sparse((8, 4, 3, 3), 0.8)),
    "sparse half": FloatTensor.half(sparse((8, 40), 0.8)),
    "sparse odd": FloatTensor(values=torch.tensor([0.0, 0.0, -0.0, float("nan"), float("-inf"), 1e-42, *[0.0] * 50])),
    "all zero": FloatTensor(values=torch.zeros(40, 30)),
}


@pytest.mark.parametrize("name", ENCODINGS)
def test_round_trip(name):
    record = encode_tensor(ENCODINGS[name])
    decoded = decode_tensor(record)
    same(ENCODINGS[name], decoded)
    whole = ENCODINGS[name].decode()
    assert np.array_equal(bits(whole), bits(decoded.decode()))
    assert elements(record) == whole.numel()
    facts = describe(record)
    assert facts["shape"] == whole.shape
    assert facts["side_bytes"] + facts["bits_per_symbol"] * whole.numel() / 8 == pytest.approx(len(record))


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_any_codebook_comes_back(data):
    dim = data.draw(st.integers(1, 3))
    rest = data.draw(hnp.array_shapes(min_dims=0, max_dims=3, max_side=4))
    books, per_book, axis = data.draw(st.integers(1, 3)), data.draw(st.integers(1, 3)), 0
    channels = books * per_book
    shape = (channels, *rest, dim)
    if data.draw(st.booleans()):
        shape, axis = (shape[1], channels, *shape[2:]), 1
    entries = data.draw(st.integers(1, 20))
    coded = shape if dim == 1 else (channels, math.prod(shape) // channels // dim)
    encoding = CodebookTensor(
        symbols=torch.from_numpy(data.draw(hnp.arrays(np.int16, coded, elements=st.integers(0, entries - 1)))),
        codebook=torch.from_numpy(
            data.draw(hnp.arrays(np.float32, (books, entries, dim), elements=st.floats(width=32)))
        ),
        scale=torch.from_numpy(data.draw(hnp.arrays(np.float32, channels, elements=st.floats(width=32)))),
        shape=shape,
        axis=axis,
    )
    same(encoding, decode_tensor(encode_tensor(encoding)))


@settings(max_examples=60, deadline=None)
@given(
    hnp.arrays(
        np.uint32, hnp.array_shapes(min_dims=0, max_side=9), elements=st.sampled_from([0, 0, 0, 1 << 31, 5, 0x7FC00001])
    )
)
def test_any_floats_with_zeros_come_back(words):
    same(
        FloatTensor(values=torch.from_numpy(words.view(np.float32))),
        decode_tensor(encode_tensor(FloatTensor(values=torch.from_numpy(words.view(np.float32))))),
    )


@pytest.mark.parametrize("half", [False, True])
def test_zeros_pay_in_floats(half):
    sizes = []
    for zeros in (0.0, 0.1, 0.5, 0.9, 0.99):
        values = sparse((32, 16, 3, 3), zeros)
        record = encode_tensor(FloatTensor.half(values) if half else FloatTensor(values=values))
        count = int((values != 0).sum())
        # a bit a weight for the mask is the worst; values cost their own bits
        assert len(record) <= (2 if half else 4) * count + values.numel() / 8 + 16
        sizes.append(len(record))
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[-1] < 0.03 * sizes[0]


def test_few_zeros_are_not_worth_a_mask():
    values = normal(40, 40)
    values[0, 0] = 0.0
    assert describe(encode_tensor(FloatTensor(values=values)))["kind"] == "float32"
    assert describe(encode_tensor(ENCODINGS["sparse"]))["kind"] == "sparse"


def test_sizes_are_those_of_indices_and_tables():
    four_bits = encode_tensor(ENCODINGS["codebook"])  # uniform indices: 4 bits each, 2 bytes an entry
    assert 288 / 2 + 32 <= len(four_bits) <= 288 / 2 + 32 + 30
    hashed = encode_tensor(ENCODINGS["hashed"])
    assert 50 <= len(hashed) <= 60 + 30


def test_indices_are_coded_about_the_entry_nearest_zero():
    weight = normal(64, 64)
    book = torch.linspace(-3, 3, 31).reshape(1, 31, 1)
    symbols = ((weight.clamp(-3, 3) + 3) * 5).round().to(torch.int16)
    made = encode_tensor(
        CodebookTensor(symbols=symbols, codebook=round_half(book), scale=torch.ones(1), shape=(64, 64))
    )
    counts = torch.bincount(symbols.flatten().long()).double() / symbols.numel()
    entropy = float(-(counts[counts > 0] * counts[counts > 0].log2()).sum())
    assert len(made) < 1.03 * entropy * symbols.numel() / 8 + 80


@pytest.mark.parametrize("name", ["codebook", "codebooks of groups", "codebook, axis 1", "vectors", "hashed", "dct"])
def test_with_scale_is_the_record_of_the_rescaled_encoding(name):
    encoding = ENCODINGS[name]
    changed = encoding.with_gain(torch.linspace(0.5, 1.5, len(encoding.scale)))
    assert with_scale(encode_tensor(encoding), changed) == encode_tensor(changed)


def test_with_scale_refuses_another_kind():
    with pytest.raises(ValueError, match="other symbols"):
        with_scale(encode_tensor(ENCODINGS["codebook"]), ENCODINGS["hashed"])


@pytest.mark.parametrize(
    "encoding",
    [
        CodebookTensor(symbols=indices((4, 3), 9), codebook=normal(1, 4, 1), scale=torch.ones(1), shape=(4, 3)),
        CodebookTensor(symbols=indices((4, 3), 4), codebook=normal(3, 4, 1), scale=torch.ones(1), shape=(4, 3)),
        CodebookTensor(symbols=indices((4, 1), 4), codebook=normal(1, 4, 2), scale=torch.ones(1), shape=(4, 3)),
        CodebookTensor(symbols=indices((4, 3), 4), codebook=normal(4, 1), scale=torch.ones(1), shape=(4, 3)),
        CodebookTensor(symbols=indices((4, 3), 4), codebook=normal(1, 4, 1), scale=torch.ones(3), shape=(4, 3)),
        HashedTensor(values=torch.zeros(0), scale=torch.ones(1), shape=(4, 3)),
        HashedTensor(values=normal(4), scale=torch.ones(1), shape=(4, 3), seed=1 << 32),
        DctTensor(symbols=indices((4, 3), 4), scale=torch.ones(1)),
        Float8Tensor(symbols=torch.tensor([127], dtype=torch.int16), scale=torch.ones(1)),
        DctTensor(symbols=indices((4, 3, 17), 4), scale=torch.ones(1)),
    ],
)
def test_what_the_format_cannot_hold_is_refused(encoding):
    with pytest.raises(ValueError, match=r"\w"):
        encode_tensor(encoding)


def test_a_large_layer_may_share_more_values_than_are_free():
    """One in eight of VGG-16's first linear layer are 12.8 million; here one more than is free."""
    count = FREE_ELEMENTS + 1
    values = round_half(normal(1024)).repeat(-(-count // 1024))[:count]
    encoding = HashedTensor(values=values, scale=torch.ones(1), shape=(2, count))
    assert torch.equal(decode_tensor(encode_tensor(encoding)).values, values)
    with pytest.raises(ValueError, match="HashedTensor"):
        encode_tensor(HashedTensor(values=values, scale=torch.ones(1), shape=(2, 3)))


def head_of(encoding):
    """A record without its body."""
    record = encode_tensor(encoding)
    return record[: len(record) - len(Parts.read(record).body)]


def test_absurd_tables_are_refused_before_anything_is_allocated():
    head = head_of(ENCODINGS["codebook, axis 1"])  # six channels
    for table in (
        b"\xff\xff\xff\x7f\xff\xff\x01\x01",  # more books than channels
        b"\x01\x00\x01",  # no entries
        b"\x00\x04\x01",  # no books
        b"\x01\x04\x07",  # vectors that do not divide a channel
        b"\x04\x04\x01",  # books that do not divide the channels
        b"\x06\xff\xff\x01\xff\xff\xff\x7f",  # a table of more numbers than any
    ):
        with pytest.raises(CorruptFileError, match=r"codebook"):
            decode_tensor(head + table + b"\x03\x00\x00\x00" + b"\0" * 9)
    head = head_of(ENCODINGS["hashed"])
    with pytest.raises(CorruptFileError, match="larger"):
        decode_tensor(head + b"\x00\xff\xff\xff\x7f" + b"\0" * 9)
    with pytest.raises(CorruptFileError, match="none at all"):
        decode_tensor(head + b"\x00\x00" + b"\0" * 9)


def test_indices_beyond_the_table_are_refused():
    good = encode_tensor(ENCODINGS["vectors"])
    fewer = good.replace(b"\x01\x07\x09", b"\x01\x06\x09", 1)
    assert fewer != good
    with pytest.raises(CorruptFileError, match=r"\w"):
        decode_tensor(fewer)


@pytest.mark.parametrize("name", ["codebook", "codebook, axis 1", "vectors", "hashed", "dct", "sparse"])
def test_any_damage_is_a_corrupt_file_error_or_another_tensor(name):
    record = encode_tensor(ENCODINGS[name])
    for at in range(min(len(record), 40)):
        for bit in range(8):
            damaged = bytearray(record)
            damaged[at] ^= 1 << bit
            with suppress(CorruptFileError):
                decode_tensor(bytes(damaged)).decode()
        with suppress(CorruptFileError):
            decode_tensor(record[:at])


@settings(max_examples=300, deadline=None)
@given(st.sampled_from([3, 4, 5, 6, 19, 20, 21, 36, 132, 180]), st.binary(max_size=120))
def test_any_bytes_are_a_record_or_a_corrupt_file_error(first, data):
    with suppress(CorruptFileError):
        decode_tensor(bytes([first]) + b"\x03\x02\x03\x04" + data)
