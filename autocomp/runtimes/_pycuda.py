"""pycuda behind the interface of :mod:`._cuda`: for those who have it; it captures no CUDA graphs.

The primary context is retained and made current around each call, never created: a second context beside torch's
ends in "context is destroyed". Source: documentation of pycuda 2025.1, ``Device.retain_primary_context``.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from autocomp.errors import RetryableError, UnsupportedError
from autocomp.runtimes._cuda import Launch

if TYPE_CHECKING:
    import numpy as np


class PyCudaDevice:
    """:class:`~autocomp.runtimes._cuda.Device` on pycuda."""

    def __init__(self) -> None:
        if importlib.util.find_spec("pycuda") is None:
            raise UnsupportedError("pycuda is not installed; pip install 'autocomp[pycuda]', or leave out cuda_binding")
        try:
            import pycuda.driver as driver
        except ImportError as error:  # its compiled part needs libcuda
            raise UnsupportedError(f"no NVIDIA driver here for pycuda ({error}); install the driver") from error
        driver.init()
        self._driver: Any = driver
        self._context: Any = driver.Device(0).retain_primary_context()
        self._memory: list[Any] = []
        self._streams: list[PyCudaStream] = []

    @contextmanager
    def current(self) -> Iterator[Any]:
        """pycuda.driver with the primary context current on this thread; its errors become autocomp's."""
        self._context.push()
        try:
            yield self._driver
        except self._driver.MemoryError as error:
            raise RetryableError(
                "CUDA: out of device memory; close other programs on the GPU", failure="oom"
            ) from error
        except self._driver.Error as error:
            text = " ".join(str(error).split())
            raise UnsupportedError(f"CUDA: {text}; check nvidia-smi and the system's log") from error
        finally:
            self._context.pop()

    def allocate(self, size_bytes: int) -> int:
        """See :class:`~autocomp.runtimes._cuda.Device`."""
        with self.current() as driver:
            self._memory.append(driver.mem_alloc(size_bytes))
        return int(self._memory[-1])

    def stream(self) -> PyCudaStream:
        """See :class:`~autocomp.runtimes._cuda.Device`."""
        self._streams.append(PyCudaStream(self))
        return self._streams[-1]

    def close(self) -> None:
        """See :class:`~autocomp.runtimes._cuda.Device`."""
        if self._context is None:
            return
        with self.current():
            for stream in self._streams:
                stream.close()
            for memory in self._memory:
                memory.free()
        self._streams, self._memory = [], []
        self._context.detach()
        self._context = None


class PyCudaStream:
    """:class:`~autocomp.runtimes._cuda.Stream` on pycuda."""

    def __init__(self, device: PyCudaDevice) -> None:
        self._device = device
        with device.current() as driver:
            self._stream: Any = driver.Stream()
            self._before, self._behind = driver.Event(), driver.Event()
        self.handle = int(self._stream.handle)

    def upload(self, address: int, array: np.ndarray) -> None:
        """See :class:`~autocomp.runtimes._cuda.Stream`."""
        with self._device.current() as driver:
            driver.memcpy_htod_async(address, array, self._stream)
            self._stream.synchronize()

    def download(self, array: np.ndarray, address: int) -> None:
        """See :class:`~autocomp.runtimes._cuda.Stream`."""
        with self._device.current() as driver:
            driver.memcpy_dtoh_async(array, address, self._stream)
            self._stream.synchronize()

    def elapsed_s(self, launch: Launch, times: int) -> float:
        """See :class:`~autocomp.runtimes._cuda.Stream`."""
        with self._device.current():
            self._before.record(self._stream)
            for _ in range(times):
                launch()
            self._behind.record(self._stream)
            self._behind.synchronize()
            return float(self._before.time_till(self._behind)) / 1000

    def captured(self, launch: Launch) -> Launch | str:
        """See :class:`~autocomp.runtimes._cuda.Stream`."""
        return "pycuda has no CUDA graphs"

    def close(self) -> None:
        """Wait for its work; pycuda frees stream and events with their objects."""
        self._stream.synchronize()
        self._stream = self._before = self._behind = None
