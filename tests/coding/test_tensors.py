"""Records: bit-exact round trips of everything an encoding holds."""

from __future__ import annotations

from contextlib import suppress

import numpy as np
import pytest
import torch

from autocomp.coding.tensors import decode_tensor, describe, elements, encode_tensor, with_scale
from autocomp.core.encodings import FloatTensor, QuantizedTensor, round_half
from autocomp.errors import CorruptFileError


def same(a, b):
    """Bit-identical encodings."""
    assert type(a) is type(b)
    if isinstance(a, FloatTensor):
        assert a.width == b.width
        assert a.values.shape == b.values.shape
        assert np.array_equal(a.values.numpy().view(np.uint32), b.values.numpy().view(np.uint32))
        return
    assert (a.axis, a.bits) == (b.axis, b.bits)
    assert b.symbols.dtype == torch.int16
    assert torch.equal(a.symbols.to(torch.int16), b.symbols)
    assert a.symbols.shape == b.symbols.shape
    assert np.array_equal(a.scale.numpy().view(np.uint32), b.scale.numpy().view(np.uint32))
    assert (a.zero_point is None) == (b.zero_point is None)
    if a.zero_point is not None:
        assert torch.equal(a.zero_point, b.zero_point)
        assert b.zero_point.dtype == torch.int16


def weights(shape, seed=0, spread=3.0):
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn(shape, generator=generator) * spread).round().to(torch.int16)


def scales(count):
    return round_half(torch.linspace(0.01, 0.3, count))


QUANTIZED = {
    "convolution": QuantizedTensor(symbols=weights((16, 8, 3, 3)), scale=scales(16)),
    "linear": QuantizedTensor(symbols=weights((10, 64)), scale=scales(10), bits=4),
    "tensor scale": QuantizedTensor(symbols=weights((10, 64)), scale=scales(1), bits=8),
    "transposed": QuantizedTensor(symbols=weights((6, 9, 2, 2)), scale=scales(9), axis=1),
    "asymmetric": QuantizedTensor(
        symbols=weights((4, 50)) + 8, scale=scales(4), zero_point=torch.tensor([7, 8, 9, 8], dtype=torch.int16), bits=5
    ),
    "asymmetric, axis 1": QuantizedTensor(
        symbols=weights((5, 3, 2)), scale=scales(3), zero_point=torch.tensor([-3, 0, 2], dtype=torch.int16), axis=1
    ),
    "int16": QuantizedTensor(symbols=torch.tensor([-32768, 32767, 0], dtype=torch.int16), scale=torch.tensor([0.1])),
    "widest": QuantizedTensor(
        symbols=torch.tensor([[-32768], [32767]], dtype=torch.int16),
        scale=torch.ones(2),
        zero_point=torch.tensor([32767, -32768], dtype=torch.int16),
    ),
    "scalar": QuantizedTensor(symbols=torch.tensor(5, dtype=torch.int16), scale=torch.tensor([0.3])),
    "empty": QuantizedTensor(symbols=torch.zeros((0, 4), dtype=torch.int16), scale=torch.zeros(0)),
    "constant": QuantizedTensor(symbols=torch.zeros((30, 30), dtype=torch.int16), scale=scales(30)),
}

ODD = torch.tensor([0.0, -0.0, 1.5, -3e-45, 1e-40, 3.4e38, float("inf"), float("-inf"), float("nan"), 1e-20])
FLOATS = {
    "odd values": FloatTensor(values=ODD),
    "random": FloatTensor(values=torch.randn(300, generator=torch.Generator().manual_seed(1))),
    "half": FloatTensor.half(torch.randn(3, 20, generator=torch.Generator().manual_seed(2)) * 1e-3),
    "half with zeros": FloatTensor.half(torch.tensor([0.0, -0.0, 1.0, -1e-7])),
    "half at a power of two": FloatTensor.half(torch.tensor([1.9999999, 3e-8, -7e-8, 1e-3])),
    "half of huge": FloatTensor.half(torch.tensor([3e38, -1e30])),
    "half of tiny": FloatTensor.half(torch.tensor([1e-38, -3e-39, 1e-44])),
    "half of zeros": FloatTensor.half(torch.zeros(64)),
    "scalar": FloatTensor(values=torch.tensor(0.1)),
    "empty": FloatTensor(values=torch.zeros(0, 3)),
    "empty half": FloatTensor.half(torch.zeros(0)),
}


