"""Tensors kept in memory up to a limit, the least recently used given up first."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping

from autocomp.core.encodings import Encoding
from autocomp.core.steps import Choice

LIMIT_BYTES = 1 << 29  # 512 MiB


class Kept:
    """Encodings by (unit, storage choice).

    Args:
        limit_bytes: of all tensors together; at least the last entry is kept.
    """

    def __init__(self, limit_bytes: int = LIMIT_BYTES) -> None:
        self._limit = limit_bytes
        self._entries: OrderedDict[tuple[str, str], dict[str, Encoding]] = OrderedDict()
        self._bytes = 0

    def get(self, unit: str, choice: Choice) -> dict[str, Encoding] | None:
        """State-dict key → encoding, or None. Treat the tensors as read only."""
        key = (unit, choice.key())
        if key not in self._entries:
            return None
        self._entries.move_to_end(key)
        return dict(self._entries[key])

    def put(self, unit: str, choice: Choice, tensors: Mapping[str, Encoding]) -> None:
        """Keep ``tensors``."""
        key = (unit, choice.key())
        self._bytes += _size(tensors) - _size(self._entries.pop(key, {}))
        self._entries[key] = dict(tensors)
        while self._bytes > self._limit and len(self._entries) > 1:
            self._bytes -= _size(self._entries.popitem(last=False)[1])

    def forget(self, unit: str) -> None:
        """Give up every tensor of a unit."""
        for key in [k for k in self._entries if k[0] == unit]:
            self._bytes -= _size(self._entries.pop(key))


def _size(tensors: Mapping[str, Encoding]) -> int:
    return sum(encoding.memory_bytes for encoding in tensors.values())
