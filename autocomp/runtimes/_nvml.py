"""The state of an NVIDIA GPU while something is timed on it: clocks, power, temperature, what slows it down.

Read through NVML (nvidia-ml-py). What a device does not tell is left out; without a driver there is nothing.
Source: NVIDIA, "NVML API Reference Guide", device queries.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

_THROTTLE = {
    0x4: "software power cap",
    0x8: "hardware slowdown",
    0x20: "software thermal slowdown",
    0x40: "hardware thermal slowdown",
    0x80: "hardware power brake",
}
"""Bits of the clocks' event reasons that mean: slower than asked for."""


def conditions(uuid: str | None = None) -> dict[str, Any]:
    """What decides how fast the GPU runs just now; {} where there is no driver.

    Args:
        uuid: of the device ("GPU-..."); None: the first.

    Returns:
        ``name``, ``uuid``, ``driver``, ``sm_clock_hz``, ``memory_clock_hz``, ``power_w``, ``temperature_c``,
        ``throttled`` (reasons, empty where it runs free): those that the device tells.
    """
    with _device(uuid) as found:
        if found is None:
            return {}
        nvml, device = found
        queries: dict[str, Callable[[], Any]] = {
            "name": lambda: nvml.nvmlDeviceGetName(device),
            "uuid": lambda: nvml.nvmlDeviceGetUUID(device),
            "driver": nvml.nvmlSystemGetDriverVersion,
            "sm_clock_hz": lambda: nvml.nvmlDeviceGetClockInfo(device, nvml.NVML_CLOCK_SM) * 1_000_000,
            "memory_clock_hz": lambda: nvml.nvmlDeviceGetClockInfo(device, nvml.NVML_CLOCK_MEM) * 1_000_000,
            "power_w": lambda: nvml.nvmlDeviceGetPowerUsage(device) / 1000,
            "temperature_c": lambda: nvml.nvmlDeviceGetTemperature(device, nvml.NVML_TEMPERATURE_GPU),
            "throttled": lambda: throttle_reasons(nvml.nvmlDeviceGetCurrentClocksThrottleReasons(device)),
        }
        return {key: value for key, query in queries.items() if (value := _asked(nvml, query)) is not None}


def energy_j(uuid: str | None = None) -> float | None:
    """Joules the GPU has used since the driver was loaded; None where it does not count (before Volta, Jetson)."""
    with _device(uuid) as found:
        if found is None:
            return None
        nvml, device = found
        millijoules = _asked(nvml, lambda: nvml.nvmlDeviceGetTotalEnergyConsumption(device))
        return None if millijoules is None else float(millijoules) / 1000


def energy_per_run_j(run: Callable[[], float], runs: int, least_s: float, uuid: str | None = None) -> float | None:
    """Joules of one inference, from the counter before and behind; None where the GPU has none.

    Args:
        run: starts ``runs`` inferences and returns the seconds that one took, once they are done.
        runs: inferences of a call.
        least_s: seconds of inferences at least: long, so that the steps in which the counter moves do not count.
        uuid: of the device; None: the first.
    """
    before = energy_j(uuid)
    if before is None:
        return None
    count, spent_s = 0, 0.0
    while spent_s < least_s:
        spent_s += runs * run()
        count += runs
    behind = energy_j(uuid)
    return None if behind is None or behind <= before else (behind - before) / count


def throttle_reasons(bits: int) -> list[str]:
    """Names of the reasons in NVML's bit mask that slow the clocks down."""
    return [name for bit, name in _THROTTLE.items() if bits & bit]


@contextmanager
def _device(uuid: str | None) -> Iterator[tuple[Any, Any] | None]:
    """(module, handle), or None without package, driver or device."""
    if importlib.util.find_spec("pynvml") is None:
        yield None
        return
    import pynvml

    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        yield None
        return
    try:
        device = _asked(pynvml, lambda: _handle(pynvml, uuid))
        yield None if device is None else (pynvml, device)
    finally:
        pynvml.nvmlShutdown()


def _handle(nvml: Any, uuid: str | None) -> Any:
    return nvml.nvmlDeviceGetHandleByUUID(uuid) if uuid else nvml.nvmlDeviceGetHandleByIndex(0)


def _asked(nvml: Any, query: Callable[[], Any]) -> Any:
    """The answer, None where this device does not give it."""
    try:
        return query()
    except nvml.NVMLError:
        return None
