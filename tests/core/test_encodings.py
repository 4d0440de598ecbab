"""Encodings decode by plain arithmetic: against loops over single numbers."""

from __future__ import annotations

import itertools
import math

import ml_dtypes
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from autocomp.core import encodings
from autocomp.core.encodings import (
    MAX_KERNEL,
    CodebookTensor,
    DctTensor,
    Float8Tensor,
    FloatTensor,
    HashedTensor,
    QuantizedTensor,
    cosine_basis,
    hash_buckets,
    hashed_parts,
    round_e4m3,
    round_half,
    round_scale,
)


def splitmix64(seed: int, count: int) -> list[int]:
    """The generator of Steele et al. 2014 in Python integers."""
    mask, out = (1 << 64) - 1, []
    for _ in range(count):
        seed = (seed + 0x9E3779B97F4A7C15) & mask
        z = seed
        z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 & mask
        z = (z ^ (z >> 27)) * 0x94D049BB133111EB & mask
        out.append(z ^ (z >> 31))
    return out


@pytest.mark.parametrize(("axis", "books"), [(0, 1), (0, 3), (1, 1), (1, 2)])
def test_codebook_of_numbers_decodes_entry_by_entry(axis: int, books: int) -> None:
    generator = torch.Generator().manual_seed(axis)
    shape = (6, 4, 2)
    symbols = torch.randint(5, shape, generator=generator).to(torch.int16)
    codebook = round_half(torch.randn(books, 5, 1, generator=generator))
    scale = round_half(torch.rand(shape[axis], generator=generator) + 0.5)
    decoded = CodebookTensor(symbols=symbols, codebook=codebook, scale=scale, shape=shape, axis=axis).decode()
    assert decoded.shape == shape
    for at in itertools.product(*map(range, shape)):
        channel = at[axis]
        entry = codebook[channel // (shape[axis] // books), int(symbols[at]), 0]
        assert decoded[at] == entry * scale[channel]


@pytest.mark.parametrize("axis", [0, 1])
def test_codebook_of_vectors_decodes_runs_of_a_channel(axis: int) -> None:
    generator = torch.Generator().manual_seed(3)
    shape = (4, 6, 2)
    channels, each = shape[axis], math.prod(shape) // shape[axis]
    symbols = torch.randint(3, (channels, each // 4), generator=generator).to(torch.int16)
    codebook = torch.randn(1, 3, 4, generator=generator)
    scale = torch.rand(channels, generator=generator)
    decoded = CodebookTensor(symbols=symbols, codebook=codebook, scale=scale, shape=shape, axis=axis).decode()
    rows = decoded.transpose(0, axis).reshape(channels, -1)
    for c, run in itertools.product(range(channels), range(each // 4)):
        assert torch.equal(rows[c, 4 * run : 4 * run + 4], codebook[0, int(symbols[c, run])] * scale[c])


def test_hash_is_splitmix64() -> None:
    for seed in (0, 7, 2**32 - 1):
        bucket, sign = hash_buckets(50, 11, seed)
        expected = splitmix64(seed, 50)
        assert bucket.tolist() == [(z & ((1 << 63) - 1)) % 11 for z in expected]
        assert sign.tolist() == [-1.0 if z >> 63 else 1.0 for z in expected]


def test_hashes_in_parts_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encodings, "_HASHED_AT_ONCE", 7)
    parts = list(hashed_parts(50, 11, 3))
    whole = hash_buckets(50, 11, 3)
    assert [i for places, _, _ in parts for i in range(50)[places]] == list(range(50))
    assert torch.equal(torch.cat([bucket for _, bucket, _ in parts]), whole[0])
    assert torch.equal(torch.cat([sign for _, _, sign in parts]), whole[1])


def test_hash_gives_the_published_sequence() -> None:
    # the first outputs of SplitMix64 for seed 0: a change of the hash would garble every file written before
    published = [16294208416658607535, 7960286522194355700, 487617019471545679]
    assert splitmix64(0, 3) == published
    bucket, sign = hash_buckets(3, 1000, 0)
    assert bucket.tolist() == [(z & ((1 << 63) - 1)) % 1000 for z in published]
    assert sign.tolist() == [-1.0, 1.0, 1.0]


def test_hash_spreads_evenly() -> None:
    bucket, sign = hash_buckets(100_000, 10, 1)
    # binomial deviations of 95 and 158; 6 sigma
    assert bool(((torch.bincount(bucket) - 10_000).abs() < 6 * 95).all())
    assert abs(float(sign.sum())) < 6 * 2 * 158


def test_hashed_decodes_value_by_value() -> None:
    values, scale = torch.tensor([0.5, -1.25, 3.0]), torch.tensor([1.0, 0.1])
    decoded = HashedTensor(values=values, scale=scale, shape=(3, 2, 2), seed=9, axis=1).decode()
    bucket, sign = hash_buckets(12, 3, 9)
    for flat, at in enumerate(itertools.product(range(3), range(2), range(2))):
        assert decoded[at] == values[bucket[flat]] * sign[flat] * scale[at[1]]


@pytest.mark.parametrize("size", range(1, MAX_KERNEL + 1))
def test_cosine_basis_is_orthonormal_and_no_machine_can_round_it_otherwise(size: int) -> None:
    basis = torch.tensor(cosine_basis(size), dtype=torch.float64)
    # each entry is off by at most 2^-21, each product of rows by sqrt(size) * 2^-20
    assert torch.allclose(basis @ basis.T, torch.eye(size, dtype=torch.float64), atol=size**0.5 * 2**-20)
    for j, i in itertools.product(range(size), range(size)):
        exact = math.sqrt((1 if j == 0 else 2) / size) * math.cos(math.pi * (2 * i + 1) * j / (2 * size)) * 2**20
        # a cosine is off by 1e-16 at most, so 1e-9 of 2^20: that far from a tie it rounds one way only
        assert abs(exact - math.floor(exact) - 0.5) > 1e-6
    assert torch.equal(basis.float().double(), basis)


def test_dct_inverts_the_dct_and_is_one_fixed_sum() -> None:
    symbols = torch.randint(-40, 41, (3, 2, 3, 2), generator=torch.Generator().manual_seed(0)).to(torch.int16)
    scale = torch.tensor([0.5, 0.1, 2.0])
    decoded = DctTensor(symbols=symbols, scale=scale).decode()
    rows, columns = (np.array(cosine_basis(k), np.float32) for k in (3, 2))
    for o, c in itertools.product(range(3), range(2)):
        x = symbols[o, c].numpy().astype(np.float32)
        half = np.zeros_like(x)
        for i in range(3):
            half[i] = x[0] * rows[0, i]
            for j in (1, 2):
                half[i] = half[i] + x[j] * rows[j, i]
        for i in range(2):
            value = (half[:, 0] * columns[0, i] + half[:, 1] * columns[1, i]) * scale[o].numpy()
            assert np.array_equal(decoded[o, c, :, i].numpy(), value)


SCALED = [
    QuantizedTensor(symbols=torch.ones(3, 2, 3, 3, dtype=torch.int16), scale=torch.ones(3)),
    CodebookTensor(
        symbols=torch.ones(3, 2, 3, 3, dtype=torch.int16),
        codebook=torch.tensor([[[1.0], [2.0]]]),
        scale=torch.ones(3),
        shape=(3, 2, 3, 3),
    ),
    HashedTensor(values=torch.tensor([1.0, 2.0]), scale=torch.ones(3), shape=(3, 2, 3, 3)),
    DctTensor(symbols=torch.ones(3, 2, 3, 3, dtype=torch.int16), scale=torch.ones(3)),
    Float8Tensor(symbols=torch.ones(3, 2, 3, 3, dtype=torch.int16), scale=torch.ones(3)),
]


def test_float8_symbols_are_the_numbers_of_the_format_in_order() -> None:
    """docs/format.md, kind 7, in exact arithmetic."""
    symbols = torch.arange(-126, 127, dtype=torch.int16)
    found = Float8Tensor(symbols=symbols, scale=torch.ones(1)).decode()
    for s, number in zip(symbols.tolist(), found.tolist(), strict=True):
        e, f = divmod(abs(s), 8)
        magnitude = f * 2.0**-9 if e == 0 else (8 + f) * 2.0 ** (e - 10)
        assert number == math.copysign(magnitude, s) if s else math.copysign(1, number) == 1.0
    assert found.tolist() == sorted(found.tolist())
    assert found[-1] == 448
    assert torch.equal(Float8Tensor.nearest(found, torch.ones(1)).symbols, symbols)


def test_float8_rounds_as_another_implementation_does() -> None:
    """Every float16 number: ties, subnormals, what saturates."""
    halves = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(torch.float16)
    values = halves[halves.isfinite()].float()
    expected = np.clip(values.numpy(), -448, 448).astype(ml_dtypes.float8_e4m3fn).astype(np.float32)
    assert np.array_equal(round_e4m3(values).numpy(), expected)
    scale = torch.tensor([0.25])
    decoded = Float8Tensor.nearest(values, scale).decode()
    assert np.array_equal(decoded.numpy(), round_e4m3(values * 4).numpy() / 4)


@pytest.mark.parametrize("encoding", SCALED, ids=lambda e: type(e).__name__)
def test_gain_multiplies_channels(encoding: QuantizedTensor) -> None:
    gain = torch.tensor([0.5, 2.0, 0.25])
    assert torch.equal(encoding.with_gain(gain).decode(), encoding.decode() * gain.reshape(3, 1, 1, 1))


def test_memory_counts_all_tensors() -> None:
    assert FloatTensor(values=torch.zeros(5)).memory_bytes == 20
    assert SCALED[1].memory_bytes == 54 * 2 + 8 + 12


@given(st.lists(st.floats(2.0**-20, 2.0**13, width=32), min_size=1, max_size=20))
def test_scales_keep_eight_significant_bits(numbers: list[float]) -> None:
    values = torch.tensor(numbers, dtype=torch.float32)
    rounded = round_scale(values)
    assert torch.equal(round_scale(rounded), rounded)
    assert torch.equal(round_half(rounded), rounded)
    near_top = values > float(values.max()) * 2.0**-14  # far smaller ones fall below float16's range
    assert bool(((rounded - values).abs() <= 2.0**-8 * values)[near_top].all())
    mantissa, _ = torch.frexp(rounded)
    assert torch.equal((mantissa * 256).round(), mantissa * 256)
