"""What an engine does around the device. The device here is memory of this process, the plan a doubling; on a GPU
the contract of runtimes runs (tests/runtimes/test_contract.py)."""

from __future__ import annotations

import sys
import types
from collections.abc import Iterator
from enum import Enum
from typing import Any

import numpy as np
import pytest

from autocomp.errors import UnsupportedError
from autocomp.runtimes._cuda import Launch
from autocomp.runtimes._trt_engine import PAIR_S, TensorRTEngine, batches, fitted, launches_for, logger

LIKE = np.zeros((4, 2), np.float32)


class Memory:
    """A device whose addresses are those of numpy arrays; a launch takes ``launch_s``."""

    def __init__(self, launch_s: float = 1e-5, capture: bool = True) -> None:
        self.arrays: dict[int, np.ndarray] = {}
        self.launch_s, self.capture, self.closed = launch_s, capture, 0
        self.uploads = 0
        self.handle = 7

    def allocate(self, size_bytes: int) -> int:
        address = 1000 * (len(self.arrays) + 1)
        self.arrays[address] = np.zeros(size_bytes, np.uint8)
        return address

    def stream(self) -> Memory:
        return self

    def close(self) -> None:
        self.closed += 1

    def upload(self, address: int, array: np.ndarray) -> None:
        self.uploads += 1
        self.arrays[address][:] = array.view(np.uint8).ravel()

    def download(self, array: np.ndarray, address: int) -> None:
        array.view(np.uint8).ravel()[:] = self.arrays[address]

    def elapsed_s(self, launch: Launch, times: int) -> float:
        for _ in range(times):
            launch()
        return self.launch_s * times

    def captured(self, launch: Launch) -> Launch | str:
        return launch if self.capture else "not capturable"


class Mode(Enum):
    INPUT, OUTPUT = 0, 1


class Doubling:
    """Engine and context in one: y = 2 x over [4, 2]."""

    num_io_tensors = 2

    def __init__(self, memory: Memory) -> None:
        self.memory, self.addresses = memory, dict[str, int]()

    def create_execution_context(self) -> Doubling:
        return self

    def get_tensor_name(self, index: int) -> str:
        return "xy"[index]

    def get_tensor_mode(self, name: str) -> Mode:
        return Mode.INPUT if name == "x" else Mode.OUTPUT

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return (4, 2)

    def get_tensor_dtype(self, name: str) -> type:
        return np.float32

    def set_tensor_address(self, name: str, address: int) -> bool:
        self.addresses[name] = address
        return True

    def execute_async_v3(self, handle: int) -> bool:
        values = self.memory.arrays[self.addresses["x"]].view(np.float32)
        self.memory.arrays[self.addresses["y"]].view(np.float32)[:] = 2 * values
        return handle == 7


@pytest.fixture
def library() -> Iterator[types.ModuleType]:
    """A module in the place of TensorRT's; plans other than b"plan" are damaged."""
    module: Any = types.ModuleType("pretended_tensorrt")
    module.memory = Memory()

    class ILogger:
        pass

    class Runtime:
        def __init__(self, log: Any) -> None:
            self.log = log

        def deserialize_cuda_engine(self, plan: bytes) -> Doubling | None:
            if plan == b"plan":
                return Doubling(module.memory)
            for text in ("Magic tag does not match\n", "deserialization failed"):
                self.log.log(types.SimpleNamespace(name="ERROR"), text)
            return None

    module.ILogger, module.Runtime, module.TensorIOMode, module.nptype = ILogger, Runtime, Mode, lambda t: t
    sys.modules[module.__name__] = module
    yield module
    del sys.modules[module.__name__]
    logger.cache_clear()


def engine(library: Any, plan: bytes = b"plan", *, graph: bool = True) -> TensorRTEngine:
    example = np.full((4, 2), 3.0, np.float32)
    return TensorRTEngine(library.memory, library.__name__, "TensorRT", plan, example, graph=graph)


def test_any_number_of_inputs(library: Any) -> None:
    built = engine(library)
    for n in (1, 3, 4, 9):
        inputs = np.arange(2 * n, dtype=np.float64).reshape(n, 2)
        outputs = built.run(inputs)
        np.testing.assert_array_equal(outputs, 2 * inputs.astype(np.float32))
    assert built.batch_size == 4


def test_timing_uses_the_example_again(library: Any) -> None:
    built = engine(library)
    assert built.launches == 20  # 10 us each, 0.2 ms between the events
    assert built.time_once_s() == pytest.approx(1e-5)
    uploads = library.memory.uploads
    built.time_once_s()
    assert library.memory.uploads == uploads
    built.run(np.zeros((1, 2), np.float32))
    built.time_once_s()
    assert library.memory.uploads == uploads + 2  # the run's input, then the example
    np.testing.assert_array_equal(built.run(np.full((4, 2), 3.0)), np.full((4, 2), 6.0))


def test_graph_or_why_not(library: Any) -> None:
    assert engine(library).no_graph is None
    assert engine(library, graph=False).no_graph == "switched off by the profile"
    library.memory.capture = False
    assert engine(library).no_graph == "not capturable"


def test_damaged_plan_in_one_line(library: Any) -> None:
    with pytest.raises(UnsupportedError, match="cannot read the plan: Magic tag does not match; build it again"):
        engine(library, b"damaged")
    with pytest.raises(UnsupportedError, match="cannot read the plan"):
        engine(library, b"")


def test_closed(library: Any) -> None:
    built = engine(library)
    built.close()
    built.close()
    assert library.memory.closed == 1
    with pytest.raises(UnsupportedError, match="closed"):
        built.time_once_s()
    with pytest.raises(UnsupportedError, match="closed"):
        built.run(LIKE)


def test_batches() -> None:
    parts = batches(np.arange(12, dtype=np.float32).reshape(6, 2), LIKE, "TensorRT")
    assert [count for _, count in parts] == [4, 2]
    np.testing.assert_array_equal(parts[1][0], [[8, 9], [10, 11], [0, 0], [0, 0]])
    for wrong in (np.zeros((3, 3)), np.zeros(2), np.zeros((0, 2))):
        with pytest.raises(UnsupportedError, match=r"takes inputs \['n', 2\]"):
            batches(wrong, LIKE, "TensorRT")


def test_fitted() -> None:
    assert fitted(np.zeros((4, 2), np.int64), LIKE, "TensorRT").dtype == np.float32
    with pytest.raises(UnsupportedError, match=r"takes inputs \[4, 2\], these are \[1, 2\]"):
        fitted(np.zeros((1, 2)), LIKE, "TensorRT")


@pytest.mark.parametrize(("single_s", "launches"), [(1.0, 1), (PAIR_S, 1), (PAIR_S / 2, 2), (3e-5, 7)])
def test_launches_for(single_s: float, launches: int) -> None:
    assert launches_for(single_s) == launches
