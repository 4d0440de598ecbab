"""Latency from measured costs: what each kind of operation costs by shape and precision, and each pair of neighbours.

    seconds = constant + Σ over operations (a + b · multiply-accumulates + c · elements read + d · elements written)
                       + Σ over neighbours and edges (e + f · elements)

with one set of non-negative costs for each kind of operation (layer kind, kernel, stride, precision) and each pair of
kinds that pass a value on. Neighbour terms hold what no single operation knows: kernels fused across operations,
changes of precision and of memory layout in between.

Sources: Zhang et al., "nn-Meter", MobiSys 2021 (kernels, fusion, sampling); Dudziak et al., "BRP-NAS", NeurIPS 2020
(latency look-up tables miss what lies between layers). Ours fits all costs together, by least squares on whole engines
and, where they were timed, single operators; nothing is detected beforehand.
"""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from autocomp.core.run_folder import storage_errors, write_atomic
from autocomp.errors import ConfigError
from autocomp.profiling.model import Prediction
from autocomp.profiling.operations import MATRIX_KINDS, Operation

VERSION = 1
FOLDS = 5
_PROFILER = "profiler"
QUANTILE = 0.9
"""The error that is stated: 9 of 10 predictions of engines left out of the fit are nearer."""


@dataclass(frozen=True, kw_only=True)
class Sample:
    """A measured engine.

    Attributes:
        operations: of the model it was built from.
        seconds: of one inference.
        layers_s: weight → seconds of that layer alone, where the runtime told them.
    """

    operations: Sequence[Operation]
    seconds: float
    layers_s: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class LatencyTable:
    """Costs by name of the term.

    Attributes:
        costs_s: term → seconds for one unit of it.
        multiple: channels are also counted rounded up to it.
        error: relative error that 9 of 10 engines stayed below when left out of the fit; None: unknown.
        facts: what was measured, on what, when.
    """

    costs_s: Mapping[str, float]
    multiple: int = 16
    error: float | None = None
    facts: Mapping[str, Any] = field(default_factory=dict)

    def predict(self, found: Sequence[Operation]) -> Prediction:
        """Sum of the costs. Kinds of operations that were never measured count nothing, and a note says so."""
        counted = terms(found, self.multiple)
        unknown = sorted({t.split()[0] for t in counted if t.endswith(" count") and t not in self.costs_s})
        strange = [t for t in unknown if ">" not in t]
        notes = (f"never measured on this device, counted as nothing: {', '.join(strange)}",) if strange else ()
        seconds = sum(self.costs_s.get(term, 0.0) * amount for term, amount in counted.items())
        error = None if strange else self.error
        return Prediction(seconds=seconds, error=error, method="table", notes=notes)

    def save(self, path: Path) -> None:
        """As JSON."""
        plain = {
            "version": VERSION,
            "multiple": self.multiple,
            "error": self.error,
            "facts": dict(self.facts),
            "costs_s": dict(self.costs_s),
        }
        with storage_errors(path):
            write_atomic(path, (json.dumps(plain, indent=1) + "\n").encode())

    @staticmethod
    def load(path: Path) -> LatencyTable:
        """A saved table; :class:`ConfigError` where the file is none."""
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
            if data["version"] != VERSION:
                raise ConfigError(f"{path}: latency table of version {data['version']}; this autocomp reads {VERSION}")
            costs = {str(term): float(cost) for term, cost in data["costs_s"].items()}
            error = None if data["error"] is None else float(data["error"])
            return LatencyTable(costs_s=costs, multiple=int(data["multiple"]), error=error, facts=data["facts"])
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as reason:
            raise ConfigError(f"{path}: no latency table ({reason}); run autocomp profile again") from reason


def fit(
    samples: Sequence[Sample], *, multiple: int = 16, ridge: float = 0.1, facts: Mapping[str, Any] | None = None
) -> LatencyTable:
    """Costs that explain ``samples``, and their error by cross-validation (:data:`FOLDS` folds).

    Args:
        samples: measured engines, single operators among them or not.
        multiple: see :class:`LatencyTable`.
        ridge: weight of the squared costs, each scaled by the most that a sample holds of its term: terms that the
            samples cannot tell apart share their cost.
        facts: kept with the table.
    """
    errors = []
    for fold in range(FOLDS if len(samples) >= 2 * FOLDS else 0):
        costs = _solved([s for i, s in enumerate(samples) if i % FOLDS != fold], multiple, ridge)
        table = LatencyTable(costs_s=costs, multiple=multiple)
        errors += [abs(table.predict(s.operations).seconds / s.seconds - 1) for s in samples[fold::FOLDS]]
    error = sorted(errors)[math.ceil(QUANTILE * len(errors)) - 1] if errors else None
    return LatencyTable(costs_s=_solved(samples, multiple, ridge), multiple=multiple, error=error, facts=facts or {})


