"""Latency: what is kept, what is remembered, who may time when, and that a network is as fast as itself."""

import dataclasses
import json
import multiprocessing
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from autocomp.core.hardware import Engine, HardwareProfile, Plan, Target
from autocomp.core.outcome import Measurement
from autocomp.errors import StorageError, UnsupportedError
from autocomp.evaluators._timing import lease
from autocomp.evaluators.latency import (
    LatencyMeter,
    TimingRecipe,
    disturbance_notes,
    throttled,
)
from autocomp.evaluators.statistics import median_ci, ratio_ci
from autocomp.runtimes._profiles import load_target
from autocomp.stages.rows import latency_fields
from autocomp.testing.onnx_models import TinyNetwork

QUICK = TimingRecipe(warmup_s=0.005, target_s=0.02)
FLOAT32, INT8 = TinyNetwork(), TinyNetwork(int8=frozenset({"conv1", "conv2", "fc"}))
EXAMPLE = FLOAT32.inputs()


@pytest.fixture(scope="module")
def target() -> Target:
    return load_target("cpu-onnxruntime")


@pytest.fixture
def meter(target: Target, tmp_path: Path) -> Iterator[LatencyMeter]:
    with LatencyMeter(target, tmp_path / "cache", recipe=QUICK) as made:
        yield made


class Script(Engine):
    """An engine that takes exactly the seconds it is told, one after another, the last for ever."""

    def __init__(self, name: str, seconds: list[float], log: list[str]) -> None:
        self.name, self.seconds, self.log, self.closed = name, seconds, log, False

    def run(self, inputs: np.ndarray) -> np.ndarray:
        return inputs

    def time_once_s(self) -> float:
        self.log.append(self.name)
        return self.seconds.pop(0) if len(self.seconds) > 1 else self.seconds[0]

    def close(self) -> None:
        self.closed = True


class Scripted:
    """A runtime whose models are names of scripts: exact arithmetic of the recipe without a clock."""

    name = "scripted"

    def __init__(self, scripts: dict[bytes, list[float]]) -> None:
        self.scripts, self.log, self.engines = scripts, list[str](), list[Script]()

    def missing(self) -> str | None:
        return None

    def versions(self) -> dict[str, str]:
        return {"scripted": "1", "device": f"script {id(self)}"}

    def no_device(self, profile: HardwareProfile) -> str | None:
        return None

    def build(self, onnx_model: bytes, profile: HardwareProfile, example: np.ndarray) -> Plan:
        return Plan(data=onnx_model)

    def load(self, plan: Plan, profile: HardwareProfile, example: np.ndarray) -> Engine:
        self.engines.append(Script(plan.data.decode(), list(self.scripts[plan.data]), self.log))
        return self.engines[-1]


def scripted(tmp_path: Path, recipe: TimingRecipe, **scripts: list[float]) -> tuple[LatencyMeter, Scripted]:
    runtime = Scripted({k.encode(): v for k, v in scripts.items()})
    profile = HardwareProfile(name="p", title="P", runtime="scripted", precisions={})
    ticks = iter(range(10**9))
    meter = LatencyMeter(
        Target(profile=profile, runtime=runtime), tmp_path, clock=lambda: float(next(ticks)), recipe=recipe
    )
    return meter, runtime


def test_a_real_measurement(meter: LatencyMeter) -> None:
    measurement, engine_bytes = meter.measure("int8", INT8.onnx_bytes, EXAMPLE, FLOAT32.onnx_bytes)
    assert len(measurement.samples_s) == len(measurement.reference_s) >= QUICK.samples
    assert min(*measurement.samples_s, *measurement.reference_s) > 0
    assert measurement.source == "measured"
    low, high = median_ci(measurement.samples_s)
    assert low <= measurement.median_s() <= high
    assert engine_bytes > 0
    conditions = measurement.conditions
    assert conditions["batch_size"] == 1
    assert conditions["input_shape"] == [3, 8, 8]
    assert conditions["options"]["intra_op_num_threads"] == 1
    assert conditions["versions"]["onnxruntime"]
    assert set(conditions["layer_precisions"].values()) == {"int8"}
    assert {"cpu", "governor", "load_before", "load_after", "time_utc", "recipe", "interference"} <= set(conditions)
    assert Measurement.from_json(json.loads(json.dumps(measurement.to_json()))) == measurement


def test_a_network_is_as_fast_as_itself(target: Target, tmp_path: Path) -> None:
    """A/A: two engines of one model. 10 % is far above what two buffers at other addresses differ by."""
    network = TinyNetwork(channels=32, size=16)
    recipe = TimingRecipe(warmup_s=0.05, target_s=0.3)
    with LatencyMeter(target, tmp_path, recipe=recipe) as meter:
        measurement, _ = meter.measure("self", network.onnx_bytes, network.inputs(), network.onnx_bytes)
    ratio, (low, high) = ratio_ci(measurement.samples_s, measurement.reference_s)
    assert low <= ratio <= high
    assert low < 1.1
    assert high > 0.9


