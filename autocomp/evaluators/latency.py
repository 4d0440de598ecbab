"""Latency, measured: candidate and float32 reference in pairs, raw samples and conditions kept.

What is reported is the median of the raw samples (:meth:`Measurement.median_s`). A machine that others use is slower
at one moment than at another, so what is compared is the ratio to the reference, which ran in the same moments.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import autocomp
from autocomp.core.hardware import Plan, Target
from autocomp.core.outcome import Measurement
from autocomp.core.stage import Stage
from autocomp.evaluators._remembered import entry_path, read_json, recall, remember, write_json
from autocomp.evaluators._timing import TimingRecipe
from autocomp.evaluators.bench import Bench, LocalBench, throttled

if TYPE_CHECKING:
    import numpy as np

_CACHE_VERSION = 1


class LatencyMeter:
    """Builds, times and remembers. One measurement a device at a time, whatever the processes.

    Args:
        target: profile and runtime.
        cache_dir: measurements are kept here as JSON; processes may share it.
        bench: where plans are timed; None: in this process.
        clock: monotonic seconds; times the warm-up (engines time themselves). For a bench of this process.
        recipe: how long and how often.

    Attributes:
        builds: engines built so far, references not counted.
    """

    def __init__(
        self,
        target: Target,
        cache_dir: Path,
        *,
        bench: Bench | None = None,
        clock: Callable[[], float] = time.perf_counter,
        recipe: TimingRecipe | None = None,
    ) -> None:
        self.target = target
        self.cache_dir = Path(cache_dir)
        self.recipe = recipe or TimingRecipe()
        self.builds = 0
        self._bench = bench or LocalBench(target, clock=clock)
        self._references: dict[str, Plan] = {}

    def __enter__(self) -> LatencyMeter:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Release the reference engines."""
        self._references.clear()
        if isinstance(self._bench, LocalBench):
            self._bench.close()

    def lookup(
        self, key: str, example: np.ndarray, *, reference_key: str = "float32"
    ) -> tuple[Measurement, int] | None:
        """The remembered measurement and engine size, or None. Arguments as for :meth:`measure`."""
        match recall(self._path("measurement", key, example, reference_key)):
            case (measurement, int(engine_bytes)):
                return measurement, engine_bytes
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
        plan = self.build(model(), example)
        self.builds += 1
        beside = self._reference(reference, example, reference_key)
        with self._bench.exclusive():
            if not fresh:
                known = self.lookup(key, example, reference_key=reference_key)
                if known is not None:
                    return known
            measurement = self._time(plan, beside, example, self._path("reference", "", example, reference_key))
            path = self._path("measurement", key, example, reference_key)
            return remember(path, key, measurement, plan.engine_bytes)

    def build(self, model: bytes, example: np.ndarray) -> Plan:
        """Compile here where the compiler is here, else where the device is."""
        with Stage("build"):
            if self.target.cannot_build() is None:
                return self.target.runtime.build(model, self.target.profile, example)
            return self._bench.build(model, example)

    def outputs(self, plan: Plan, inputs: np.ndarray) -> np.ndarray:
        """What the engine itself computes for one batch [n, ...] of the size it was built for."""
        return self._bench.outputs(plan, inputs)

    def _reference(self, make: Callable[[], bytes], example: np.ndarray, reference_key: str) -> Plan:
        name = f"{reference_key}:{example.shape}"
        if name not in self._references:
            self._references[name] = self.build(make(), example)
        return self._references[name]

    def _time(self, plan: Plan, beside: Plan, example: np.ndarray, best_path: Path) -> Measurement:
        """A measurement, and what it says of the fastest reference seen on this device."""
        found = (read_json(best_path) or {}).get("median_s")
        best = found if isinstance(found, float) else None
        timed = self._bench.time(plan, beside, example, self.recipe, best)
        median_s = timed.conditions["reference_median_s"]
        if best is None or median_s < best:
            write_json(best_path, {"median_s": median_s})
        return dataclasses.replace(timed, conditions={**self._conditions(plan, example), **timed.conditions})

    def _conditions(self, plan: Plan, example: np.ndarray) -> dict[str, Any]:
        runtime, profile, facts = self.target.runtime, self.target.profile, self._bench.facts()
        return {
            "autocomp": autocomp.__version__,
            "target": profile.name,
            "runtime": runtime.name,
            "versions": facts["versions"],
            "options": dict(profile.options),
            "cpu": facts["cpu"]["model"],
            "cores": facts["cpu"]["cores"],
            "batch_size": int(example.shape[0]),
            "input_shape": [int(n) for n in example.shape[1:]],
            "recipe": dataclasses.asdict(self.recipe),
            "layer_precisions": dict(plan.layers),
        }

    def _path(self, kind: str, key: str, example: np.ndarray, reference_key: str) -> Path:
        """File of what was measured under exactly these conditions."""
        facts = self._bench.facts()
        identity = {
            "cache": _CACHE_VERSION,
            "kind": kind,
            "key": key,
            "reference": reference_key,
            "input": [str(example.dtype), *map(int, example.shape)],
            "runtime": self.target.runtime.name,
            "versions": facts["versions"],
            "options": {k: self.target.profile.options[k] for k in sorted(self.target.profile.options)},
            "cpu": {**facts["cpu"], "flags": sorted(facts["cpu"]["flags"])},
            "recipe": dataclasses.asdict(self.recipe),
        }
        return entry_path(self.cache_dir, kind, identity)


def disturbance_notes(measurement: Measurement | None) -> tuple[str, ...]:
    """What a reader has to know of the moment a latency was taken in."""
    if measurement is None or not measurement.conditions.get("interference"):
        return ()
    reasons = throttled(measurement)
    if reasons:
        return (f"the device throttled its clocks while this was timed ({', '.join(reasons)}): cool it, or lock them",)
    return ("the machine was busy while this was timed: its ratio to float32 holds, its milliseconds are too many",)
