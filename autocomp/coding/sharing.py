"""Records of sparse floats, codebooks, hashed weights, DCT coefficients and float8 (docs/format.md)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from autocomp.coding.arrays import (
    Floats,
    decode_float16,
    decode_float32,
    decode_integers,
    encode_float16,
    encode_float32,
    encode_integers,
)
from autocomp.coding.contexts import Ints
from autocomp.coding.parts import (
    CODEBOOK,
    DCT,
    FLOAT8,
    FREE_ELEMENTS,
    HALF_VALUES,
    HASHED,
    MAX_ELEMENTS,
    RAW_VALUES,
    SPARSE,
    Parts,
    decode_floats,
    encode_floats,
    floats,
    int16,
    integers,
    scaled_head,
    shape_bytes,
    sized,
)
from autocomp.coding.varint import Reader, put
from autocomp.core.encodings import (
    E4M3_SYMBOLS,
    MAX_KERNEL,
    CodebookTensor,
    DctTensor,
    Float8Tensor,
    FloatTensor,
    HashedTensor,
    ScaledEncoding,
)
from autocomp.errors import CorruptFileError

MAX_ENTRIES = 1 << 15
_MAX_SEED = (1 << 32) - 1
_WORTH_A_MASK = 1 / 64  # a mask costs at least this share of the values' own bits


def encode_sparse(values: Floats, width: int) -> bytes | None:
    """The record of floats as a mask and the values that are not +0.0; None where zeros are too few to pay."""
    mask = np.ascontiguousarray(values).view(np.uint32) != 0
    if not values.ndim or not values.size or np.count_nonzero(mask) > (1 - _WORTH_A_MASK) * values.size:
        return None
    kept = np.ascontiguousarray(values[mask])
    body = encode_float32(kept) if width == 32 else encode_float16(kept)
    if body is None:
        return None
    first = SPARSE | (HALF_VALUES if width == 16 else 0)
    return bytes([first]) + shape_bytes(values.shape) + sized(encode_integers(mask.astype(np.int32))) + body


def decode_sparse(parts: Parts) -> FloatTensor:
    """The reverse of :func:`encode_sparse`."""
    import torch

    reader = Reader(parts.body, "sparse values")
    mask = decode_integers(reader.take(reader.varint(len(parts.body))), parts.shape)
    if mask.size and not 0 <= int(mask.min()) <= int(mask.max()) <= 1:
        raise CorruptFileError("sparse values: the mask is not 0 and 1; the data is damaged, get it again")
    half = bool(parts.flags & HALF_VALUES)
    kept = (decode_float16 if half else decode_float32)(reader.rest(), (int(mask.sum()),))
    values = np.zeros(parts.shape, np.float32)
    values[mask.astype(bool)] = kept
    return FloatTensor(values=torch.from_numpy(values), width=16 if half else 32)


def shared_head(encoding: CodebookTensor | HashedTensor | DctTensor | Float8Tensor) -> bytes:
    """All of a record up to its body."""
    scale = floats(encoding.scale)
    if isinstance(encoding, DctTensor | Float8Tensor):
        kind = DCT if isinstance(encoding, DctTensor) else FLOAT8
        return scaled_head(kind, tuple(encoding.symbols.shape), encoding.axis, scale)
    table = encoding.codebook if isinstance(encoding, CodebookTensor) else encoding.values
    kind = CODEBOOK if isinstance(encoding, CodebookTensor) else HASHED
    raw, _ = encode_floats(floats(table))
    return scaled_head(kind | (RAW_VALUES if raw else 0), tuple(encoding.shape), encoding.axis, scale)


def shared_body(encoding: CodebookTensor | HashedTensor | DctTensor | Float8Tensor) -> bytes:
    """The body of a record."""
    if isinstance(encoding, CodebookTensor):
        return _codebook_body(encoding)
    if isinstance(encoding, HashedTensor):
        buckets = encoding.values.numel()
        if (
            encoding.values.dim() != 1
            or not 0 < buckets <= _most_values(encoding.shape)
            or not 0 <= encoding.seed <= _MAX_SEED
            or not encoding.shape
        ):
            raise ValueError(f"HashedTensor: {buckets} values, seed {encoding.seed}, shape {encoding.shape}")
        return put(encoding.seed) + put(buckets) + encode_floats(floats(encoding.values))[1]
    symbols = integers(encoding.symbols)
    if isinstance(encoding, Float8Tensor):
        if not symbols.ndim or int(np.abs(symbols).max(initial=0)) > E4M3_SYMBOLS:
            raise ValueError(f"Float8Tensor {symbols.shape}; allowed one axis or more, symbols to ±{E4M3_SYMBOLS}")
    elif not _is_kernel(symbols.shape):
        raise ValueError(f"DctTensor {symbols.shape}; allowed [out, in, *kernel], kernel sides up to {MAX_KERNEL}")
    return encode_integers(np.moveaxis(symbols, encoding.axis, 0))


def decode_shared(parts: Parts) -> ScaledEncoding:
    """The encoding of a record of one of these kinds; :class:`CorruptFileError` where it is none."""
    import torch

    if not parts.shape:
        raise CorruptFileError("tensor record: no axes where weights share values; the data is damaged, get it again")
    if parts.kind == CODEBOOK:
        return _decode_codebook(parts)
    scale = torch.from_numpy(parts.scales())
    if parts.kind == HASHED:
        reader = Reader(parts.body, "hashed values")
        seed, buckets = reader.varint(_MAX_SEED), reader.varint(_most_values(parts.shape))
        if not buckets:
            raise CorruptFileError("hashed values: none at all; the data is damaged, get it again")
        values = decode_floats(reader.rest(), (buckets,), raw=bool(parts.flags & RAW_VALUES))
        made = torch.from_numpy(values)
        return HashedTensor(values=made, scale=scale, shape=parts.shape, seed=seed, axis=parts.axis)
    if parts.kind == DCT and not _is_kernel(parts.shape):
        raise CorruptFileError(f"tensor record: DCT of shape {parts.shape}; the data is damaged, get it again")
    symbols = np.moveaxis(decode_integers(parts.body, parts.moved_shape()), 0, parts.axis)
    if parts.kind == FLOAT8:
        if int(np.abs(symbols).max(initial=0)) > E4M3_SYMBOLS:
            raise CorruptFileError("tensor record: a float8 symbol that is no number; damaged, get it again")
        return Float8Tensor(symbols=torch.from_numpy(int16(symbols)), scale=scale, axis=parts.axis)
    return DctTensor(symbols=torch.from_numpy(int16(symbols)), scale=scale, axis=parts.axis)


def _most_values(shape: Sequence[int]) -> int:
    """Shared values that a tensor may have: no more than weights, whose number a record's size bounds; or a few."""
    return max(FREE_ELEMENTS, math.prod(shape))


