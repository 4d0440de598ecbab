"""Everything the run claims, in one value."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy as np

from autocomp import __version__
from autocomp.coding.container import read_artifact
from autocomp.core.candidate import Candidate
from autocomp.core.compressed import CompressedModel
from autocomp.core.outcome import Measurement
from autocomp.core.result import LayerReport
from autocomp.core.row import Row
from autocomp.core.steps import FLOAT
from autocomp.core.workload import Metric
from autocomp.evaluators.statistics import median_ratio, ratio_ci
from autocomp.profiling.operations import operations, peak_activation_bytes
from autocomp.search.evaluator import Evaluator
from autocomp.search.front import pareto_mask
from autocomp.transforms.patches import Patches, has_patches

PACKAGES = ("torch", "numpy", "optuna", "constriction", "onnx", "onnxscript", "onnxruntime", "scikit-learn")


def versions() -> dict[str, str]:
    """Versions of what decides the result."""
    out = {"autocomp": __version__}
    for name in PACKAGES:
        try:
            out[name] = version(name)
        except PackageNotFoundError:
            continue
    return out


def front_of(rows: Sequence[Row]) -> list[Row]:
    """Non-dominated rows in (loss, bytes, latency where every row has one), smallest file first."""
    if not rows:
        return []
    columns = [[r.kl_search for r in rows], [float(r.file_bytes) for r in rows]]
    if all(r.latency_ms is not None for r in rows):
        columns.append([r.latency_ms or 0.0 for r in rows])
    keep = pareto_mask(np.array(columns, dtype=np.float64).T)
    return sorted((r for r, k in zip(rows, keep, strict=True) if k), key=lambda r: r.file_bytes)


def built_layers(timing: Measurement | None) -> dict[str, str]:
    """Weight → precision that the built engine really runs it in; empty where none was built."""
    return dict(timing.conditions.get("layer_precisions", {})) if timing is not None else {}


def layer_table(
    evaluator: Evaluator, row: Row, executes: Mapping[str, str], built: Mapping[str, str]
) -> tuple[LayerReport, ...]:
    """The per-layer table of ``row``: what was chosen, what it takes in the file, what it does alone.

    Args:
        evaluator: of the session.
        row: the network.
        executes: layer → precision as exported.
        built: from :func:`built_layers`.
    """
    candidate = Candidate.from_json(row.recipe)
    session, prices = evaluator.session, evaluator.survey.prices
    form = evaluator.structured(candidate)
    parts, coded = form.variant.parts(), coded_sizes(row)
    out = []
    for unit in session.space.units.values():
        table = prices.storage.get(unit.name)
        storage = candidate[unit.name].storage()
        known = table is not None and storage in table.choices
        for name in unit.layers:
            layer = session.network.layers[name]
            became = [form.network.layers[p] for p in parts.get(name, ())]
            shapes = tuple(p.weight_shape for p in became)
            weights = sum(math.prod(shape) for shape in shapes)
            weight_bytes = sum(coded.get(p.weight, 0) for p in became)
            out.append(
                LayerReport(
                    layer=name,
                    kind=layer.kind,
                    shape=layer.weight_shape,
                    parameters=layer.parameters,
                    macs=layer.macs,
                    choice=candidate[unit.name].label() if unit.name in candidate else FLOAT.label(),
                    coded_bytes=weight_bytes + sum(coded.get(p.bias or "", 0) for p in became),
                    bits_per_weight=8.0 * weight_bytes / max(1, weights),
                    kl=float(table.kl[table.index(storage)]) if table is not None and known else 0.0,
                    executes=_executed([executes.get(p.name, "float32") for p in became]),
                    runs=_executed([built[p.weight] for p in became if p.weight in built], unknown=""),
                    became=() if shapes == (layer.weight_shape,) else shapes,
                    macs_left=sum(p.macs for p in became),
                    prices=tuple(
                        (c.label(), int(b), float(k))
                        for c, b, k in zip(table.choices, table.bytes, table.kl, strict=True)
                    )
                    if table is not None
                    else (),
                )
            )
    return tuple(out)


def _executed(precisions: Sequence[str], unknown: str = "float32") -> str:
    """How the layers of a chain are executed, in one word where they agree."""
    return "/".join(dict.fromkeys(precisions)) or unknown


def coded_sizes(row: Row) -> dict[str, int]:
    """Bytes of each tensor in the row's file."""
    if row.file is None:
        return {}
    return {name: len(record) for name, record in read_artifact(Path(row.file)).records.items()}


