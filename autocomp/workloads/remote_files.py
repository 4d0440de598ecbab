"""Data at an address (``s3://``, ``gs://``, ``https://``, ``file://``, ...): copied to this machine once.

Only the program that searches needs the copy: workers on other machines are sent what it read.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from pathlib import Path

from autocomp.environment import cache_folder
from autocomp.errors import DataError, RetryableError, UnsupportedError


def is_address(text: str) -> bool:
    """Whether ``text`` is an address and no path."""
    scheme, found, _ = text.partition("://")
    return bool(found) and scheme.replace("+", "").isalnum()


def local_copy(address: str, what: str) -> Path:
    """The file or folder at ``address``, as a copy under the user's cache folder (``AUTOCOMP_CACHE``).

    A copy is used again while names and sizes there are the same, and for single files what the store tells of their
    version. It is read by fsspec (https://filesystem-spec.readthedocs.io), which finds access keys in the usual places.

    Args:
        address: of a file, or of a folder with everything below it.
        what: for messages ("data imagefolder:s3://...").

    Raises:
        UnsupportedError: no reader for this kind of address is installed.
        DataError: there is nothing, or it may not be read.
        RetryableError: the connection failed.
    """
    import fsspec

    try:
        system, path = fsspec.core.url_to_fs(address)
        found = system.find(path, detail=True)
        single = system.isfile(path)
    except (ImportError, ValueError) as error:
        raise UnsupportedError(f"{what}: {_line(error)}") from None
    except PermissionError as error:
        raise DataError(f"{what}: may not be read ({_line(error)}); check the access keys") from None
    except OSError as error:
        raise RetryableError(f"{what}: cannot be reached ({_line(error)}); try again") from None
    if not found:
        raise DataError(f"{what}: there is nothing at {address}")
    listing = sorted((name, info.get("size")) for name, info in found.items())
    version = system.ukey(path) if single else ""
    key = hashlib.sha256(repr((address, listing, version)).encode()).hexdigest()[:24]
    place = cache_folder() / "data" / key
    name = path.rstrip("/").rpartition("/")[2] or "data"
    if not (place / name).exists():
        _fetch(system, path, place, name, what)
    return place / name


def _fetch(system: object, path: str, place: Path, name: str, what: str) -> None:
    """Copy beside its place, then move: a copy that was interrupted is no copy."""
    place.parent.mkdir(parents=True, exist_ok=True)
    part = Path(tempfile.mkdtemp(dir=place.parent, prefix="part-"))
    try:
        system.get(path, str(part / name), recursive=True)  # type: ignore[attr-defined]
        if not place.exists():  # else another process was faster
            os.replace(part, place)
    except PermissionError as error:
        raise DataError(f"{what}: may not be read ({_line(error)}); check the access keys") from None
    except OSError as error:
        raise RetryableError(
            f"{what}: could not be copied ({_line(error)}); try again, or set AUTOCOMP_CACHE to a folder with room"
        ) from None
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