def _is_kernel(shape: tuple[int, ...]) -> bool:
    return 3 <= len(shape) <= 5 and all(1 <= side <= MAX_KERNEL for side in shape[2:])


def _centre(codebook: Floats) -> Ints:
    """Entry nearest zero in each book of single values [books]; the coders like symbols centred on it.

    Compared by their bits: integers, so that no reader orders them otherwise, not even NaN.
    """
    magnitude = np.ascontiguousarray(codebook[:, :, 0]).view(np.uint32) & np.uint32(0x7FFFFFFF)
    nearest: Ints = magnitude.argmin(axis=1).astype(np.int32)
    return nearest


def _codebook_body(encoding: CodebookTensor) -> bytes:
    symbols, codebook, shape = integers(encoding.symbols), floats(encoding.codebook), tuple(encoding.shape)
    most = _most_values(shape)
    if codebook.ndim != 3 or not shape or not 0 < codebook.size <= most:
        raise ValueError(f"codebook {codebook.shape} for shape {shape}; allowed [books, entries, dim] of {most} values")
    books, entries, dim = codebook.shape
    if entries > MAX_ENTRIES:
        raise ValueError(f"codebook of {entries} entries; at most {MAX_ENTRIES}")
    expected = _symbol_shape(shape, encoding.axis, dim)
    if symbols.shape != (shape if dim == 1 else expected) or shape[encoding.axis] % books:
        raise ValueError(f"symbols {symbols.shape} for shape {shape}, {books} books of {dim} values an entry")
    if symbols.size and not 0 <= int(symbols.min()) <= int(symbols.max()) < entries:
        raise ValueError(f"symbols outside the {entries} entries of the codebook")
    if dim == 1:
        symbols = np.moveaxis(symbols, encoding.axis, 0)
        symbols = symbols - _by_channel(_centre(codebook), symbols.shape)
    _, table = encode_floats(codebook)
    return put(books) + put(entries) + put(dim) + sized(table) + encode_integers(symbols)


def _symbol_shape(shape: tuple[int, ...], axis: int, dim: int) -> tuple[int, ...] | None:
    """Shape in which indices are coded, channel axis first; None where ``dim`` does not divide a channel."""
    if dim == 1:
        return (shape[axis], *shape[:axis], *shape[axis + 1 :])
    each = math.prod(shape[:axis]) * math.prod(shape[axis + 1 :])
    return None if each % dim else (shape[axis], each // dim)


def _by_channel(books: Ints, shape: tuple[int, ...]) -> Ints:
    """Values of each book [books] as values of each channel, broadcastable to ``shape`` (channels first)."""
    return np.repeat(books, shape[0] // len(books)).reshape(-1, *[1] * (len(shape) - 1))


def _decode_codebook(parts: Parts) -> CodebookTensor:
    import torch

    reader = Reader(parts.body, "codebook")
    books, entries, dim = reader.varint(MAX_ELEMENTS), reader.varint(MAX_ENTRIES), reader.varint(MAX_ELEMENTS)
    data = reader.take(reader.varint(len(parts.body)))
    shape = _symbol_shape(parts.shape, parts.axis, max(1, dim))
    size = books * entries * dim
    if shape is None or not 0 < size <= _most_values(parts.shape) or parts.shape[parts.axis] % books:
        raise CorruptFileError(
            f"codebook: {books} books of {entries} entries of {dim} for shape {parts.shape}; damaged, get it again"
        )
    codebook = decode_floats(data, (books, entries, dim), raw=bool(parts.flags & RAW_VALUES))
    symbols = decode_integers(reader.rest(), shape)
    if dim == 1:
        symbols = symbols + _by_channel(_centre(codebook), shape)
    if symbols.size and not 0 <= int(symbols.min()) <= int(symbols.max()) < entries:
        raise CorruptFileError(f"codebook: indices outside {entries} entries; the data is damaged, get it again")
    if dim == 1:
        symbols = np.moveaxis(symbols, 0, parts.axis)
    return CodebookTensor(
        symbols=torch.from_numpy(int16(symbols)),
        codebook=torch.from_numpy(codebook),
        scale=torch.from_numpy(parts.scales()),
        shape=parts.shape,
        axis=parts.axis,
    )