@pytest.mark.parametrize("name", QUANTIZED)
def test_quantized_round_trip(name):
    record = encode_tensor(QUANTIZED[name])
    same(QUANTIZED[name], decode_tensor(record))
    assert elements(record) == QUANTIZED[name].symbols.numel()


@pytest.mark.parametrize("name", FLOATS)
def test_float_round_trip(name):
    same(FLOATS[name], decode_tensor(encode_tensor(FLOATS[name])))


def test_scales_that_no_half_holds_come_back_exactly():
    encoding = QuantizedTensor(symbols=weights((4, 20)), scale=torch.tensor([0.1, 1 / 3, 1e-9, 7e5]))
    same(encoding, decode_tensor(encode_tensor(encoding)))


def test_rounded_floats_take_half_the_bytes():
    values = torch.randn(1000, generator=torch.Generator().manual_seed(0))
    assert len(encode_tensor(FloatTensor.half(values))) <= 2 * 1000 + 8
    assert len(encode_tensor(FloatTensor(values=values))) <= 4 * 1000 + 8


@pytest.mark.parametrize("name", ["convolution", "linear", "asymmetric", "transposed", "int16"])
def test_with_scale_is_the_record_of_the_rescaled_encoding(name):
    encoding = QUANTIZED[name]
    changed = encoding.with_gain(torch.full_like(encoding.scale, 1.37))
    assert with_scale(encode_tensor(encoding), changed) == encode_tensor(changed)


def test_with_scale_refuses_another_tensor():
    with pytest.raises(ValueError, match="other symbols"):
        with_scale(encode_tensor(QUANTIZED["linear"]), QUANTIZED["convolution"])
    with pytest.raises(ValueError, match="other symbols"):
        with_scale(encode_tensor(FLOATS["random"]), QUANTIZED["convolution"])


def test_describe():
    facts = describe(encode_tensor(QUANTIZED["convolution"]))
    assert facts["kind"] == "quantized"
    assert facts["coder"] in {"range_coder", "huffman"}
    assert facts["shape"] == (16, 8, 3, 3)
    assert facts["symbols"] == 1152
    assert facts["side_bytes"] + facts["bits_per_symbol"] * 1152 / 8 == pytest.approx(facts["record_bytes"])
    assert describe(encode_tensor(FLOATS["half"]))["kind"] == "float16"
    assert describe(encode_tensor(FLOATS["empty"]))["bits_per_symbol"] == 0


@pytest.mark.parametrize(
    "encoding",
    [
        QuantizedTensor(symbols=torch.tensor([40000]), scale=torch.ones(1)),
        QuantizedTensor(symbols=torch.tensor([0.5]), scale=torch.ones(1)),
        QuantizedTensor(symbols=weights((4, 3)), scale=torch.ones(3)),
        QuantizedTensor(symbols=weights((4, 3)), scale=torch.ones(4), axis=2),
        QuantizedTensor(symbols=weights((4, 3)), scale=torch.ones(4), zero_point=torch.zeros(1, dtype=torch.int16)),
        FloatTensor(values=torch.tensor([0.1]), width=16),
        FloatTensor(values=torch.tensor([0.1]), width=8),
        FloatTensor(values=torch.tensor([0.1], dtype=torch.float64)),
    ],
)
def test_what_the_format_cannot_hold_is_refused(encoding):
    with pytest.raises(ValueError, match=r"\w"):
        encode_tensor(encoding)


def test_absurd_shapes_are_refused_before_anything_is_allocated():
    for shape in (b"\x01\xff\xff\xff\x7f", b"\x02\xff\xff\xff\x1f\xff\xff\xff\x1f", b"\xff" + b"\x01" * 255):
        with pytest.raises(CorruptFileError, match=r"elements|axes|larger"):
            decode_tensor(b"\x00" + shape + b"\0" * 20)


@pytest.mark.parametrize("name", ["convolution", "asymmetric", "transposed", "constant"])
def test_any_damage_to_a_record_is_a_corrupt_file_error_or_another_tensor(name):
    record = encode_tensor(QUANTIZED[name])
    for at in range(min(len(record), 60)):
        for bit in range(8):
            damaged = bytearray(record)
            damaged[at] ^= 1 << bit
            with suppress(CorruptFileError):
                decode_tensor(bytes(damaged))
