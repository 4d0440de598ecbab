"""Write a row of a run in another format."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
from safetensors.torch import save

from autocomp import runtimes
from autocomp.coding.container import read_artifact
from autocomp.core.compressed import CompressedModel
from autocomp.core.result import RunSummary
from autocomp.core.row import Row
from autocomp.core.run_folder import RunFolder, storage_errors, write_atomic
from autocomp.errors import ConfigError, UnsupportedError
from autocomp.search.evaluator import Evaluator
from autocomp.search.reopening import reopened
from autocomp.stages.opening import settings_of
from autocomp.stages.rows import read_row

FORMATS = ("autocomp", "onnx", "safetensors", "tensorrt")


def knee(rows: list[Row]) -> Row:
    """The row farthest below the line between the ends of the front in (log bytes, loss), both scaled to [0, 1].

    Source: the L-method in its geometric form ("kneedle", Satopää et al. 2011), on the hull's ends.
    """
    ordered = sorted(rows, key=lambda r: r.file_bytes)
    x = np.log([r.file_bytes for r in ordered])
    y = np.log([r.kl_search + 1e-6 for r in ordered])
    span_x, span_y = np.ptp(x) or 1.0, np.ptp(y) or 1.0
    x, y = (x - x.min()) / span_x, (y - y.min()) / span_y
    line = y[0] + (y[-1] - y[0]) * (x - x[0]) / ((x[-1] - x[0]) or 1.0)
    return ordered[int(np.argmax(line - y))]


def pick_row(summary: RunSummary, pick: str) -> Row:
    """The row that ``--pick`` names: best, knee, or a trial number."""
    if pick == "best":
        if summary.best is None:
            raise ConfigError(f"{summary.run} has no feasible row; pick a trial number from pareto.csv")
        return summary.best
    if pick == "knee":
        return knee(list(summary.pareto))
    if not pick.isdecimal():
        raise ConfigError(f"--pick {pick!r}: give best, knee, or a trial number")
    row = next((r for r in summary.pareto if r.trial == int(pick) and r.file), None)
    if row is None:
        kept = sorted({r.trial for r in summary.pareto if r.trial is not None and r.file})
        raise ConfigError(f"trial {pick} has no file in {summary.run}; kept are the front's trials: {kept}")
    return row


def export_row(run: RunFolder, summary: RunSummary, pick: str, file_format: str, out: Path | None) -> Path:
    """Write the picked row as ``file_format``; returns the path."""
    if file_format not in FORMATS:
        raise ConfigError(f"--format {file_format!r}; known: {', '.join(FORMATS)}")
    row = pick_row(summary, pick)
    if row.file is None or not Path(row.file).is_file():
        raise ConfigError(f"{row.name} has no file in {run.path}")
    suffix = {"tensorrt": "plan"}.get(file_format, file_format)
    target = out or run.path / f"{pick if pick != 'best' else 'model'}.{suffix}"
    with storage_errors(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        if file_format == "autocomp":
            if target.absolute() != Path(row.file).absolute():
                shutil.copyfile(row.file, target)
        elif file_format == "safetensors":
            tensors = {k: e.decode().contiguous() for k, e in read_artifact(Path(row.file)).tensors().items()}
            write_atomic(target, save(tensors))
        elif file_format == "tensorrt":
            write_plan(reopened(settings_of(run), run), read_row(row), target)
        else:
            write_atomic(target, reopened(settings_of(run), run).onnx(read_row(row)))
    return target


def write_plan(evaluator: Evaluator, compressed: CompressedModel, path: Path) -> None:
    """The engine that the run's target ships, at ``path``, and what its builder tells in a JSON file beside it.

    Raises:
        UnsupportedError: the run's target ships no plan, or nothing can be built for it here.
    """
    session = evaluator.session
    profile = session.target.profile
    if runtimes.plan_suffix(profile.runtime) is None:
        raise UnsupportedError(
            f"this run's target {profile.name} ({profile.runtime}) ships the ONNX file, not a plan: search with a "
            "TensorRT target (autocomp targets lists them), or take --format onnx, which trtexec builds from"
        )
    why = session.target.cannot_build()
    if why is not None:
        raise UnsupportedError(f"no plan can be built here: {why}")
    batch = session.settings.batch_size[0]
    plan = session.target.runtime.build(
        evaluator.onnx(compressed, batch), profile, session.workload.example(batch).numpy()
    )
    with storage_errors(path):
        write_atomic(path, plan.data)
        details = {"layers": dict(plan.layers), "versions": session.target.runtime.versions(), **plan.details}
        write_atomic(path.with_suffix(f"{path.suffix}.json"), json.dumps(details, indent=1).encode())
