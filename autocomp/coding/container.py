"""The artifact file: header, manifest, records, checksums (layout: docs/format.md).

Reading checks everything before anything is allocated by what the file says, executes nothing, and
answers every damage with one :class:`~autocomp.errors.CorruptFileError`.
"""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from autocomp.coding.tensors import decode_tensor, elements
from autocomp.coding.varint import Reader, put
from autocomp.errors import CorruptFileError, DataError, StorageError

if TYPE_CHECKING:
    from autocomp.core.encodings import Encoding

MAGIC = b"\xacAC\n"
VERSION = 2
MAX_HEADER_BYTES = 1 << 24  # of names and manifest, uncompressed
MAX_RECORDS = 1 << 20
MAX_TOTAL_ELEMENTS = 1 << 28
_PAIRS = [f'["layer{s}.{b}.conv{c}","layer{s}.{b}.bn{c}"],' for s in (4, 3, 2, 1) for b in (1, 0) for c in (1, 2)]
HEAD_DICTIONARY = (
    "features.classifier.encoder.decoder.blocks.stages.stem.head.proj.attention.self_attn.qkv.mlp.fc1.fc2.norm1.norm2."
    'conv.bn.linear."downsample.0","downsample.1"],shortcut.0","shortcut.1"],weight.bias.conv1.weight.bias.conv2.fc.'
    '{"activations":{},"classes":10,"folds":[["conv1","bn1"],' + "".join(_PAIRS) + '],"input":[3,32,32],'
    '"model":"torchvision.models:resnet18"}'
).encode()  # part of the format: what most heads repeat, so that a small network's head is short
_CHECK_BYTES = 4
_RECORD_CHECK_BYTES = 2
_MASK = (1 << 8 * _RECORD_CHECK_BYTES) - 1


@dataclass(frozen=True, kw_only=True)
class Artifact:
    """A file read and checked.

    Attributes:
        manifest: what was stored beside the tensors.
        records: tensor name → record, in file order.
        version: of the format.
        file_bytes: size of the whole file.
    """

    manifest: dict[str, Any]
    records: dict[str, bytes]
    version: int
    file_bytes: int

    def tensors(self, max_elements: int = MAX_TOTAL_ELEMENTS) -> dict[str, Encoding]:
        """Every record decoded, in file order.

        Raises:
            CorruptFileError: a record that is none, or more than ``max_elements`` numbers altogether.
        """
        total = 0
        for name, record in self.records.items():
            with _named(name):
                total += elements(record)
        if total > max_elements:
            raise CorruptFileError(f"artifact: {total} numbers in all tensors; at most {max_elements}: do not trust it")
        result = {}
        for name, record in self.records.items():
            with _named(name):
                result[name] = decode_tensor(record)
        return result


def pack_artifact(manifest: Mapping[str, Any], records: Mapping[str, bytes]) -> bytes:
    """The bytes of a file; equal input gives equal bytes (with the same zlib).

    Raises:
        ValueError: a manifest that is not plain JSON (NaN included), or too large for a reader.
    """
    parts = [_head(manifest, list(records))]
    for record in records.values():
        parts.append(put(len(record)) + (zlib.crc32(record) & _MASK).to_bytes(_RECORD_CHECK_BYTES, "little"))
    parts.extend(records.values())
    body = b"".join(parts)
    return body + zlib.crc32(body).to_bytes(_CHECK_BYTES, "little")


def overhead_bytes(manifest: Mapping[str, Any], names: Sequence[str], lengths: Iterable[int]) -> int:
    """Exact file size less the records: what ``pack_artifact`` adds for these names and record lengths."""
    directory = sum(stored_bytes(length) - length for length in lengths)
    return len(_head(manifest, names)) + directory + _CHECK_BYTES


def stored_bytes(length: int) -> int:
    """What a record of so many bytes takes in a file, its place in the directory included."""
    return length + len(put(length)) + _RECORD_CHECK_BYTES


def write_artifact(path: str | os.PathLike[str], manifest: Mapping[str, Any], records: Mapping[str, bytes]) -> int:
    """Write a file in one step (it is there whole or not at all); returns its size on disk in bytes.

    Raises:
        StorageError: the folder is missing, full or not writable.
    """
    target = Path(path)
    data = pack_artifact(manifest, records)
    temporary = target.with_name(f".{target.name}.{os.getpid()}-{os.urandom(4).hex()}.tmp")
    try:
        try:
            with open(temporary, "xb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, target)
        finally:
            temporary.unlink(missing_ok=True)
        _sync_folder(target.parent)
        return os.stat(target).st_size
    except OSError as error:
        raise StorageError(
            f"cannot write {target} ({len(data)} bytes): {error.strerror or error}; free or open up the folder"
        ) from error


def read_artifact(path: str | os.PathLike[str]) -> Artifact:
    """Read and check a file.

    Raises:
        DataError: no such file, or it cannot be opened.
        CorruptFileError: it is damaged, no artifact, or of a newer format.
    """
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror or error}; check the path") from error
    with _named(str(path)):
        return unpack_artifact(data)


