"""Latency from a data sheet: each operation takes as long as its arithmetic or its memory traffic, whichever is longer.

Source: Williams, Waterman, Patterson, "Roofline: an insightful visual performance model for multicore architectures",
CACM 2009. Ours adds one launch overhead an operation and counts channels as the device pads them. Data sheets give what
no kernel exceeds, so the sum is closer to a lower bound than to a latency: its error is unknown.
"""

from __future__ import annotations

from collections.abc import Sequence

from autocomp.core.hardware import HardwareProfile
from autocomp.errors import UnsupportedError
from autocomp.profiling.model import Prediction
from autocomp.profiling.operations import MATRIX_KINDS, Operation

_BANDWIDTH, _OVERHEAD = "memory_bandwidth_bytes_per_s", "launch_overhead_s"


class Roofline:
    """A latency model of a profile's ``[numbers]``.

    Args:
        profile: needs ``peak_<precision>_ops_per_s`` of at least one precision.

    Raises:
        UnsupportedError: the profile has no peak throughput at all.
    """

    def __init__(self, profile: HardwareProfile) -> None:
        self.name = profile.name
        self.multiples = profile.channel_multiple
        numbers = {
            k.removeprefix("numbers."): v["value"] for k, v in profile.numbers.items() if k.startswith("numbers.")
        }
        self.peaks = {
            key.removeprefix("peak_").removesuffix("_ops_per_s"): float(value)
            for key, value in numbers.items()
            if key.startswith("peak_")
        }
        self.bandwidth: float | None = numbers.get(_BANDWIDTH)
        self.overhead_s: float | None = numbers.get(_OVERHEAD)
        if not self.peaks:
            raise UnsupportedError(
                f"target {self.name}: no latency can be predicted: the profile gives no [numbers] "
                "peak_<precision>_ops_per_s; add them with their source, or run autocomp profile on the device"
            )

    def predict(self, found: Sequence[Operation]) -> Prediction:
        """Sum over operations; error unknown.

        Raises:
            UnsupportedError: an operation runs in a precision whose peak throughput the profile does not give.
        """
        notes = []
        if self.bandwidth is None:
            notes.append(f"memory traffic is not counted: the profile gives no {_BANDWIDTH}")
        if self.overhead_s is None:
            notes.append(f"launch overhead is not counted: the profile gives no {_OVERHEAD}")
        if self.bandwidth is None and any(operation.kind not in MATRIX_KINDS for operation in found):
            notes.append("operations without multiply-accumulates are not counted")
        seconds = sum(self.seconds(operation) for operation in found)
        return Prediction(seconds=seconds, error=None, method="roofline", notes=tuple(notes))

    def seconds(self, operation: Operation) -> float:
        """Of one operation."""
        arithmetic = 2 * self.padded_macs(operation) / self._peak(operation) if operation.macs else 0.0
        moved = operation.read_bytes + operation.written_bytes + operation.weight_bytes
        traffic = moved / self.bandwidth if self.bandwidth is not None else 0.0
        return max(arithmetic, traffic) + (self.overhead_s or 0.0)

    def padded_macs(self, operation: Operation) -> int:
        """Multiply-accumulates with channels rounded up to the device's multiple."""
        multiple = self.multiples.get(_runs_in(operation), 1)
        inside, outside = operation.channels
        if multiple == 1 or operation.kind == "matmul" or not inside or not outside:
            return operation.macs
        if operation.groups > 1:  # the kernel runs along the channels of all groups
            return operation.macs * _rounded(outside, multiple) // outside
        return operation.macs * _rounded(inside, multiple) * _rounded(outside, multiple) // (inside * outside)

    def _peak(self, operation: Operation) -> float:
        precision = _runs_in(operation)
        if precision not in self.peaks:
            raise UnsupportedError(
                f"target {self.name}: {operation.name} runs in {precision} and the profile gives no "
                f"numbers.peak_{precision}_ops_per_s (it has {', '.join(sorted(self.peaks))}): add it with its source"
            )
        return self.peaks[precision]


def _runs_in(operation: Operation) -> str:
    """The arithmetic's precision: int4 weights are multiplied in the precision of the data."""
    return operation.reads[0].precision if operation.precision == "int4" else operation.precision


def _rounded(channels: int, multiple: int) -> int:
    return -(-channels // multiple) * multiple
