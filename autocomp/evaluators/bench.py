"""Where plans are timed: in this process, or beside the device on another machine.

Disturbed samples are kept: medians bear up to half of them, and dropping "outliers" would report a
machine that does not exist. A measurement whose reference runs over 25 % slower than the fastest
reference seen on this device, or during which the device throttled its clocks, is taken once more; if the second is no
better it stays, marked ``interference`` in its conditions.

Where the device counts energy, each engine then runs by itself for a while; joules of one inference stand in the
conditions (``energy_j``, ``reference_energy_j``): of the whole device, what it uses idle included.
"""

from __future__ import annotations

import dataclasses
import hashlib
import statistics
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Protocol

from autocomp import environment
from autocomp.core.hardware import CountsEnergy, Engine, ObservesDevice, Plan, Target
from autocomp.core.outcome import Measurement
from autocomp.evaluators._timing import TimingRecipe, lease, no_garbage_collection, who_first

if TYPE_CHECKING:
    import numpy as np


class Bench(Protocol):
    """One device, and everything that needs it. Arguments and results can be pickled: it may be far away."""

    def facts(self) -> dict[str, Any]:
        """What measurements depend on: ``versions`` of the runtime (with its ``device``), ``cpu`` of the machine."""
        ...

    def exclusive(self) -> AbstractContextManager[None]:
        """Nobody else times on the device inside."""
        ...

    def build(self, model: bytes, example: np.ndarray) -> Plan:
        """Compile an ONNX model where the device is."""
        ...

    def time(
        self, plan: Plan, reference: Plan, example: np.ndarray, recipe: TimingRecipe, fastest_s: float | None
    ) -> Measurement:
        """Samples of both plans in pairs.

        Args:
            plan: what is timed.
            reference: what is timed alternately.
            example: [n, ...] float32, the input of both.
            recipe: how long and how often.
            fastest_s: median of the fastest reference seen so far, None where none was seen.
        """
        ...

    def outputs(self, plan: Plan, inputs: np.ndarray) -> np.ndarray:
        """What the engine computes for a batch [n, ...] float32 of the size it was built for."""
        ...


