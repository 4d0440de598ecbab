"""The file: exact sizes, hostile input, atomic writing, the same tensors in a fresh process, old files."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import slow_decoder
import torch

from autocomp.coding.container import (
    HEAD_DICTIONARY,
    MAGIC,
    VERSION,
    overhead_bytes,
    pack_artifact,
    read_artifact,
    unpack_artifact,
    write_artifact,
)
from autocomp.coding.tensors import encode_tensor
from autocomp.coding.varint import put
from autocomp.core.encodings import Encoding, FloatTensor, QuantizedTensor, round_half
from autocomp.errors import CorruptFileError, DataError, StorageError

GOLDEN = {v: Path(__file__).parent.parent / "golden" / f"artifact_v{v}.autocomp" for v in (1, 2)}
GOLDEN_SHA256 = {
    1: "520d03a542f1480fb0749406b9bd67fe3f0d4c98ac6de2a2c1b3487f13085582",
    2: "d8a36c44c208ac5eee960a6f1db945ddf1e0837853540369d328489a5b9eff5c",
}
MANIFEST = {"model": "golden", "classes": 10, "names": ["ä", "b"], "nested": {"x": [1, 2.5, None, True]}}


def lcg(count: int, seed: int) -> np.ndarray:
    """Uniform 16 bit integers of a linear congruential generator (Numerical Recipes), no library involved."""
    state, out = seed, []
    for _ in range(count):
        state = (1664525 * state + 1013904223) % (1 << 32)
        out.append(state >> 16)
    return np.array(out, np.int64)


def bell(shape: tuple[int, ...], seed: int, divide: int) -> torch.Tensor:
    """Sums of four uniform integers, smoothed along the last axis: integers with a bell-shaped histogram."""
    count = int(np.prod(shape))
    total = lcg(4 * count, seed).reshape(count, 4).sum(1).reshape(shape) - 2 * 65535
    total = total + np.roll(total, 1, -1) // 2
    return torch.from_numpy((total // divide).astype(np.int16))


def golden_tensors() -> dict[str, Encoding]:
    """Every kind of record and every coder, from integers only."""
    scale = torch.from_numpy((lcg(16, 5) + 1000).astype(np.float32)) * 2.0**-20
    return {
        "layer1.0.conv1.weight": QuantizedTensor(symbols=bell((16, 8, 3, 3), 1, 30000), scale=round_half(scale)),
        "layer1.0.conv1.bias": FloatTensor.half(scale - 0.03),
        "layer1.0.conv2.weight": QuantizedTensor(symbols=bell((16, 16, 3, 3), 2, 90000), scale=round_half(scale)),
        "layer1.0.conv2.bias": FloatTensor(values=scale),
        "up.weight": QuantizedTensor(symbols=bell((6, 16, 2, 2), 3, 9000), scale=round_half(scale), axis=1),
        "fc.weight": QuantizedTensor(
            symbols=bell((10, 64), 4, 20000) + 7,
            scale=round_half(scale[:10]),
            zero_point=torch.arange(2, 12, dtype=torch.int16),
            bits=5,
        ),
        "wide.weight": QuantizedTensor(symbols=bell((30, 20), 6, 40), scale=scale[:1]),
        "flat.weight": QuantizedTensor(
            symbols=torch.from_numpy((lcg(24, 7) % 4).astype(np.int16)).reshape(4, 6), scale=torch.ones(1), bits=2
        ),
        "peaky.weight": QuantizedTensor(symbols=(bell((8, 3), 8, 1) > 120000).short(), scale=torch.ones(1)),
        "empty": FloatTensor(values=torch.zeros(0, 4)),
    }


def digest(tensors: dict[str, Encoding]) -> str:
    """SHA-256 over names and decoded float bits."""
    total = hashlib.sha256()
    for name, encoding in tensors.items():
        total.update(name.encode() + np.ascontiguousarray(encoding.decode().numpy()).tobytes())
    return total.hexdigest()


@pytest.fixture(scope="module")
def records() -> dict[str, bytes]:
    return {name: encode_tensor(encoding) for name, encoding in golden_tensors().items()}


@pytest.fixture(scope="module")
def file(records) -> bytes:
    return pack_artifact(MANIFEST, records)


def resealed(data: bytes) -> bytes:
    """``data`` with a right checksum over wrong content: what a hostile writer makes."""
    return data[:-4] + zlib.crc32(data[:-4]).to_bytes(4, "little")


def test_round_trip_and_exact_size(tmp_path, records):
    path = tmp_path / "model.autocomp"
    size = write_artifact(path, MANIFEST, records)
    assert size == os.stat(path).st_size
    lengths = [len(r) for r in records.values()]
    assert size == overhead_bytes(MANIFEST, list(records), lengths) + sum(lengths)
    artifact = read_artifact(path)
    assert artifact.manifest == MANIFEST
    assert artifact.version == VERSION
    assert artifact.file_bytes == size
    assert list(artifact.records.items()) == list(records.items())
    assert digest(artifact.tensors()) == digest(golden_tensors())
    assert os.listdir(tmp_path) == ["model.autocomp"]


def test_headers_are_small():
    names = [f"layer{s}.{b}.{p}" for s in (1, 2, 3) for b in range(3) for p in ("conv1.weight", "conv1.bias")] * 1
    names += [n.replace("conv1", "conv2") for n in names] + ["fc.weight", "fc.bias", "conv1.weight", "conv1.bias"]
    convolutions = [name.removesuffix(".weight") for name in names if name.endswith("weight") and "conv" in name]
    folds = [[name, name.replace("conv", "bn")] for name in convolutions]
    manifest = {"model": "networks:resnet20", "classes": 10, "input": [3, 32, 32], "folds": folds, "activations": {}}
    assert overhead_bytes(manifest, names, [3000] * len(names)) < 370


def test_the_preset_dictionary_is_the_documented_one():
    text = (Path(__file__).parent.parent.parent / "docs" / "format.md").read_text()
    blocks = [
        line[4:]
        for line in text.split("\nThe preset dictionary")[1].split("## Record")[0].splitlines()
        if line[:4] == "    "
    ]
    pairs = [f'["layer{s}.{b}.conv{c}","layer{s}.{b}.bn{c}"],' for s in (4, 3, 2, 1) for b in (1, 0) for c in (1, 2)]
    assert ("".join(blocks[:2]) + "".join(pairs) + blocks[2]).encode() == HEAD_DICTIONARY
    assert f"{zlib.crc32(HEAD_DICTIONARY):08X}" in text


def test_threads_may_decode_one_file_at_the_same_time(file):
    artifact = unpack_artifact(file)
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda _: digest(artifact.tensors()), range(8)))
    assert set(found) == {digest(golden_tensors())}


def test_equal_input_gives_equal_bytes(records, file):
    assert pack_artifact(dict(reversed(MANIFEST.items())), records) == file


def test_a_fresh_process_decodes_the_same_bits(tmp_path, records):
    path = tmp_path / "model.autocomp"
    write_artifact(path, MANIFEST, records)
    script = (
        "import sys, hashlib, numpy as np\n"
        "from autocomp.coding.container import read_artifact\n"
        "total = hashlib.sha256()\n"
        "for name, e in read_artifact(sys.argv[1]).tensors().items():\n"
        "    total.update(name.encode() + np.ascontiguousarray(e.decode().numpy()).tobytes())\n"
        "print(total.hexdigest())\n"
    )
    root = Path(__file__).parent.parent.parent
    done = subprocess.run(
        [sys.executable, "-c", script, str(path)], capture_output=True, text=True, cwd=root, check=True
    )
    assert done.stdout.strip() == digest(golden_tensors())


@pytest.mark.parametrize("version", GOLDEN)
def test_the_golden_files_of_all_versions_stay_readable(version):
    data = GOLDEN[version].read_bytes()
    assert hashlib.sha256(data).hexdigest() == GOLDEN_SHA256[version]
    artifact = read_artifact(GOLDEN[version])
    assert artifact.version == version
    assert artifact.manifest == MANIFEST
    assert digest(artifact.tensors()) == digest(golden_tensors())


def test_the_encoder_writes_the_golden_file_of_its_version(records):
    golden = read_artifact(GOLDEN[VERSION]).records
    assert golden == records, "the encoder changed: files stay readable, but cached sizes do not hold"


@pytest.mark.parametrize("version", GOLDEN)
def test_the_slow_decoder_reads_the_golden_convolution(version):
    record = read_artifact(GOLDEN[version]).records["layer1.0.conv2.weight"]
    expected = golden_tensors()["layer1.0.conv2.weight"]
    scale_bytes = record[7]  # kind, 5 bytes of shape, channels, then the length of the scales
    assert record[:7] == bytes([2, 4, 16, 16, 3, 3, 16])
    body = record[8 + scale_bytes :]
    assert body[0] == 2
    assert slow_decoder.decode(body[1:], (16, 16, 3, 3)) == expected.symbols.reshape(-1).tolist()


def test_every_truncation_is_refused(file):
    for cut in range(len(file)):
        with pytest.raises(CorruptFileError):
            unpack_artifact(file[:cut])


def test_every_flipped_byte_is_refused(file):
    for at in range(len(file)):
        damaged = bytearray(file)
        damaged[at] ^= 0x20
        with pytest.raises(CorruptFileError) as caught:
            unpack_artifact(bytes(damaged))
        assert "\n" not in str(caught.value)


def test_trailing_bytes_are_refused_even_with_a_right_checksum(file):
    with pytest.raises(CorruptFileError, match="checksum"):
        unpack_artifact(file + b"\0")
    with pytest.raises(CorruptFileError, match="too many"):
        unpack_artifact(resealed(file[:-4] + b"\0" + file[-4:]))


def test_wrong_magic_and_newer_versions_say_so(file):
    with pytest.raises(CorruptFileError, match="no autocomp artifact"):
        unpack_artifact(b"PK\x03\x04" + file[4:])
    newer = file[:4] + bytes([VERSION + 1]) + file[5:]
    with pytest.raises(CorruptFileError, match="update autocomp"):
        unpack_artifact(resealed(newer))


def test_a_damaged_record_is_named(records):
    data = pack_artifact(MANIFEST, records)
    at = data.index(records["layer1.0.conv2.weight"]) + 100
    damaged = bytearray(data)
    damaged[at] ^= 1
    with pytest.raises(CorruptFileError, match=r"layer1\.0\.conv2\.weight"):
        unpack_artifact(resealed(bytes(damaged)))


def hostile(plain: bytes, size: int, rest: bytes = b"", packed: bytes | None = None) -> bytes:
    stored = plain if packed is None else packed
    return resealed(MAGIC + bytes([VERSION]) + put(size) + put(len(stored)) + stored + rest + bytes(4))


def test_hostile_headers_are_refused():
    packer = zlib.compressobj(9, zlib.DEFLATED, -15, zdict=HEAD_DICTIONARY)
    bomb = packer.compress(bytes(1 << 24)) + packer.flush()
    cases = [
        hostile(b"", 1000, packed=bomb),
        hostile(b"", 1 << 24, packed=bomb[:-3]),
        hostile(b"", 1 << 40, packed=bomb),
        hostile(b"", 50, packed=b"\xff" * 20),
        hostile(put(1 << 19) + b"{}", len(put(1 << 19)) + 2),
        hostile(b"\0[]", 3),
        hostile(b"\0" + b"[" * 100_000, 100_001),
        hostile(b"\0" + b'{"a":' * 50_000, 250_001),
        hostile(b'\0{"a":NaN}', 10),
        hostile(b"\0\xff\xfe", 3),
        hostile(b"\x01\x05\x01a{}", 6),
        hostile(b"\x02\0\x01a\x01\0{}", 8, rest=b"\0\0\0\0\0\0"),
        hostile(b"\x01\0\x01a{}", 6, rest=put(1 << 50) + b"\0\0"),
    ]
    for case in cases:
        with pytest.raises(CorruptFileError) as caught:
            unpack_artifact(case)
        assert "\n" not in str(caught.value)


def test_a_file_of_too_many_elements_is_refused(records):
    zeros = encode_tensor(QuantizedTensor(symbols=torch.zeros(3000, 1000, dtype=torch.int16), scale=torch.ones(1)))
    artifact = unpack_artifact(pack_artifact({}, {f"t{i}": zeros for i in range(4)}))
    with pytest.raises(CorruptFileError, match="12000000"):
        artifact.tensors(max_elements=10_000_000)


def test_a_hostile_record_behind_a_right_checksum_is_named():
    with pytest.raises(CorruptFileError, match="evil"):
        unpack_artifact(pack_artifact({}, {"evil": b"\x77junk"})).tensors()


def test_unwritable_places_are_storage_errors(tmp_path, records):
    with pytest.raises(StorageError, match="cannot write"):
        write_artifact(tmp_path / "missing" / "a.autocomp", MANIFEST, records)
    (tmp_path / "folder").mkdir()
    with pytest.raises(StorageError, match="cannot write"):
        write_artifact(tmp_path / "folder", MANIFEST, records)
    assert os.listdir(tmp_path) == ["folder"]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="skipped: no /dev/full on this system")
def test_a_full_disk_leaves_the_old_file(tmp_path, records, monkeypatch):
    path = tmp_path / "a.autocomp"
    write_artifact(path, {}, {})
    before = path.read_bytes()
    monkeypatch.setattr(os, "fsync", lambda handle: os.write(os.open("/dev/full", os.O_WRONLY), b"x"))
    with pytest.raises(StorageError, match="No space left"):
        write_artifact(path, MANIFEST, records)
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["a.autocomp"]


def test_missing_files_are_data_errors(tmp_path):
    with pytest.raises(DataError, match="check the path"):
        read_artifact(tmp_path / "none.autocomp")


def test_manifests_must_be_plain_json(records):
    with pytest.raises(ValueError, match="JSON"):
        pack_artifact({"x": float("nan")}, records)
    json.dumps(unpack_artifact(pack_artifact(MANIFEST, records)).manifest)
