"""Sizes, durations and drops as people write them: "4MB", "2ms", "1%"."""

from __future__ import annotations

import math
import re
from typing import Any

from autocomp.errors import ConfigError

_SIZE_UNITS = {
    "": 1,
    "b": 1,
    **{f"{p}b": 1000**i for i, p in enumerate("kmgt", 1)},
    **{f"{p}ib": 1024**i for i, p in enumerate("kmgt", 1)},
}
_TIME_UNITS = {"us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0, "": 1.0, "min": 60.0, "h": 3600.0}
_NUMBER = re.compile(r"\s*([+-]?(?:\d[\d_]*\.?\d*|\.\d+)(?:e[+-]?\d+)?)\s*([a-zA-Zµ%]*)\s*", re.ASCII | re.IGNORECASE)


def split(value: Any) -> tuple[float, str] | None:
    """Number and unit of "4MB", None where there is no finite number."""
    match = _NUMBER.fullmatch(str(value))
    if match is None or isinstance(value, bool):
        return None
    number = float(match.group(1))
    return (number, match.group(2)) if math.isfinite(number) else None


def parse_size(value: Any, name: str = "size") -> int:
    """Bytes from "4MB" (4,000,000), "4MiB" (4,194,304), "512kB", "4000000" or a number; fractions are cut off.

    Raises:
        ConfigError: no size, or less than one byte.
    """
    parts = split(value)
    unit = _SIZE_UNITS.get(parts[1].lower()) if parts else None
    if parts is None or unit is None:
        raise ConfigError(f"{name} = {value!r}: not a size; write 4MB (4,000,000 bytes), 4MiB, 512kB or plain bytes")
    size = int(parts[0] * unit)
    if size < 1:
        raise ConfigError(f"{name} = {value!r}: a size is at least 1 byte; write 4MB, 4MiB, 512kB or plain bytes")
    return size


def parse_budget(value: Any, name: str = "budget") -> tuple[int | None, str]:
    """(bytes, text); bytes is None for a percentage, which needs the model's size.

    Raises:
        ConfigError: neither a size nor a percentage, or not above 0.
    """
    parts = split(value)
    if parts is None or parts[1] != "%":
        size = parse_size(value, name)
        return size, str(value).strip()
    if parts[0] <= 0:
        raise ConfigError(f"{name} = {value!r}: must be above 0 %; write 12% (of the float32 file) or 4MB")
    return None, f"{parts[0]:.12g}%"


def parse_duration(value: Any, name: str = "duration") -> float:
    """Seconds from "2ms", "1.5s", "300us", "10min", "1h" or a number of seconds.

    Raises:
        ConfigError: no duration, or not above 0.
    """
    parts = split(value)
    unit = _TIME_UNITS.get(parts[1].lower()) if parts else None
    if parts is None or unit is None:
        raise ConfigError(f"{name} = {value!r}: not a duration; write 2ms, 1.5s, 300us or 10min")
    if parts[0] <= 0:
        raise ConfigError(f"{name} = {value!r}: must be above 0; write 2ms, 1.5s, 300us or 10min")
    return parts[0] * unit if unit >= 1 else parts[0] / round(1 / unit)


def parse_drop(value: Any, name: str = "max_drop") -> float:
    """Loss of the metric from "1%" (0.01) or "0.01".

    Raises:
        ConfigError: no number, or below 0.
    """
    parts = split(value)
    if parts is None or parts[1] not in ("", "%"):
        raise ConfigError(f"{name} = {value!r}: not a drop; write 1% (one point of the metric) or 0.01")
    if parts[0] < 0:
        raise ConfigError(f"{name} = {value!r}: must be 0 or more; write 1% or 0.01")
    return parts[0] / 100 if parts[1] == "%" else parts[0]
