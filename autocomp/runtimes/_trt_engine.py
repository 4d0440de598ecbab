"""A TensorRT plan on its GPU: buffers bound once, one CUDA graph, timed between two events.

Source: NVIDIA TensorRT documentation, "Performance Best Practices" (CUDA graphs, events on a stream of one's own), and
the defaults of trtexec 11.
"""

from __future__ import annotations

import functools
import importlib
import math
import threading
from typing import TYPE_CHECKING, Any

from autocomp.errors import UnsupportedError
from autocomp.runtimes import _cuda, _nvml
from autocomp.runtimes._cuda import Device, Launch

if TYPE_CHECKING:
    import numpy as np

PAIR_S = 0.2e-3
"""Shortest time between the two events of a sample: events resolve about half a microsecond (CUDA Runtime API,
``cudaEventElapsedTime``), so a sample is good to a few thousandths."""
_WARM_UP_RUNS = 3


class TensorRTEngine:
    """A :class:`~autocomp.core.hardware.Engine`.

    Args:
        device: closed with the engine.
        module: the library's Python module.
        title: the library's name, for messages.
        plan: serialized.
        example: [n, ...], the input that is timed; n is the plan's batch size.
        graph: capture the work as a CUDA graph where that is possible.

    Attributes:
        batch_size: that the plan was built for.
        launches: inferences in one sample of :meth:`time_once_s`.
        no_graph: why the work is launched kernel by kernel; None where it is one CUDA graph.

    Raises:
        UnsupportedError: the plan is damaged, of another version or device, or does not fit ``example``.
    """

    def __init__(
        self, device: Device, module: str, title: str, plan: bytes, example: np.ndarray, *, graph: bool = True
    ) -> None:
        import numpy as np

        self._title, self._device = title, device
        trt, log = importlib.import_module(module), logger(module)
        log.lines.clear()
        self._runtime: Any = trt.Runtime(log)
        self._engine: Any = self._runtime.deserialize_cuda_engine(plan) if plan else None
        if self._engine is None:
            raise UnsupportedError(f"{title} cannot read the plan: {log.last()}; build it again on this machine")
        self._context: Any = self._engine.create_execution_context()
        if self._context is None:
            raise UnsupportedError(f"{title} cannot run the plan: {log.last()}; close other programs on the GPU")
        self._log = log
        self._input, self._output = _names(trt, self._engine, title)
        shape = tuple(self._engine.get_tensor_shape(self._input))
        self.batch_size = int(shape[0])
        self._in = np.zeros(shape, trt.nptype(self._engine.get_tensor_dtype(self._input)))
        self._out = np.zeros(
            tuple(self._engine.get_tensor_shape(self._output)), trt.nptype(self._engine.get_tensor_dtype(self._output))
        )
        self._example = fitted(example, self._in, title)
        self._stream = device.stream()
        self._at_input, self._at_output = (device.allocate(max(a.nbytes, 1)) for a in (self._in, self._out))
        self._context.set_tensor_address(self._input, self._at_input)
        self._context.set_tensor_address(self._output, self._at_output)
        self._holds_example = False
        self._launch, self.no_graph = self._prepared(graph)
        self.launches = launches_for(self._sample_s(_WARM_UP_RUNS))

    def run(self, inputs: np.ndarray) -> np.ndarray:
        """Outputs [n, ...] for inputs [n, ...], any n: in batches of the plan's size, the last one padded."""
        import numpy as np

        self._open()
        self._holds_example = False
        parts = []
        for batch, count in batches(inputs, self._in, self._title):
            self._stream.upload(self._at_input, batch)
            self._launch()
            self._stream.download(self._out, self._at_output)
            parts.append(self._out[:count].copy())
        return np.concatenate(parts)

    def time_once_s(self) -> float:
        """Seconds of one inference on the example: ``launches`` of them between two events, divided by as many."""
        self._open()
        if not self._holds_example:
            self._stream.upload(self._at_input, self._example)
            self._holds_example = True
        return self._stream.elapsed_s(self._launch, self.launches) / self.launches

    def conditions(self) -> dict[str, Any]:
        """How a sample is taken, and the state of the GPU."""
        gpu = _cuda.gpu()
        return {"launches": self.launches, "no_graph": self.no_graph, **_nvml.conditions(gpu.uuid if gpu else None)}

    def energy_per_run_j(self, least_s: float) -> float | None:
        """See :class:`autocomp.core.hardware.CountsEnergy`."""
        gpu = _cuda.gpu()
        return _nvml.energy_per_run_j(self.time_once_s, self.launches, least_s, gpu.uuid if gpu else None)

    def close(self) -> None:
        """Free context, engine and device memory. Twice is fine."""
        if self._device is None:
            return
        self._context = self._engine = self._runtime = None
        self._device.close()
        self._device = None  # type: ignore[assignment]

    def _open(self) -> None:
        if self._device is None:
            raise UnsupportedError(f"{self._title}: the engine is closed; build it again")

    def _enqueue(self) -> None:
        if not self._context.execute_async_v3(self._stream.handle):
            raise UnsupportedError(f"{self._title} cannot run the plan: {self._log.last()}; build it again")

    def _prepared(self, graph: bool) -> tuple[Launch, str | None]:
        """What is launched, after the first run outside a graph, in which TensorRT allocates and compiles."""
        self._stream.upload(self._at_input, self._example)
        self._holds_example = True
        self._stream.elapsed_s(self._enqueue, 1)
        if not graph:
            return self._enqueue, "switched off by the profile"
        found = self._stream.captured(self._enqueue)
        return (self._enqueue, found) if isinstance(found, str) else (found, None)

    def _sample_s(self, runs: int) -> float:
        """Shortest of some single inferences, seconds: the first ones are slow, and too many launches cost little."""
        return min(self._stream.elapsed_s(self._launch, 1) for _ in range(runs))


