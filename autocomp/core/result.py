"""What a search found: the value that reports, ``--json`` and the Python API are made from."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

from autocomp.core.row import Row


@dataclasses.dataclass(frozen=True, kw_only=True)
class LayerReport:
    """One line of the per-layer table of the best network.

    Attributes:
        layer, kind, shape, parameters, macs: the layer.
        choice: label of its choice ("k0.5+int8").
        coded_bytes: what its tensors take in the file.
        bits_per_weight: 8 * coded_bytes / weights.
        kl: KL divergence to float32 with only this choice made, nats (from the survey).
        executes: precision on the target, as the engine was exported.
        runs: precision that the built engine really runs it in, "" where no engine was built.
        became: shapes of the weights it became where channels were removed or it was factorised, else empty.
        macs_left: multiply-accumulates of what it became (``macs`` where nothing changed).
        prices: (choice label, coded bytes, kl) of each priced choice of the unit, for the picture.
    """

    layer: str
    kind: str
    shape: tuple[int, ...]
    parameters: int
    macs: int
    choice: str
    coded_bytes: int
    bits_per_weight: float
    kl: float
    executes: str
    runs: str = ""
    became: tuple[tuple[int, ...], ...] = ()
    macs_left: int = 0
    prices: tuple[tuple[str, int, float], ...] = ()


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunSummary:
    """Everything a run claims. ``to_json(brief=True)`` is the ``--json`` object; the full form is
    stored as ``summary.json`` in the run folder.

    Attributes:
        run: absolute path of the run folder.
        model, data: what was compressed (names for titles).
        target: name of the hardware profile.
        budget_bytes: or None.
        constraints: name → limit ("max_drop": 0.01, ...), only those that were set.
        metric: {"name", "direction", "unit"}.
        float32: the uncompressed network.
        best: the answer, or None when nothing is feasible.
        baselines: by name ("float16", "int8", "uniform-4bit", "fastest").
        pareto: the front over all evaluated rows, infeasible ones marked.
        trials: every evaluated row, in order of trial number.
        evaluations, cache_hits: counts.
        engine_builds: evaluations that needed an engine of their own; the others differ in weights or steps only.
        failures: count by "stage/kind".
        seconds: wall seconds by stage: load, survey, search (with baselines), finish (with decide), pack.
        versions: package → version.
        settings: resolved settings as JSON.
        environment: machine, devices, commit, ...
        layers: the per-layer table of ``best``.
        skipped: (name, reason) of what stays in float32.
        notes: one line each.
        nearest: nearest miss when infeasible.
    """

    run: str
    model: str
    data: str
    target: str
    budget_bytes: int | None
    constraints: dict[str, float]
    metric: dict[str, str]
    float32: Row
    best: Row | None
    baselines: dict[str, Row]
    pareto: tuple[Row, ...]
    trials: tuple[Row, ...] = ()
    evaluations: int = 0
    cache_hits: int = 0
    engine_builds: int = 0
    failures: dict[str, int] = dataclasses.field(default_factory=dict)
    seconds: dict[str, float] = dataclasses.field(default_factory=dict)
    versions: dict[str, str] = dataclasses.field(default_factory=dict)
    settings: dict[str, Any] = dataclasses.field(default_factory=dict)
    environment: dict[str, Any] = dataclasses.field(default_factory=dict)
    layers: tuple[LayerReport, ...] = ()
    skipped: tuple[tuple[str, str], ...] = ()
    notes: tuple[str, ...] = ()
    nearest: dict[str, float] = dataclasses.field(default_factory=dict)

    BRIEF: ClassVar[tuple[str, ...]] = (
        "run",
        "target",
        "budget_bytes",
        "constraints",
        "metric",
        "float32",
        "best",
        "baselines",
        "pareto",
        "evaluations",
        "cache_hits",
        "engine_builds",
        "failures",
        "seconds",
        "versions",
    )

    def to_json(self, *, brief: bool = False) -> dict[str, Any]:
        """Plain values; ``brief`` keeps the keys of the --json contract."""
        data = dataclasses.asdict(self)
        return {k: data[k] for k in self.BRIEF} if brief else data

    @staticmethod
    def from_json(data: dict[str, Any]) -> RunSummary:
        """Inverse of the full :meth:`to_json`."""
        fields = dict(data)
        fields["float32"] = Row.from_json(fields["float32"])
        fields["best"] = Row.from_json(fields["best"]) if fields["best"] else None
        fields["baselines"] = {k: Row.from_json(r) for k, r in fields["baselines"].items()}
        for key in ("pareto", "trials"):
            fields[key] = tuple(Row.from_json(r) for r in fields[key])
        fields["layers"] = tuple(
            LayerReport(
                **{
                    **item,
                    "shape": tuple(item["shape"]),
                    "became": tuple(tuple(shape) for shape in item.get("became", ())),
                    "prices": tuple((p[0], p[1], p[2]) for p in item["prices"]),
                }
            )
            for item in fields["layers"]
        )
        fields["skipped"] = tuple((s[0], s[1]) for s in fields["skipped"])
        fields["notes"] = tuple(fields["notes"])
        return RunSummary(**fields)
