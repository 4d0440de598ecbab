"""The little of CUDA that timing an engine needs: memory, one stream, events, a captured graph.

Two bindings behind one interface: cuda-bindings (NVIDIA's own; has graphs) and pycuda (:mod:`._pycuda`, optional; has
none). Both use the device's primary context, which torch uses too. Nothing here runs without a driver; what is
asked about the device then says so in words.
Source: NVIDIA, "CUDA Runtime API" (version 13), stream, event, memory and graph management.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from autocomp.errors import RetryableError, UnsupportedError

if TYPE_CHECKING:
    import numpy as np

BINDINGS = ("cuda-bindings", "pycuda")
Launch = Callable[[], None]


class Device(Protocol):
    """The GPU that a process uses. Everything got from it is freed by ``close``."""

    def allocate(self, size_bytes: int) -> int:
        """Address of fresh device memory."""
        ...

    def stream(self) -> Stream:
        """A stream of its own: the default one makes TensorRT synchronize the whole device."""
        ...

    def close(self) -> None:
        """Free memory, streams, events and graphs. Twice is fine."""
        ...


class Stream(Protocol):
    """A queue of work on a device.

    Attributes:
        handle: of the stream, as an integer.
    """

    handle: int

    def upload(self, address: int, array: np.ndarray) -> None:
        """Copy a contiguous array to the device, and wait."""
        ...

    def download(self, array: np.ndarray, address: int) -> None:
        """Copy from the device into a contiguous array, and wait."""
        ...

    def elapsed_s(self, launch: Launch, times: int) -> float:
        """Seconds on the device between an event before and an event behind ``times`` launches."""
        ...

    def captured(self, launch: Launch) -> Launch | str:
        """``launch`` as one CUDA graph; or why it cannot be captured."""
        ...


@dataclass(frozen=True, kw_only=True)
class Gpu:
    """What a GPU is. ``capability`` is (8, 9) for SM89."""

    name: str
    uuid: str
    capability: tuple[int, int]
    memory_bytes: int


def open_device(binding: str = "cuda-bindings") -> Device:
    """The first visible GPU (``CUDA_VISIBLE_DEVICES`` chooses).

    Raises:
        UnsupportedError: the binding is not installed, or there is no device.
    """
    if binding == "pycuda":
        from autocomp.runtimes._pycuda import PyCudaDevice

        return PyCudaDevice()
    reason = no_gpu()
    if reason is not None:
        raise UnsupportedError(reason)
    return CudaDevice()


def no_gpu() -> str | None:
    """None where CUDA runs here; else what is missing and the remedy."""
    if not _installed():
        return "cuda-bindings is not installed; pip install cuda-bindings"
    from cuda.bindings import runtime

    error, driver = runtime.cudaDriverGetVersion()
    if int(error) != 0 or not driver:
        return "no NVIDIA driver here; install it (nvidia.com/drivers), or run on a machine that has one"
    error, count = runtime.cudaGetDeviceCount()
    if error == runtime.cudaError_t.cudaErrorInsufficientDriver:
        needed = runtime.cudaRuntimeGetVersion()[1]
        return (
            f"the NVIDIA driver runs CUDA up to {_cuda(driver)}, cuda-bindings here is CUDA {_cuda(needed)}: "
            f"update the driver, or pip install 'cuda-bindings<{needed // 1000}'"
        )
    if int(error) != 0 or not count:
        return f"the NVIDIA driver shows no GPU ({error.name}): check nvidia-smi and the variable CUDA_VISIBLE_DEVICES"
    return None


def gpu() -> Gpu | None:
    """The first visible GPU, None without one."""
    if no_gpu() is not None:
        return None
    from cuda.bindings import runtime

    properties = _done(runtime.cudaGetDeviceProperties(0), "cudaGetDeviceProperties")
    name = properties.name
    raw = bytes(properties.uuid.bytes)[:16].hex()
    return Gpu(
        name=name.decode() if isinstance(name, bytes) else str(name),
        uuid=f"GPU-{raw[:8]}-{raw[8:12]}-{raw[12:16]}-{raw[16:20]}-{raw[20:]}",
        capability=(int(properties.major), int(properties.minor)),
        memory_bytes=int(properties.totalGlobalMem),
    )


def driver_cuda_version() -> int:
    """The newest CUDA that the driver runs (13000 for 13.0); 0 without a driver."""
    if not _installed():
        return 0
    from cuda.bindings import runtime

    error, version = runtime.cudaDriverGetVersion()
    return int(version or 0) if int(error) == 0 else 0


def _installed() -> bool:
    return importlib.util.find_spec("cuda") is not None and importlib.util.find_spec("cuda.bindings") is not None


def _cuda(version: int) -> str:
    """13000 → "13.0"."""
    return f"{version // 1000}.{version % 1000 // 10}"


def _done(answer: tuple[Any, ...], what: str) -> Any:
    """The result of a call of cuda-bindings, which returns (error, result...).

    Raises:
        RetryableError: out of device memory.
        UnsupportedError: anything else, with CUDA's name for it.
    """
    error, *results = answer
    if int(error) != 0:
        if "MemoryAllocation" in error.name:
            raise RetryableError(f"CUDA: {what}: out of device memory; close other programs on the GPU", failure="oom")
        raise UnsupportedError(f"CUDA: {what} failed with {error.name}; check nvidia-smi and the system's log")
    return results[0] if results else None


class CudaDevice:
    """:class:`Device` on cuda-bindings; the primary context is current on every thread by itself."""

    def __init__(self) -> None:
        from cuda.bindings import runtime

        self._cuda: Any = runtime
        self._addresses: list[int] = []
        self._streams: list[CudaStream] = []
        _done(runtime.cudaSetDevice(0), "cudaSetDevice")

    def allocate(self, size_bytes: int) -> int:
        """See :class:`Device`."""
        address = int(_done(self._cuda.cudaMalloc(size_bytes), f"cudaMalloc of {size_bytes} bytes"))
        self._addresses.append(address)
        return address

    def stream(self) -> CudaStream:
        """See :class:`Device`."""
        self._streams.append(CudaStream(self._cuda))
        return self._streams[-1]

    def close(self) -> None:
        """See :class:`Device`."""
        for stream in self._streams:
            stream.close()
        for address in self._addresses:
            self._cuda.cudaFree(address)
        self._streams, self._addresses = [], []


class CudaStream:
    """:class:`Stream` on cuda-bindings."""

    def __init__(self, runtime: Any) -> None:
        self._cuda = runtime
        self._stream = _done(
            runtime.cudaStreamCreateWithFlags(runtime.cudaStreamNonBlocking), "cudaStreamCreateWithFlags"
        )
        self.handle = int(self._stream)
        self._before, self._behind = (_done(runtime.cudaEventCreate(), "cudaEventCreate") for _ in range(2))
        self._graphs: list[tuple[Any, Any]] = []

    def upload(self, address: int, array: np.ndarray) -> None:
        """See :class:`Stream`."""
        self._copy(address, array.ctypes.data, array.nbytes, self._cuda.cudaMemcpyKind.cudaMemcpyHostToDevice)

    def download(self, array: np.ndarray, address: int) -> None:
        """See :class:`Stream`."""
        self._copy(array.ctypes.data, address, array.nbytes, self._cuda.cudaMemcpyKind.cudaMemcpyDeviceToHost)

    def _copy(self, target: int, source: int, size_bytes: int, kind: Any) -> None:
        _done(self._cuda.cudaMemcpyAsync(target, source, size_bytes, kind, self._stream), "cudaMemcpyAsync")
        self._wait()

    def _wait(self) -> None:
        _done(self._cuda.cudaStreamSynchronize(self._stream), "cudaStreamSynchronize")

    def elapsed_s(self, launch: Launch, times: int) -> float:
        """See :class:`Stream`."""
        _done(self._cuda.cudaEventRecord(self._before, self._stream), "cudaEventRecord")
        for _ in range(times):
            launch()
        _done(self._cuda.cudaEventRecord(self._behind, self._stream), "cudaEventRecord")
        _done(self._cuda.cudaEventSynchronize(self._behind), "cudaEventSynchronize")
        return float(_done(self._cuda.cudaEventElapsedTime(self._before, self._behind), "cudaEventElapsedTime")) / 1000

    def captured(self, launch: Launch) -> Launch | str:
        """See :class:`Stream`."""
        mode = self._cuda.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal  # other threads may go on allocating
        _done(self._cuda.cudaStreamBeginCapture(self._stream, mode), "cudaStreamBeginCapture")
        failed = ""
        try:
            launch()
        except UnsupportedError as error:
            failed = str(error)
        ended, graph = self._cuda.cudaStreamEndCapture(self._stream)
        if failed or int(ended) != 0:
            self._cuda.cudaGetLastError()  # a capture that broke off leaves its error behind
            return failed or f"cudaStreamEndCapture failed with {ended.name}"
        made, executable = self._cuda.cudaGraphInstantiate(graph, 0)
        if int(made) != 0:
            self._cuda.cudaGraphDestroy(graph)
            return f"cudaGraphInstantiate failed with {made.name}"
        self._graphs.append((executable, graph))
        return lambda: _done(self._cuda.cudaGraphLaunch(executable, self._stream), "cudaGraphLaunch")

    def close(self) -> None:
        """Free it; its work is waited for."""
        self._cuda.cudaStreamSynchronize(self._stream)
        for executable, graph in self._graphs:
            self._cuda.cudaGraphExecDestroy(executable)
            self._cuda.cudaGraphDestroy(graph)
        for event in (self._before, self._behind):
            self._cuda.cudaEventDestroy(event)
        self._cuda.cudaStreamDestroy(self._stream)
