"""Where networks are run to score them: the CPU, or an accelerator that torch knows."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch

from autocomp.core import seat
from autocomp.errors import UnsupportedError

CPU = torch.device("cpu")


def scoring_device(name: str) -> torch.device:
    """The device called ``name`` ("cpu", "cuda", "cuda:1", "mps", "xpu").

    Without an index workers of one machine take its devices in turn. (On a cluster each sees but its own.)

    Raises:
        UnsupportedError: torch sees no such device on this machine.
    """
    asked = torch.device(name)
    if asked == CPU:
        return CPU
    sees = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    count = torch.accelerator.device_count()
    if sees is None or sees.type != asked.type or (asked.index or 0) >= count:
        there = "no accelerator" if sees is None else f"{count} of {sees.type}"
        raise UnsupportedError(
            f"--device {name}: torch {torch.__version__} sees {there} on this machine; take --device cpu, or install "
            "the torch that is built for your device (pytorch.org/get-started)"
        )
    return asked if asked.index is not None else torch.device(asked.type, seat.taken() % count)


@contextlib.contextmanager
def exact(device: torch.device) -> Iterator[None]:
    """True float32, the same way each time, where ``device`` has a choice.

    An int8 engine's sums are simulated in float32, and TensorFloat-32, which torch allows cuDNN, keeps 10 bits of 23.
    """
    if device.type != "cuda":
        yield
        return
    cudnn: Any = torch.backends.cudnn
    parts = (torch.backends.cuda.matmul, cudnn.conv, cudnn.rnn)
    before = [part.fp32_precision for part in parts], cudnn.deterministic, cudnn.benchmark
    try:
        for part in parts:
            part.fp32_precision = "ieee"
        cudnn.deterministic, cudnn.benchmark = True, False
        yield
    finally:
        for part, precision in zip(parts, before[0], strict=True):
            part.fp32_precision = precision
        cudnn.deterministic, cudnn.benchmark = before[1:]