def test_remembered_by_key(meter: LatencyMeter, target: Target) -> None:
    first = meter.measure("k", INT8.onnx_bytes, EXAMPLE, FLOAT32.onnx_bytes)

    def never() -> bytes:
        raise AssertionError("built again")

    assert meter.measure("k", never, EXAMPLE, never) == first
    again = LatencyMeter(target, meter.cache_dir, recipe=QUICK)
    assert again.measure("k", never, EXAMPLE, never) == first
    assert again.lookup("k", EXAMPLE) == first
    assert again.lookup("other", EXAMPLE) is None
    assert again.lookup("k", FLOAT32.inputs(2)) is None
    assert again.lookup("k", EXAMPLE, reference_key="float16") is None


def test_other_conditions_are_measured_again(meter: LatencyMeter, target: Target) -> None:
    meter.measure("k", FLOAT32.onnx_bytes, EXAMPLE, FLOAT32.onnx_bytes)
    profile = dataclasses.replace(target.profile, options={**target.profile.options, "intra_op_num_threads": 2})
    other = LatencyMeter(dataclasses.replace(target, profile=profile), meter.cache_dir, recipe=QUICK)
    assert other.lookup("k", EXAMPLE) is None


def test_fresh_measures_again(tmp_path: Path) -> None:
    meter, runtime = scripted(tmp_path, QUICK, a=[1e-3], b=[1e-3])
    for _ in range(2):
        meter.measure("k", lambda: b"a", EXAMPLE, lambda: b"b")
    assert [e.name for e in runtime.engines] == ["a", "b"]
    meter.measure("k", lambda: b"a", EXAMPLE, lambda: b"b", fresh=True)
    assert [e.name for e in runtime.engines] == ["a", "b", "a"], "the reference engine is kept"
    assert [e.closed for e in runtime.engines] == [True, False, True]
    meter.close()
    assert all(e.closed for e in runtime.engines)


@pytest.mark.parametrize("content", [b"", b"{", b"[1]", b"\xff\xfe", b'{"measurement": {}}'])
def test_damaged_memory_is_measured_again(tmp_path: Path, content: bytes) -> None:
    meter, _ = scripted(tmp_path, QUICK, a=[1e-3], b=[1e-3])
    first = meter.measure("k", lambda: b"a", EXAMPLE, lambda: b"b")
    for path in tmp_path.iterdir():
        path.write_bytes(content)
    again = meter.measure("k", lambda: b"a", EXAMPLE, lambda: b"b")
    assert again[0].samples_s == first[0].samples_s


def test_reference_is_interleaved(tmp_path: Path) -> None:
    recipe = TimingRecipe(warmup_s=0.0, warmup_runs=5, target_s=0.0, samples=30)
    meter, runtime = scripted(tmp_path, recipe, a=[1e-3], b=[2e-3])
    measurement, engine_bytes = meter.measure("k", lambda: b"a", EXAMPLE, lambda: b"b")
    assert runtime.log[:10] == ["a"] * 5 + ["b"] * 5
    pairs = ["".join(runtime.log[i : i + 2]) for i in range(10, 70, 2)]
    assert len(runtime.log) == 70
    for first, second in zip(pairs[::2], pairs[1::2], strict=True):
        assert {first, second} == {"ab", "ba"}, "as often first as second, all along"
    assert len(set(pairs[::2])) == 2, "and in no fixed rhythm"
    assert measurement.samples_s == (1e-3,) * 30
    assert measurement.reference_s == (2e-3,) * 30
    assert engine_bytes == len(b"a")


@pytest.mark.parametrize(
    ("run_s", "reference_s", "count"),
    [(1e-3, 2e-3, 200), (1e-6, 1e-6, 1000), (0.05, 0.05, 30), (0.19, 0.1, 30), (0.3, 0.1, 9), (0.01, 0.5, 9)],
)
def test_how_many_samples(run_s: float, reference_s: float, count: int) -> None:
    assert TimingRecipe().count(run_s, reference_s) == count


def test_interference_is_retried_and_then_told(tmp_path: Path) -> None:
    """The reference: quiet at first, then twice as slow in a first attempt, quiet again in the second."""
    recipe = TimingRecipe(warmup_s=0.0, warmup_runs=1, target_s=0.0, slow_samples=4)
    quiet, busy = [1.0], [2.0]
    meter, _ = scripted(tmp_path, recipe, a=[1.0], b=quiet * 5 + busy * 5 + quiet * 5 + busy)
    calm, _ = meter.measure("1", lambda: b"a", EXAMPLE, lambda: b"b")
    assert (calm.conditions["attempts"], calm.conditions["interference"]) == (1, False)
    passing, _ = meter.measure("2", lambda: b"a", EXAMPLE, lambda: b"b")
    assert (passing.conditions["attempts"], passing.conditions["interference"]) == (2, False)
    assert passing.reference_s == (1.0,) * 4
    lasting, _ = meter.measure("3", lambda: b"a", EXAMPLE, lambda: b"b")
    assert (lasting.conditions["attempts"], lasting.conditions["interference"]) == (2, True)
    assert lasting.conditions["fastest_reference_s"] == 1.0
    assert lasting.conditions["reference_median_s"] == 2.0


