"""Latency, measured: candidate and float32 reference in pairs, raw samples and conditions kept.

What is reported is the median of the raw samples (:meth:`Measurement.median_s`) with
:func:`latency_ci95`. A machine that others use is slower at one moment than at another, so for
*ranking* measurements of different moments there is :func:`normalised_s`: the median of the ratios
to the reference, which ran in the same moments, times one common reference latency.

Disturbed samples are kept: medians bear up to half of them, and dropping "outliers" would report a
machine that does not exist. A measurement whose reference runs over 25 % slower than the fastest
reference seen on this device, or during which the device throttled its clocks, is taken once more; if the second is no
better it stays, marked ``interference`` in its conditions.
"""

from __future__ import annotations

import dataclasses
import statistics
import time
from collections.abc import Callable
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import autocomp
from autocomp import environment
from autocomp.core.hardware import Engine, ObservesDevice, Plan, Target
from autocomp.core.outcome import Measurement
from autocomp.core.stage import Stage
from autocomp.evaluators._remembered import entry_path, read_json, write_json
from autocomp.evaluators._timing import TimingRecipe, lease, no_garbage_collection, who_first
from autocomp.evaluators.statistics import median_ci, ratio_ci

if TYPE_CHECKING:
    import numpy as np

_CACHE_VERSION = 1


class LatencyMeter:
    """Builds, times and remembers. One measurement a device at a time, whatever the processes.

    Args:
        target: profile and runtime.
        cache_dir: measurements are kept here as JSON; processes may share it.
        clock: monotonic seconds; times the warm-up (engines time themselves).
        recipe: how long and how often.

    Attributes:
        builds: engines built so far, references not counted.
    """

    def __init__(
        self,
        target: Target,
        cache_dir: Path,
        *,
        clock: Callable[[], float] = time.perf_counter,
        recipe: TimingRecipe | None = None,
    ) -> None:
        self.target = target
        self.cache_dir = Path(cache_dir)
        self.recipe = recipe or TimingRecipe()
        self._clock = clock
        self.builds = 0
        self._references: dict[str, Engine] = {}

    def __enter__(self) -> LatencyMeter:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Release the reference engines."""
        for engine in self._references.values():
            engine.close()
        self._references.clear()

    def lookup(
        self, key: str, example: np.ndarray, *, reference_key: str = "float32"
    ) -> tuple[Measurement, int] | None:
        """The remembered measurement and engine size, or None. Arguments as for :meth:`measure`."""
        entry = read_json(self._path("measurement", key, example, reference_key)) or {}
        try:
            return Measurement.from_json(entry["measurement"]), int(entry["engine_bytes"])
        except (KeyError, TypeError, ValueError):
            return None

    def measure(
        self,
        key: str,
        model: Callable[[], bytes],
        example: np.ndarray,
        reference: Callable[[], bytes],
        *,
        reference_key: str = "float32",
        fresh: bool = False,
    ) -> tuple[Measurement, int]:
        """Latency of one inference on ``example``, and the size of the engine.

        Args:
            key: structure and precision of the network, not its weight values: what was measured
                under it is used again, on this device with these versions and options.
            model: makes the ONNX model; called only where nothing is remembered.
            example: [n, ...] float32, a real input; n is the batch size.
            reference: makes the ONNX model that is timed alternately.
            reference_key: names that model.
            fresh: measure again, whatever is remembered.

        Returns:
            Measurement (raw samples of both, seconds) and engine size in bytes.

        Raises:
            UnsupportedError: the runtime refuses the model.
            StorageError: the cache folder cannot be written.
        """
        known = None if fresh else self.lookup(key, example, reference_key=reference_key)
        if known is not None:
            return known
        path = self._path("measurement", key, example, reference_key)
        with ExitStack() as stack:
            plan = self._build(model(), example)
            self.builds += 1
            engine = self._load(plan, example)
            stack.callback(engine.close)
            beside = self._reference(reference, example, reference_key)
            stack.enter_context(lease(self._device()))
            if not fresh:
                known = self.lookup(key, example, reference_key=reference_key)
                if known is not None:
                    return known
            best_path = self._path("reference", "", example, reference_key)
            measurement = self._time(engine, beside, example, plan, best_path)
            plain = measurement.to_json()
            write_json(path, {"key": key, "measurement": plain, "engine_bytes": plan.engine_bytes})
            return Measurement.from_json(plain), plan.engine_bytes

    def _build(self, model: bytes, example: np.ndarray) -> Plan:
        with Stage("build"):
            return self.target.runtime.build(model, self.target.profile, example)

    def _load(self, plan: Plan, example: np.ndarray) -> Engine:
        return self.target.runtime.load(plan, self.target.profile, example)

    def _reference(self, make: Callable[[], bytes], example: np.ndarray, reference_key: str) -> Engine:
        name = f"{reference_key}:{example.shape}"
        if name not in self._references:
            self._references[name] = self._load(self._build(make(), example), example)
        return self._references[name]

    def _time(self, engine: Engine, beside: Engine, example: np.ndarray, plan: Plan, best_path: Path) -> Measurement:
        """Up to ``attempts`` measurements; the one with the fastest reference is kept."""
        found = (read_json(best_path) or {}).get("median_s")
        best = found if isinstance(found, float) else None
        tries: list[Measurement] = []
        for _ in range(self.recipe.attempts):
            tries.append(self._attempt(engine, beside))
            if not throttled(tries[-1]) and (best is None or self._is_quiet(tries[-1], best)):
                break
        chosen = min(tries, key=lambda m: (bool(throttled(m)), _reference_s(m)))
        median_s = _reference_s(chosen)
        if best is None or median_s < best:
            write_json(best_path, {"median_s": median_s})
        conditions = {
            **self._conditions(plan, example),
            **chosen.conditions,
            "attempts": len(tries),
            "reference_median_s": median_s,
            "fastest_reference_s": min(median_s, best) if best is not None else median_s,
            "interference": bool(throttled(chosen)) or (best is not None and not self._is_quiet(chosen, best)),
        }
        return dataclasses.replace(chosen, conditions=conditions)

    def _is_quiet(self, measurement: Measurement, best_s: float) -> bool:
        """Whether the reference ran about as fast as the fastest one seen."""
        return _reference_s(measurement) <= best_s * self.recipe.interference

    def _attempt(self, engine: Engine, beside: Engine) -> Measurement:
        """Samples in pairs of neighbours, one of each engine, in balanced random order (:func:`who_first`)."""
        run_s, reference_run_s = self._warm_up(engine), self._warm_up(beside)
        before, device_before = environment.load_average(), _state(engine)
        samples: list[float] = []
        reference: list[float] = []
        with no_garbage_collection():
            for candidate_first in who_first(self.recipe.count(run_s, reference_run_s)):
                if candidate_first:
                    samples.append(engine.time_once_s())
                    reference.append(beside.time_once_s())
                else:
                    reference.append(beside.time_once_s())
                    samples.append(engine.time_once_s())
        conditions = {
            "time_utc": datetime.now(UTC).isoformat(timespec="seconds"),
            "load_before": before,
            "load_after": environment.load_average(),
            "device_before": device_before,
            "device_after": _state(engine),
        }
        return Measurement(samples_s=tuple(samples), reference_s=tuple(reference), conditions=conditions)

    def _warm_up(self, engine: Engine) -> float:
        """Run until warm; the median seconds of the later half of the runs."""
        taken: list[float] = []
        start = self._clock()
        while len(taken) < self.recipe.warmup_runs or self._clock() - start < self.recipe.warmup_s:
            taken.append(engine.time_once_s())
        return statistics.median(taken[len(taken) // 2 :])

    def _conditions(self, plan: Plan, example: np.ndarray) -> dict[str, Any]:
        runtime, profile = self.target.runtime, self.target.profile
        return {
            "autocomp": autocomp.__version__,
            "target": profile.name,
            "runtime": runtime.name,
            "versions": runtime.versions(),
            "options": dict(profile.options),
            "cpu": environment.cpu()["model"],
            "cores": environment.cpu()["cores"],
            "governor": environment.governor(),
            "batch_size": int(example.shape[0]),
            "input_shape": [int(n) for n in example.shape[1:]],
            "recipe": dataclasses.asdict(self.recipe),
            "layer_precisions": dict(plan.layers),
        }

    def _device(self) -> str:
        """What only one process may time on at a once: the runtime's device, else this CPU."""
        return self.target.runtime.versions().get("device", str(environment.cpu()["model"]))

    def _path(self, kind: str, key: str, example: np.ndarray, reference_key: str) -> Path:
        """File of what was measured under exactly these conditions."""
        identity = {
            "cache": _CACHE_VERSION,
            "kind": kind,
            "key": key,
            "reference": reference_key,
            "input": [str(example.dtype), *map(int, example.shape)],
            "runtime": self.target.runtime.name,
            "versions": self.target.runtime.versions(),
            "options": {k: self.target.profile.options[k] for k in sorted(self.target.profile.options)},
            "cpu": {**environment.cpu(), "flags": sorted(environment.cpu()["flags"])},
            "recipe": dataclasses.asdict(self.recipe),
        }
        return entry_path(self.cache_dir, kind, identity)


