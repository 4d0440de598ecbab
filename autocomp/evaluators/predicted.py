"""Latency, predicted: for targets whose device is not here. Always labelled so, with the error where it was measured.

Stands in for :class:`~autocomp.evaluators.latency.LatencyMeter`: the same calls, the same keys.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import autocomp
from autocomp.core.hardware import Plan, Target
from autocomp.core.outcome import Measurement
from autocomp.core.stage import Stage
from autocomp.errors import UnsupportedError
from autocomp.evaluators._remembered import entry_path, recall, remember
from autocomp.profiling.model import Prediction, latency_model
from autocomp.profiling.operations import Operation, operations

if TYPE_CHECKING:
    import numpy as np

_CACHE_VERSION = 1


class LatencyPredictor:
    """Builds where the compiler is here, predicts seconds, and remembers both.

    Args:
        target: its profile has a latency table or the figures of a roofline.
        cache_dir: predictions are kept here as JSON; processes may share it.

    Attributes:
        builds: engines built (or, where nothing builds here, predicted) so far, references not counted.

    Raises:
        UnsupportedError: the profile has nothing to predict from.
    """

    def __init__(self, target: Target, cache_dir: Path) -> None:
        self.target = target
        self.cache_dir = Path(cache_dir)
        self.builds = 0
        self._model = latency_model(target.profile)
        self._figures = _digest(target)
        self._references: dict[str, Prediction | None] = {}

    def __enter__(self) -> LatencyPredictor:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Nothing is held."""

    def lookup(
        self, key: str, example: np.ndarray, *, reference_key: str = "float32"
    ) -> tuple[Measurement, int | None] | None:
        """The remembered prediction and engine size, or None. Arguments as for :meth:`measure`."""
        return recall(self._path(key, example, reference_key))

    def measure(
        self,
        key: str,
        model: Callable[[], bytes],
        example: np.ndarray,
        reference: Callable[[], bytes],
        *,
        reference_key: str = "float32",
        fresh: bool = False,
    ) -> tuple[Measurement, int | None] | None:
        """Predicted latency of one inference, and the size of the engine where one could be built.

        None where the profile lacks a figure for it: a network that runs partly in float32 on a device that is only
        known to run int8.

        Args:
            key: structure and precision of the network, not its weight values.
            model: makes the ONNX model; called only where nothing is remembered.
            example: [n, ...] float32; n is the batch size.
            reference: makes the ONNX model of the float32 network.
            reference_key: names that model.
            fresh: build and predict again, whatever is remembered.

        Returns:
            Measurement with one sample each, ``source="predicted"``, and in its conditions ``prediction``
            (method, error, notes) and, where it was built, ``layer_precisions``; engine size in bytes or None.

        Raises:
            UnsupportedError: the runtime refuses the model.
            StorageError: the cache folder cannot be written.
        """
        known = None if fresh else self.lookup(key, example, reference_key=reference_key)
        if known is not None:
            return known
        batch_size = int(example.shape[0])
        data = model()
        plan = self._build(data, example)
        self.builds += 1
        found = self._predict(as_built(operations(data, batch_size), plan))
        if found is None:
            return None
        beside = self._reference(reference, batch_size, reference_key)
        measurement = Measurement(
            samples_s=(found.seconds,),
            reference_s=(beside.seconds,) if beside is not None else (),
            source="predicted",
            conditions=self._conditions(plan, found, example),
        )
        size = None if plan is None else plan.engine_bytes
        return remember(self._path(key, example, reference_key), key, measurement, size)

    def _build(self, model: bytes, example: np.ndarray) -> Plan | None:
        if self.target.cannot_build() is not None:
            return None
        with Stage("build"):
            return self.target.runtime.build(model, self.target.profile, example)

    def _reference(self, make: Callable[[], bytes], batch_size: int, reference_key: str) -> Prediction | None:
        name = f"{reference_key}:{batch_size}"
        if name not in self._references:
            self._references[name] = self._predict(operations(make(), batch_size))
        return self._references[name]

    def _predict(self, found: tuple[Operation, ...]) -> Prediction | None:
        """None where a figure is missing: what is unknown stays unknown."""
        try:
            return self._model.predict(found)
        except UnsupportedError:
            return None

    def _conditions(self, plan: Plan | None, found: Prediction, example: np.ndarray) -> dict[str, Any]:
        runtime, profile = self.target.runtime, self.target.profile
        conditions = {
            "autocomp": autocomp.__version__,
            "target": profile.name,
            "runtime": runtime.name,
            "versions": self._versions(),
            "options": dict(profile.options),
            "batch_size": int(example.shape[0]),
            "input_shape": [int(n) for n in example.shape[1:]],
            "prediction": found.to_json(),
        }
        return conditions if plan is None else conditions | {"layer_precisions": dict(plan.layers)}

    def _versions(self) -> dict[str, str]:
        """Of what builds; nothing where it is not installed."""
        return {} if self.target.cannot_build() else self.target.runtime.versions()

    def _path(self, key: str, example: np.ndarray, reference_key: str) -> Path:
        identity = {
            "cache": _CACHE_VERSION,
            "key": key,
            "reference": reference_key,
            "input": [str(example.dtype), *map(int, example.shape)],
            "runtime": self.target.runtime.name,
            "versions": self._versions(),
            "figures": self._figures,
        }
        return entry_path(self.cache_dir, "prediction", identity)


def as_built(found: tuple[Operation, ...], plan: Plan | None) -> tuple[Operation, ...]:
    """Operations in the precision that the built engine really runs them in."""
    if plan is None:
        return found
    return tuple(
        dataclasses.replace(o, precision=plan.layers.get(o.weight or "", o.precision)) if o.weight else o for o in found
    )


def _digest(target: Target) -> str:
    """Of everything that a prediction is made from: the profile and its table, as read."""
    profile = target.profile
    table = b"" if profile.latency_table is None else profile.latency_table.read_bytes()
    plain = dataclasses.replace(profile, path=None, latency_table=None)
    return hashlib.sha256(repr(plain).encode() + table).hexdigest()[:32]
