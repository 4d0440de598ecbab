"""Entropy coders of integer arrays, one module each, found by file name.

Each module has ``CODE`` (its number in a record), ``encode(symbols) -> bytes``, ``decode(data, shape) ->``
int32 array, and ``size(symbols) -> int | None``: the exact coded bytes where they are known without
coding (None: they are not), so that losers are never coded. Symbols are int32 within ±2**17.
"""

from __future__ import annotations

from functools import cache
from typing import Protocol, cast

from autocomp.coding.contexts import Ints
from autocomp.core.plugins import find, names


class Coder(Protocol):
    """What a module of this package offers."""

    CODE: int

    def encode(self, symbols: Ints) -> bytes:
        """The payload of an int32 array of any shape."""
        ...

    def decode(self, data: bytes, shape: tuple[int, ...]) -> Ints:
        """The array; :class:`~autocomp.errors.CorruptFileError` where ``data`` is no such payload."""
        ...

    def size(self, symbols: Ints) -> int | None:
        """``len(encode(symbols))`` where it is known at once; -1 where this coder cannot code them."""
        ...


@cache
def coders() -> dict[str, Coder]:
    """All coders by name."""
    return {name: cast(Coder, find(__name__, "coder", name)) for name in names(__name__)}


@cache
def coder_names() -> dict[int, str]:
    """Name of each coder by its number in a record."""
    return {coder.CODE: name for name, coder in coders().items()}
