"""Variable-length integers and a reader that refuses to run past the end."""

from __future__ import annotations

from autocomp.errors import CorruptFileError

MAX_VARINT_BYTES = 10


def put(value: int) -> bytes:
    """LEB128: 7 bits a byte, least significant first, the top bit set on all but the last."""
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    out.append(value)
    return bytes(out)


def put_signed(value: int) -> bytes:
    """Zigzag: 0, −1, 1, −2, … as 0, 1, 2, 3, …"""
    return put(2 * value if value >= 0 else -2 * value - 1)


class Reader:
    """Reads a byte string from the front.

    Args:
        data: the bytes.
        what: names them in errors ("record", "header").
    """

    def __init__(self, data: bytes, what: str) -> None:
        self.data, self.what, self.at = data, what, 0

    def take(self, count: int) -> bytes:
        """The next ``count`` bytes; :class:`CorruptFileError` where there are fewer."""
        if count > len(self.data) - self.at:
            raise CorruptFileError(
                f"{self.what}: {count} bytes expected at byte {self.at} but only {len(self.data) - self.at} are there; "
                "the data is damaged, get it again"
            )
        self.at += count
        return self.data[self.at - count : self.at]

    def byte(self) -> int:
        return self.take(1)[0]

    def varint(self, limit: int) -> int:
        """An unsigned integer of at most ``limit``."""
        value = 0
        for shift in range(0, 7 * MAX_VARINT_BYTES, 7):
            byte = self.byte()
            value |= (byte & 127) << shift
            if byte < 128:
                break
        else:
            value = limit + 1
        if value > limit:
            raise CorruptFileError(
                f"{self.what}: number before byte {self.at} is larger than {limit}; the data is damaged, get it again"
            )
        return value

    def signed(self, limit: int) -> int:
        """A zigzag integer of magnitude at most ``limit``."""
        value = self.varint(2 * limit + 1)
        return -(value + 1 >> 1) if value & 1 else value >> 1

    def rest(self) -> bytes:
        return self.take(len(self.data) - self.at)

    def end(self) -> None:
        """:class:`CorruptFileError` where bytes are left."""
        if self.at != len(self.data):
            raise CorruptFileError(
                f"{self.what}: {len(self.data) - self.at} bytes too many; the data is damaged, get it again"
            )