class Hot(Script):
    """A device that throttles when it is first asked, and later where ``always``."""

    def __init__(self, always: bool) -> None:
        super().__init__("hot", [1.0], [])
        self.always, self.asked = always, 0

    def conditions(self) -> dict[str, Any]:
        self.asked += 1
        return {"throttled": ["software thermal slowdown"] if self.always or self.asked == 1 else [], "power_w": 300.0}


@pytest.mark.parametrize("always", [False, True])
def test_throttled_clocks_are_retried_and_then_told(tmp_path: Path, always: bool, monkeypatch: Any) -> None:
    recipe = TimingRecipe(warmup_s=0.0, warmup_runs=1, target_s=0.0, slow_samples=4)
    meter, runtime = scripted(tmp_path, recipe, a=[1.0], b=[1.0])
    hot, load = Hot(always), runtime.load
    monkeypatch.setattr(runtime, "load", lambda plan, *rest: hot if plan.data == b"a" else load(plan, *rest))
    found, _ = meter.measure("1", lambda: b"a", EXAMPLE, lambda: b"b")
    assert (found.conditions["attempts"], found.conditions["interference"]) == (2, always)
    assert throttled(found) == (["software thermal slowdown"] if always else [])
    assert found.conditions["device_after"]["power_w"] == 300.0
    notes = disturbance_notes(found)
    assert len(notes) == int(always)
    assert all("software thermal slowdown" in note for note in notes)


class Counting(Script):
    """A device that counts energy: 3 mJ an inference."""

    def energy_per_run_j(self, least_s: float) -> float | None:
        assert least_s == TimingRecipe().energy_s
        return 3e-3


def test_energy_stands_beside_latency_where_the_device_counts_it(tmp_path: Path, monkeypatch: Any) -> None:
    recipe = TimingRecipe(warmup_s=0.0, warmup_runs=1, target_s=0.0, slow_samples=4)
    meter, runtime = scripted(tmp_path, recipe, a=[1.0], b=[1.0])
    load = runtime.load
    counting = Counting("counting", [1.0], [])
    monkeypatch.setattr(runtime, "load", lambda plan, *rest: counting if plan.data == b"a" else load(plan, *rest))
    found, _ = meter.measure("1", lambda: b"a", EXAMPLE, lambda: b"b")
    assert found.conditions["energy_j"] == 3e-3
    assert "reference_energy_j" not in found.conditions
    assert latency_fields(found, 1)["energy_mj"] == 3.0
    assert latency_fields(Measurement(samples_s=(1.0,)), 1)["energy_mj"] is None


def test_refusal_leaves_nothing_behind(meter: LatencyMeter) -> None:
    with pytest.raises(UnsupportedError):
        meter.measure("bad", lambda: b"garbage", EXAMPLE, FLOAT32.onnx_bytes)
    assert not meter.cache_dir.exists() or not list(meter.cache_dir.glob("measurement-*"))


def test_unwritable_cache_is_a_storage_error(target: Target, tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("not a folder")
    with (
        LatencyMeter(target, blocked / "cache", recipe=QUICK) as meter,
        pytest.raises(StorageError, match="cannot write"),
    ):
        meter.measure("k", FLOAT32.onnx_bytes, EXAMPLE, FLOAT32.onnx_bytes)


def _hold(device: str, seconds: float, events: "multiprocessing.Queue[tuple[str, float]]") -> None:
    with lease(device):
        events.put(("in", time.monotonic()))
        time.sleep(seconds)
        events.put(("out", time.monotonic()))


def test_one_process_times_at_a_time() -> None:
    context = multiprocessing.get_context("fork")
    events: multiprocessing.Queue[tuple[str, float]] = context.Queue()
    device = f"test device {os.getpid()}"
    workers = [context.Process(target=_hold, args=(device, 0.1, events)) for _ in range(3)]
    for worker in workers:
        worker.start()
    seen = sorted((events.get(timeout=30) for _ in range(6)), key=lambda e: e[1])
    for worker in workers:
        worker.join(30)
    assert [what for what, _ in seen] == ["in", "out"] * 3


def test_killed_holder_frees_the_device() -> None:
    context = multiprocessing.get_context("fork")
    events: multiprocessing.Queue[tuple[str, float]] = context.Queue()
    device = f"killed device {os.getpid()}"
    worker = context.Process(target=_hold, args=(device, 600, events))
    worker.start()
    assert events.get(timeout=30)[0] == "in"
    worker.kill()
    worker.join(30)
    with lease(device):
        pass


def test_second_process_takes_the_first_ones_measurement(meter: LatencyMeter, target: Target) -> None:
    """While this process waits for the device, another finishes the same key: nothing is timed twice."""
    other = LatencyMeter(target, meter.cache_dir, recipe=QUICK)
    done: list[tuple[Measurement, int]] = []

    def slow_build() -> bytes:
        done.append(other.measure("shared", INT8.onnx_bytes, EXAMPLE, FLOAT32.onnx_bytes))
        return INT8.onnx_bytes()

    assert meter.measure("shared", slow_build, EXAMPLE, FLOAT32.onnx_bytes) == done[0]
    other.close()