def launches_for(single_s: float) -> int:
    """Launches that fill :data:`PAIR_S`, one of them taking ``single_s``."""
    return max(1, math.ceil(PAIR_S / max(single_s, 1e-7)))


def fitted(example: np.ndarray, like: np.ndarray, title: str) -> np.ndarray:
    """``example`` contiguous and of the type of ``like``; UnsupportedError where the shape is another."""
    import numpy as np

    if example.shape != like.shape:
        raise UnsupportedError(
            f"{title}: the plan takes inputs {list(like.shape)}, these are {list(example.shape)}; build it for them"
        )
    return np.ascontiguousarray(example, like.dtype)


def batches(inputs: np.ndarray, like: np.ndarray, title: str) -> list[tuple[np.ndarray, int]]:
    """``inputs`` [n, ...] in pieces of the shape and type of ``like``, the last one padded with zeros, and how many
    rows of each count."""
    import numpy as np

    if inputs.ndim != like.ndim or inputs.shape[1:] != like.shape[1:] or not len(inputs):
        raise UnsupportedError(
            f"{title}: the plan takes inputs {['n', *like.shape[1:]]}, these are {list(inputs.shape)}; change them"
        )
    found = []
    for start in range(0, len(inputs), len(like)):
        part = inputs[start : start + len(like)]
        batch = np.zeros_like(like)
        batch[: len(part)] = part
        found.append((batch, len(part)))
    return found


def _names(trt: Any, engine: Any, title: str) -> tuple[str, str]:
    """The only input, and the first output."""
    names = [engine.get_tensor_name(i) for i in range(engine.num_io_tensors)]
    inputs = [n for n in names if engine.get_tensor_mode(n) == trt.TensorIOMode.INPUT]
    outputs = [n for n in names if engine.get_tensor_mode(n) == trt.TensorIOMode.OUTPUT]
    if len(inputs) != 1 or not outputs:
        raise UnsupportedError(f"{title}: the plan has inputs {inputs} and outputs {outputs}; engines take one input")
    return inputs[0], outputs[0]


@functools.cache
def logger(module: str) -> Any:
    """The process's logger for the library, which keeps the pointer to the first it is given."""
    trt = importlib.import_module(module)

    class Log(trt.ILogger):  # type: ignore[misc, name-defined]
        """Keeps errors; called from any thread."""

        def __init__(self) -> None:
            super().__init__()
            self.lines: list[str] = []
            self._lock = threading.Lock()

        def log(self, severity: Any, msg: str) -> None:
            if severity.name in ("ERROR", "INTERNAL_ERROR"):
                with self._lock:
                    self.lines.append(" ".join(str(msg).split()))

        def last(self) -> str:
            """The first error since the lines were cleared: those behind it follow from it."""
            return self.lines[0][:300] if self.lines else "the library gives no reason"

    return Log()
