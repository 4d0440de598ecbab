"""CUDA and NVML where there is no GPU: words, not tracebacks. What needs a GPU is marked."""

from __future__ import annotations

import numpy as np
import pytest

from autocomp.errors import UnsupportedError
from autocomp.runtimes import _cuda, _nvml

WITHOUT = pytest.mark.skipif(_cuda.no_gpu() is None, reason="a GPU is here")


@WITHOUT
def test_no_gpu_in_one_line() -> None:
    reason = _cuda.no_gpu()
    assert reason is not None
    assert "\n" not in reason
    assert "driver" in reason or "pip install cuda-bindings" in reason or "nvidia-smi" in reason
    assert _cuda.gpu() is None
    with pytest.raises(UnsupportedError, match=r"driver|pip install"):
        _cuda.open_device()


@WITHOUT
def test_pycuda_without_package_or_driver() -> None:
    with pytest.raises(UnsupportedError, match=r"pip install 'autocomp\[pycuda\]'|driver"):
        _cuda.open_device("pycuda")


@WITHOUT
def test_no_conditions_without_a_driver() -> None:
    assert _nvml.conditions() == {}
    assert _nvml.conditions("GPU-00000000-0000-0000-0000-000000000000") == {}
    assert _nvml.energy_j() is None


def test_energy_of_a_run_is_the_counters_difference(monkeypatch: pytest.MonkeyPatch) -> None:
    counter = iter([100.0, 100.5])
    monkeypatch.setattr(_nvml, "energy_j", lambda uuid=None: next(counter))
    asked: list[float] = []

    def run() -> float:
        asked.append(0.01)
        return 0.01

    assert _nvml.energy_per_run_j(run, 5, 0.5) == pytest.approx(0.5 / (5 * len(asked)))
    assert len(asked) * 5 * 0.01 >= 0.5


def test_no_energy_where_the_device_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_nvml, "energy_j", lambda uuid=None: None)
    assert _nvml.energy_per_run_j(lambda: pytest.fail("nothing to run for"), 1, 1.0) is None
    monkeypatch.setattr(_nvml, "energy_j", lambda uuid=None: 7.0)  # a counter that does not move counts nothing
    assert _nvml.energy_per_run_j(lambda: 1.0, 1, 1.0) is None


def test_throttle_reasons() -> None:
    assert _nvml.throttle_reasons(0x0) == []
    assert _nvml.throttle_reasons(0x1 | 0x2) == []  # idle, and clocks that an application asked for
    assert _nvml.throttle_reasons(0x4 | 0x40) == ["software power cap", "hardware thermal slowdown"]


@pytest.mark.gpu
@pytest.mark.parametrize("binding", _cuda.BINDINGS)
def test_memory_and_events(binding: str) -> None:
    try:
        device = _cuda.open_device(binding)
    except UnsupportedError as error:
        pytest.skip(str(error))
    try:
        stream = device.stream()
        values = np.arange(1000, dtype=np.float32)
        address = device.allocate(values.nbytes)
        stream.upload(address, values)
        back = np.zeros_like(values)
        stream.download(back, address)
        np.testing.assert_array_equal(back, values)
        assert stream.elapsed_s(lambda: None, 3) >= 0
    finally:
        device.close()
        device.close()


@pytest.mark.gpu
def test_conditions_of_a_gpu() -> None:
    gpu = _cuda.gpu()
    if gpu is None:
        pytest.skip(str(_cuda.no_gpu()))
    found = _nvml.conditions(gpu.uuid)
    assert found["uuid"] == gpu.uuid
    assert found["sm_clock_hz"] > 0