class LocalBench:
    """The device of this machine. A lease of it is held while it times.

    Args:
        target: profile and runtime.
        clock: monotonic seconds; times the warm-up (engines time themselves).
    """

    def __init__(self, target: Target, *, clock: Callable[[], float] = time.perf_counter) -> None:
        self.target = target
        self._clock = clock
        self._references: dict[str, Engine] = {}
        self._running: tuple[str, Engine] | None = None

    def facts(self) -> dict[str, Any]:
        return {"versions": dict(self.target.runtime.versions()), "cpu": environment.cpu()}

    def exclusive(self) -> AbstractContextManager[None]:
        return lease(self.target.runtime.versions().get("device", str(environment.cpu()["model"])))

    def build(self, model: bytes, example: np.ndarray) -> Plan:
        return self.target.runtime.build(model, self.target.profile, example)

    def time(
        self, plan: Plan, reference: Plan, example: np.ndarray, recipe: TimingRecipe, fastest_s: float | None
    ) -> Measurement:
        """Up to ``recipe.attempts`` measurements; the one with the fastest reference is kept."""
        engine = self._load(plan, example)
        try:
            beside = self._reference(reference, example)
            tries: list[Measurement] = []
            for _ in range(recipe.attempts):
                tries.append(self._attempt(engine, beside, recipe))
                if not throttled(tries[-1]) and (fastest_s is None or _is_quiet(tries[-1], fastest_s, recipe)):
                    break
            energy = {**_energy("energy_j", engine, recipe), **_energy("reference_energy_j", beside, recipe)}
        finally:
            engine.close()
        chosen = min(tries, key=lambda m: (bool(throttled(m)), _reference_s(m)))
        median_s = _reference_s(chosen)
        conditions = {
            **chosen.conditions,
            **energy,
            "attempts": len(tries),
            "reference_median_s": median_s,
            "fastest_reference_s": min(median_s, fastest_s) if fastest_s is not None else median_s,
            "interference": bool(throttled(chosen))
            or (fastest_s is not None and not _is_quiet(chosen, fastest_s, recipe)),
        }
        return dataclasses.replace(chosen, conditions=conditions)

    def outputs(self, plan: Plan, inputs: np.ndarray) -> np.ndarray:
        """The engine stays loaded until another plan is asked for: a split comes batch by batch."""
        name = _name(plan, inputs)
        if self._running is None or self._running[0] != name:
            self._stop()
            self._running = (name, self._load(plan, inputs))
        return self._running[1].run(inputs)

    def close(self) -> None:
        """Release every engine."""
        self._stop()
        for engine in self._references.values():
            engine.close()
        self._references.clear()

    def _stop(self) -> None:
        if self._running is not None:
            self._running[1].close()
        self._running = None

    def _load(self, plan: Plan, example: np.ndarray) -> Engine:
        return self.target.runtime.load(plan, self.target.profile, example)

    def _reference(self, plan: Plan, example: np.ndarray) -> Engine:
        name = _name(plan, example)
        if name not in self._references:
            self._references[name] = self._load(plan, example)
        return self._references[name]

    def _attempt(self, engine: Engine, beside: Engine, recipe: TimingRecipe) -> Measurement:
        """Samples in pairs of neighbours, one of each engine, in balanced random order (:func:`who_first`)."""
        run_s, reference_run_s = self._warm_up(engine, recipe), self._warm_up(beside, recipe)
        before, device_before = environment.load_average(), _state(engine)
        samples: list[float] = []
        reference: list[float] = []
        with no_garbage_collection():
            for candidate_first in who_first(recipe.count(run_s, reference_run_s)):
                if candidate_first:
                    samples.append(engine.time_once_s())
                    reference.append(beside.time_once_s())
                else:
                    reference.append(beside.time_once_s())
                    samples.append(engine.time_once_s())
        conditions = {
            "time_utc": datetime.now(UTC).isoformat(timespec="seconds"),
            "governor": environment.governor(),
            "load_before": before,
            "load_after": environment.load_average(),
            "device_before": device_before,
            "device_after": _state(engine),
        }
        return Measurement(samples_s=tuple(samples), reference_s=tuple(reference), conditions=conditions)

    def _warm_up(self, engine: Engine, recipe: TimingRecipe) -> float:
        """Run until warm; the median seconds of the later half of the runs."""
        taken: list[float] = []
        start = self._clock()
        while len(taken) < recipe.warmup_runs or self._clock() - start < recipe.warmup_s:
            taken.append(engine.time_once_s())
        return statistics.median(taken[len(taken) // 2 :])


def throttled(measurement: Measurement) -> list[str]:
    """Why the device slowed its clocks down while it was timed; empty where it did not, or does not tell."""
    states = (measurement.conditions.get(key, {}) for key in ("device_before", "device_after"))
    return sorted({reason for state in states for reason in state.get("throttled", ())})


def _name(plan: Plan, inputs: np.ndarray) -> str:
    """Of an engine: its plan and the shape of what it runs on."""
    return f"{hashlib.sha256(plan.data).hexdigest()}:{inputs.shape}"


def _is_quiet(measurement: Measurement, fastest_s: float, recipe: TimingRecipe) -> bool:
    """Whether the reference ran about as fast as the fastest one seen."""
    return _reference_s(measurement) <= fastest_s * recipe.interference


def _energy(name: str, engine: Engine, recipe: TimingRecipe) -> dict[str, float]:
    """Joules of one inference under ``name``; nothing where the device does not count them."""
    found = engine.energy_per_run_j(recipe.energy_s) if isinstance(engine, CountsEnergy) else None
    return {} if found is None else {name: found}


def _state(engine: Engine) -> dict[str, Any]:
    return dict(engine.conditions()) if isinstance(engine, ObservesDevice) else {}


def _reference_s(measurement: Measurement) -> float:
    return statistics.median(measurement.reference_s)