def unpack_artifact(data: bytes) -> Artifact:
    """What :func:`pack_artifact` made; :class:`CorruptFileError` for anything else."""
    if not data.startswith(MAGIC):
        raise CorruptFileError(f"no autocomp artifact: it begins with {data[:4]!r}, not {MAGIC!r}")
    reader = Reader(data[:-_CHECK_BYTES], "artifact")
    reader.take(len(MAGIC))
    version = reader.byte()
    if version > VERSION:
        raise CorruptFileError(f"format version {version}; this autocomp reads up to {VERSION}: update autocomp")
    if version == 0 or zlib.crc32(reader.data) != int.from_bytes(data[-_CHECK_BYTES:], "little"):
        raise CorruptFileError("artifact: the checksum of the file does not match; it is damaged, get it again")
    size = reader.varint(MAX_HEADER_BYTES)
    names, manifest = _read_head(_inflate(reader.take(reader.varint(MAX_HEADER_BYTES)), size))
    directory = [(reader.varint(len(data)), reader.take(_RECORD_CHECK_BYTES)) for _ in names]
    records = {}
    for name, (length, check) in zip(names, directory, strict=True):
        record = reader.take(length)
        if (zlib.crc32(record) & _MASK).to_bytes(_RECORD_CHECK_BYTES, "little") != check:
            raise CorruptFileError(f"tensor {name!r}: its checksum does not match; the file is damaged, get it again")
        records[name] = record
    reader.end()
    return Artifact(manifest=manifest, records=records, version=version, file_bytes=len(data))


def _head(manifest: Mapping[str, Any], names: Sequence[str]) -> bytes:
    """Magic, version, and names and manifest, deflated where that is smaller."""
    text = json.dumps(manifest, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    plain = put(len(names)) + b"".join(_front_coded(names)) + text.encode()
    if len(plain) > MAX_HEADER_BYTES or len(names) > MAX_RECORDS:
        raise ValueError(f"manifest and names take {len(plain)} bytes; at most {MAX_HEADER_BYTES}")
    packer = zlib.compressobj(9, zlib.DEFLATED, -15, 9, zdict=HEAD_DICTIONARY)
    packed = packer.compress(plain) + packer.flush()
    stored = packed if len(packed) < len(plain) else plain
    return MAGIC + bytes([VERSION]) + put(len(plain)) + put(len(stored)) + stored


def _front_coded(names: Sequence[str]) -> Iterator[bytes]:
    """Each name as: bytes shared with the one before, bytes that follow, those bytes."""
    last = b""
    for name in names:
        text = name.encode()
        pairs = enumerate(zip(last, text, strict=False))
        shared = next((i for i, (a, b) in pairs if a != b), min(len(last), len(text)))
        yield put(shared) + put(len(text) - shared) + text[shared:]
        last = text


def _inflate(stored: bytes, size: int) -> bytes:
    """The plain header of ``size`` bytes; never makes more than that."""
    if len(stored) == size:
        return stored
    unpacker = zlib.decompressobj(-15, zdict=HEAD_DICTIONARY)
    try:
        plain = unpacker.decompress(stored, size + 1)
    except zlib.error as error:
        raise CorruptFileError(f"header: cannot be inflated ({error}); the file is damaged, get it again") from None
    if len(plain) != size or not unpacker.eof or unpacker.unused_data:
        raise CorruptFileError(f"header: does not inflate to {size} bytes; the file is damaged, get it again")
    return plain


def _read_head(plain: bytes) -> tuple[list[str], dict[str, Any]]:
    """(names, manifest)."""
    reader = Reader(plain, "header")
    names, last = [], b""
    for _ in range(reader.varint(min(MAX_RECORDS, len(plain)))):
        shared = reader.varint(len(last))
        last = last[:shared] + reader.take(reader.varint(len(plain)))
        names.append(last)
    try:
        decoded = [name.decode() for name in names]
        manifest = json.loads(reader.rest().decode(), parse_constant=_refuse)
    except (ValueError, RecursionError) as error:
        raise CorruptFileError(f"header: names or manifest unreadable ({error}); get the file again") from None
    if len(set(decoded)) != len(decoded) or not isinstance(manifest, dict):
        raise CorruptFileError("header: a name twice, or a manifest that is no object; get the file again")
    return decoded, manifest


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is not JSON")


def _sync_folder(folder: Path) -> None:
    """Make the new name durable, where the system lets folders be opened."""
    if os.name == "posix":
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


@contextmanager
def _named(name: str) -> Iterator[None]:
    """Put ``name`` before the message of a :class:`CorruptFileError`."""
    try:
        yield
    except CorruptFileError as error:
        raise CorruptFileError(f"{name}: {error}") from error
