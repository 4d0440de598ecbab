"""Pack the answer, check it bit for bit, keep the front's files, write the report."""

from __future__ import annotations

import dataclasses
import os
import shutil
from pathlib import Path

import torch

from autocomp import runtimes
from autocomp.coding.container import read_artifact
from autocomp.core.compressed import CompressedModel
from autocomp.core.progress import Progress
from autocomp.core.result import LayerReport, RunSummary
from autocomp.core.row import Row
from autocomp.core.run_folder import RunFolder, storage_errors, write_atomic
from autocomp.environment import environment
from autocomp.errors import CorruptFileError
from autocomp.report import write_report
from autocomp.search.evaluator import Evaluator
from autocomp.stages.clock import Clock
from autocomp.stages.deciding import Answer
from autocomp.stages.exploring import Explored
from autocomp.stages.exporting import write_plan
from autocomp.stages.summarising import (
    built_layers,
    faster_note,
    front_of,
    layer_table,
    padding_note,
    room_notes,
    speed_notes,
    versions,
)


def pack(evaluator: Evaluator, compressed: CompressedModel, best: Row, run: RunFolder) -> Row:
    """``model.autocomp``, ``model.onnx`` and, where the target ships one, ``model.plan`` of the answer.

    Raises:
        CorruptFileError: the file read back is not bit for bit what was scored (a defect here, or of the disk).
    """
    with storage_errors(run.path):
        write_atomic(run.artifact, Path(best.file or "").read_bytes())
        if evaluator.session.network.graph is not None:
            write_atomic(run.onnx, evaluator.onnx(compressed))
            suffix = runtimes.plan_suffix(evaluator.session.target.profile.runtime)
            if suffix is not None and evaluator.session.target.cannot_build() is None:
                write_plan(evaluator, compressed, run.artifact.with_suffix(suffix))
    tensors = read_artifact(run.artifact).tensors()
    for name, encoding in compressed.tensors.items():
        if name not in tensors or not torch.equal(tensors[name].decode(), encoding.decode()):
            raise CorruptFileError(f"{run.artifact}: {name} does not decode to what was scored; run again with --fresh")
    size = os.stat(run.artifact).st_size
    return dataclasses.replace(best, file=str(run.artifact), file_bytes=size)


def keep_front_files(run: RunFolder, rows: tuple[Row, ...], front: list[Row]) -> dict[tuple[int | None, str], str]:
    """Move the front's files to ``candidates/``, remove the others; returns the files by row."""
    kept: dict[tuple[int | None, str], str] = {}
    wanted = {(r.trial, r.name) for r in front}
    with storage_errors(run.path):
        run.candidates.mkdir(exist_ok=True)
        for row in rows:
            if row.file is None or (row.trial, row.name) not in wanted:
                continue
            source, target = Path(row.file), run.candidates / Path(row.file).name
            if source.is_file() and source != target:
                shutil.move(source, target)
            if target.is_file():
                kept[row.trial, row.name] = str(target)
        names = {Path(f).name for f in kept.values()}
        for file in run.candidates.glob("*.autocomp"):
            if file.name not in names:
                file.unlink()
        shutil.rmtree(run.cache / "candidates", ignore_errors=True)
    return kept


def wrap_up(evaluator: Evaluator, explored: Explored, answer: Answer, clock: Clock, progress: Progress) -> RunSummary:
    """Files, summary and report of the run."""
    session, run = evaluator.session, evaluator.session.run
    run.check()
    progress.stage("report", total=3)
    best = answer.best
    notes = list(explored.notes)
    layers: tuple[LayerReport, ...] = ()
    with clock("pack"):
        if best is not None and answer.compressed is not None:
            best = pack(evaluator, answer.compressed, best, run)
            executes: dict[str, str] = {}
            form = evaluator.structured(answer.compressed.candidate)
            if form.network.graph is not None:
                asked = set(form.executed_layers(answer.compressed.candidate))
                executes = form.executes(answer.compressed, asked)
            layers = layer_table(evaluator, best, executes, built_layers(answer.timing))
            extra = speed_notes(best, answer.timing, session.target.profile.title)
            hint = faster_note(best, answer.rows, session.workload.metric)
            padding = padding_note(evaluator, best)
            room = room_notes(evaluator, best, answer.compressed)
            best = dataclasses.replace(best, notes=(*best.notes, *extra, *hint, *padding, *room))
        front = front_of(answer.rows)
        files = keep_front_files(run, answer.rows, front)
        rows = tuple(dataclasses.replace(r, file=files.get((r.trial, r.name))) for r in answer.rows)
    progress.advance()
    summary = RunSummary(
        run=str(run.path),
        model=session.workload.name,
        data=str(session.workload.facts.get("data", session.settings.data or "")),
        target=session.target.profile.name,
        budget_bytes=session.settings.budget_bytes,
        constraints=explored.limits.to_json(),
        metric={
            "name": session.workload.metric.name,
            "direction": session.workload.metric.direction,
            "unit": session.workload.metric.unit,
        },
        float32=explored.float32,
        best=best,
        baselines=explored.baselines,
        pareto=tuple(dataclasses.replace(r, file=files.get((r.trial, r.name))) for r in front),
        trials=rows,
        evaluations=explored.stats.evaluations,
        cache_hits=explored.stats.cache_hits,
        engine_builds=explored.stats.engine_builds,
        failures=dict(explored.stats.failures),
        seconds={k: round(v, 2) for k, v in clock.seconds.items()},
        versions=versions(),
        settings=session.settings.to_json(),
        environment=environment(),
        layers=layers,
        skipped=tuple((s.name, s.reason) for s in session.network.skipped),
        notes=tuple(notes),
        nearest={} if best is not None else explored.limits.nearest(answer.rows),
    )
    run.write_json(run.summary, summary.to_json())
    progress.advance()
    with storage_errors(run.path):
        write_report(summary, run.path)
    progress.advance()
    return summary