def padding_note(evaluator: Evaluator, best: Row) -> tuple[str, ...]:
    """Whether the answer is good for this input size only: kernel taps that only ever meet padding were set to zero."""
    candidate = Candidate.from_json(best.recipe)
    if not any(getattr(choice.get("weights"), "uses_inputs", False) for choice in candidate.values()):
        return ()
    form = evaluator.structured(candidate)
    unmet = []
    for name, layer in form.network.layers.items():
        module = form.network.module.get_submodule(name)
        if has_patches(module) and layer.input_shape:
            patches = Patches.of(module, (1, *layer.input_shape))
            if len(patches.columns) < patches.width:
                unmet.append(name)
    if not unmet:
        return ()
    more = f" and {len(unmet) - 1} more" if len(unmet) > 1 else ""
    size = " x ".join(map(str, form.network.input_shape))
    return (
        f"at inputs of {size}, some kernel taps of {unmet[0]}{more} only ever meet padding and were rounded to zero: "
        "the file is smaller for it and good for this input size only",
    )


def room_notes(evaluator: Evaluator, best: Row, compressed: CompressedModel) -> tuple[str, ...]:
    """Whether the answer fits the memories that the target's profile names: the file, and activations at their peak."""
    profile = evaluator.session.target.profile
    needs = {"flash_bytes": (best.file_bytes, "the file takes")}
    if profile.limits.get("memory_bytes") and evaluator.session.network.graph is not None:
        batch = evaluator.session.settings.batch_size[0]
        peak = peak_activation_bytes(operations(evaluator.onnx(compressed, batch), batch))
        needs["memory_bytes"] = (peak, "activations take, at their peak,")
    notes = []
    for name, (needed, text) in needs.items():
        limit = profile.limits.get(name)
        if limit is not None and (name == "flash_bytes" or needed > limit / 100):  # gigabytes need no remark
            word = "fits" if needed <= limit else "DOES NOT FIT"
            notes.append(f"{word} {name} of {profile.name}: {text} {needed:,} of {limit:,} bytes")
    return tuple(notes)


def speed_notes(best: Row, timing: Measurement | None, profile_title: str) -> tuple[str, ...]:
    """How the answer's latency compares with float32's, sample by sample in one run, and why it is not faster.

    Args:
        best: the answer.
        timing: its measurement, with the float32 engine interleaved.
        profile_title: the target, for people.
    """
    if timing is None:
        return (f"no latency: the network could not be traced for export, or {profile_title} has no figures for it",)
    if timing.source == "predicted":
        return (predicted_note(timing, profile_title),)
    ratio, (low, high) = ratio_ci(timing.samples_s, timing.reference_s)
    text = f"{ratio:.2f} x the latency of float32 [{low:.2f}, {high:.2f}], measured in turn on {profile_title}"
    if high < 1.0:
        return (text,)
    if {"prune_channels", "factorise"} & set(best.techniques):
        why = "the layers that are left run no faster here: odd numbers of channels or more, smaller calls"
    elif "quantize_activations" in best.techniques:
        why = "int8 kernels with their quantize and dequantize steps cost as much as they save at this size"
    else:
        why = "it executes in float32, since fewer bits in the file change no arithmetic"
    return (f"smaller, not faster: {text}: {why}",)


def predicted_note(timing: Measurement, profile_title: str) -> str:
    """What a predicted latency is worth: its method, its error, what it leaves out."""
    facts = timing.conditions.get("prediction", {})
    error = f"within {facts['error']:.0%} for 9 of 10 networks" if facts.get("error") is not None else "error unknown"
    ratio = (
        f"{median_ratio(timing.samples_s, timing.reference_s):.2f} x the latency of float32, "
        if timing.reference_s
        else ""
    )
    left_out = "".join(f"; {note}" for note in facts.get("notes", ()))
    return f"{ratio}predicted for {profile_title} ({facts.get('method', 'predicted')}, {error}), not measured{left_out}"


def faster_note(best: Row, rows: Sequence[Row], metric: Metric) -> tuple[str, ...]:
    """A feasible row with at least the answer's search score and clearly less latency, and how to ask for it."""
    if best.latency_ms is None:
        return ()
    good = [
        r
        for r in rows
        if r.feasible
        and r.latency_ms is not None
        and r.latency_ms < 0.9 * best.latency_ms
        and metric.drop(best.score_search, r.score_search) <= 0
    ]
    if not good:
        return ()
    pick = min(good, key=lambda r: (r.kl_search, r.file_bytes))
    limit = f"{(pick.latency_ms or 0.0) * 1.05:.3g}ms"
    return (
        f"{pick.name} has the same search score in {pick.latency_ms:.3g} ms and {pick.file_bytes:,} bytes "
        f"(KL {pick.kl_search:.2g} nats against {best.kl_search:.2g}): --max-latency {limit} asks for such a row",
    )