def _solved(samples: Sequence[Sample], multiple: int, ridge: float) -> dict[str, float]:
    """Non-negative least squares; every residual counts by its share of its engine's latency."""
    import numpy as np
    from scipy.optimize import nnls

    rows: list[tuple[Mapping[str, float], float, float]] = []  # terms, seconds, seconds of the engine
    for sample in samples:
        rows.append((terms(sample.operations, multiple), sample.seconds, sample.seconds))
        for operation in sample.operations:
            if operation.weight is not None and operation.weight in sample.layers_s:
                rows.append((_timed_alone(operation, multiple), sample.layers_s[operation.weight], sample.seconds))
    names = sorted({term for row, _, _ in rows for term in row})
    amounts = np.array([[row.get(term, 0.0) for term in names] for row, _, _ in rows])
    seconds, whole = np.array([s for _, s, _ in rows]), np.array([w for _, _, w in rows])
    scale = np.maximum(amounts.max(axis=0), 1e-12)
    system = np.vstack([amounts / scale / whole[:, None], ridge**0.5 * np.eye(len(names)) / whole.mean()])
    found, _ = nnls(system, np.concatenate([seconds / whole, np.zeros(len(names))]), maxiter=50 * len(names))
    return {n: float(cost) for n, cost in zip(names, found / scale, strict=True) if n != _PROFILER}


def _timed_alone(operation: Operation, multiple: int) -> dict[str, float]:
    """Terms of one layer as a profiler sees it: no neighbours, and the profiler's own time."""
    kind = kind_of(operation)
    return {f"{kind} {name}": amount for name, amount in _amounts(operation, multiple).items()} | {_PROFILER: 1.0}


def terms(found: Sequence[Operation], multiple: int) -> dict[str, float]:
    """What an engine holds of each term: "conv2d3x3/1:int8 macs" → 2,359,296."""
    counted: dict[str, float] = defaultdict(float)
    counted["constant"] = 1.0
    makers: dict[str, str] = {}
    for operation in found:
        kind = kind_of(operation)
        for name, amount in _amounts(operation, multiple).items():
            counted[f"{kind} {name}"] += amount
        for edge in operation.edges:
            counted[f"{edge.kind} count"] += 1
            counted[f"{edge.kind} elements"] += edge.elements
        for value in operation.reads:
            pair = f"{makers.get(value.name, 'input')}>{_group(operation, multiple)}"
            counted[f"{pair} count"] += 1
            counted[f"{pair} elements"] += value.elements
        makers[operation.writes.name] = _group(operation, multiple)
    return dict(counted)


def kind_of(operation: Operation) -> str:
    """Operations of one kind share their costs: "conv2d3x3/2:int8", "Add:float32"."""
    if operation.kind not in MATRIX_KINDS:
        return f"{operation.op_type}:{operation.precision}"
    size = "x".join(map(str, operation.kernel))
    stride = "x".join(map(str, dict.fromkeys(operation.strides)))
    return f"{operation.kind}{size}{'/' + stride if stride else ''}:{operation.precision}"


def _amounts(operation: Operation, multiple: int) -> dict[str, float]:
    written, read = operation.writes.elements, sum(value.elements for value in operation.reads)
    if operation.kind not in MATRIX_KINDS:
        return {"count": 1, "elements": written + read}
    inside, outside = operation.channels
    wide = -(-outside // multiple) * multiple / outside
    deep = -(-inside // multiple) * multiple / inside if operation.groups == 1 else 1.0
    return {
        "count": 1,
        "macs": operation.macs,
        "macs of padded outputs": operation.macs * wide,
        "macs of padded channels": operation.macs * wide * deep,
        "read": read,
        "read for each tap": operation.macs / outside,
        "written": written,
        "written padded": written * wide,
        "weights": operation.weight_bytes,
    }


def _group(operation: Operation, multiple: int) -> str:
    """What decides how neighbours get on: layer or not, precision, whole blocks of channels or not."""
    if operation.kind not in MATRIX_KINDS:
        return f"{operation.kind}:{operation.precision}"
    whole = "" if operation.channels[1] % multiple == 0 else "~"
    return f"{'layer' if operation.kind != 'matmul' else 'matmul'}{whole}:{operation.precision}"