def latency_ci95(measurement: Measurement, seed: int = 0) -> tuple[float, float]:
    """95 % bootstrap interval of the median latency, seconds."""
    return median_ci(measurement.samples_s, seed)


def ratio_to_reference(measurement: Measurement, seed: int = 0) -> tuple[float, tuple[float, float]]:
    """Latency as a multiple of the reference's, from neighbouring samples: (ratio, 95 % interval)."""
    return ratio_ci(measurement.samples_s, measurement.reference_s, seed)


def normalised_s(measurement: Measurement, reference_s: float) -> float:
    """Latency as it would be where the reference takes ``reference_s``; seconds, for ranking.

    Not what is reported as measured: that is ``measurement.median_s()``. Without reference samples
    it is the same as that.

    Args:
        measurement: with the reference's samples beside its own.
        reference_s: the run's reference latency, seconds: one number for all that are compared.
    """
    if not measurement.reference_s:
        return measurement.median_s()
    pairs = zip(measurement.samples_s, measurement.reference_s, strict=True)
    return statistics.median(a / b for a, b in pairs) * reference_s


def throttled(measurement: Measurement) -> list[str]:
    """Why the device slowed its clocks down while it was timed; empty where it did not, or does not tell."""
    states = (measurement.conditions.get(key, {}) for key in ("device_before", "device_after"))
    return sorted({reason for state in states for reason in state.get("throttled", ())})


def disturbance_notes(measurement: Measurement | None) -> tuple[str, ...]:
    """What a reader has to know of the moment a latency was taken in."""
    if measurement is None or not measurement.conditions.get("interference"):
        return ()
    reasons = throttled(measurement)
    if reasons:
        return (f"the device throttled its clocks while this was timed ({', '.join(reasons)}): cool it, or lock them",)
    return ("the machine was busy while this was timed: its ratio to float32 holds, its milliseconds are too many",)


def _state(engine: Engine) -> dict[str, Any]:
    return dict(engine.conditions()) if isinstance(engine, ObservesDevice) else {}


def _reference_s(measurement: Measurement) -> float:
    return statistics.median(measurement.reference_s)
