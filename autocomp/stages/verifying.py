"""Measure again what a run or a file claims."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from pathlib import Path

from autocomp.coding.container import pack_artifact, read_artifact
from autocomp.core.outcome import Measurement
from autocomp.core.progress import Progress
from autocomp.core.result import RunSummary
from autocomp.core.row import Row
from autocomp.core.run_folder import RunFolder
from autocomp.evaluators.bench import Bench
from autocomp.evaluators.statistics import ratio_ci
from autocomp.search.evaluator import Evaluator
from autocomp.search.reopening import reopened
from autocomp.stages.opening import settings_of
from autocomp.stages.rows import read_row

TIMING_SLACK = 1.25
"""Intervals of two latency ratios may lie this factor apart: caches and clocks differ between two runs."""


@dataclass(frozen=True, kw_only=True)
class Check:
    """One claim, measured again.

    Attributes:
        name: what is claimed.
        claimed, measured: both as text.
        ok: whether it holds.
    """

    name: str
    claimed: str
    measured: str
    ok: bool


def verify_file(path: Path, progress: Progress) -> list[Check]:
    """Checks that need nothing but the file: checksums, decoding twice to the same bits, size."""
    progress.stage("verify", total=2)
    artifact = read_artifact(path)
    size = os.stat(path).st_size
    tensors = artifact.tensors()
    progress.advance()
    repacked = pack_artifact(artifact.manifest, dict(artifact.records))
    elements = sum(e.decode().numel() for e in tensors.values())
    progress.advance()
    return [
        Check(name="checksums hold", claimed="yes", measured="yes", ok=True),
        Check(
            name="repacks to the same bytes",
            claimed=f"{size:,} bytes",
            measured=f"{len(repacked):,} bytes",
            ok=repacked == path.read_bytes(),
        ),
        Check(
            name="decodes to finite tensors",
            claimed=f"{len(tensors)} tensors",
            measured=f"{elements:,} elements",
            ok=all(bool(e.decode().isfinite().all()) for e in tensors.values()),
        ),
    ]


def verify_run(run: RunFolder, summary: RunSummary, progress: Progress, bench: Bench | None = None) -> list[Check]:
    """Every claim of the summary that can be measured again: sizes, scores, latency, bit-exact tensors.

    Scores must agree to 1e-6 (same machine, same kernels) or within one sample in a thousand on another CPU;
    of latency the ratio to float32 is checked, sample by sample in turn: seconds differ with the machine's load.
    """
    rows = {r.file: r for r in (*summary.baselines.values(), *summary.pareto) if r.file}
    if summary.best is not None and summary.best.file:
        rows[summary.best.file] = summary.best
    progress.stage("verify", total=len(rows) + 1)
    evaluator = reopened(settings_of(run), run, progress=progress, bench=bench)
    session = evaluator.session
    checks: list[Check] = []
    measured = evaluator.reference.outputs
    base = session.workload.metric.compute(measured, evaluator.reference.targets, measured)
    checks.append(_score_check("float32 score_search", summary.float32.score_search, base))
    progress.advance()
    for row in rows.values():
        checks.extend(_row_checks(evaluator, row))
        if summary.best is not None and row.candidate == summary.best.candidate and row.name == summary.best.name:
            checks.extend(_best_checks(evaluator, summary, row))
        progress.advance()
    return checks


def _score_check(name: str, claimed: float, measured: float) -> Check:
    return Check(
        name=name,
        claimed=f"{claimed:.4f}",
        measured=f"{measured:.4f}",
        ok=abs(claimed - measured) <= 1e-3 * max(1.0, abs(claimed)) + 1e-6,
    )


def _row_checks(evaluator: Evaluator, row: Row) -> list[Check]:
    path = Path(row.file or "")
    if not path.is_file():
        return [Check(name=f"{row.name}: file", claimed=str(path), measured="missing", ok=False)]
    size = os.stat(path).st_size
    quality = evaluator.quality(read_row(row))
    return [
        Check(
            name=f"{row.name}: file_bytes",
            claimed=f"{row.file_bytes:,}",
            measured=f"{size:,}",
            ok=size == row.file_bytes,
        ),
        _score_check(f"{row.name}: score_search", row.score_search, quality.score),
        Check(
            name=f"{row.name}: kl_search",
            claimed=f"{row.kl_search:.6f}",
            measured=f"{quality.loss:.6f}",
            ok=abs(quality.loss - row.kl_search) <= 0.01 * row.kl_search + 1e-6,
        ),
    ]


def _best_checks(evaluator: Evaluator, summary: RunSummary, row: Row) -> list[Check]:
    checks = []
    if summary.budget_bytes is not None:
        size = os.stat(row.file or "").st_size
        checks.append(
            Check(
                name="best: within the budget",
                claimed=f"<= {summary.budget_bytes:,}",
                measured=f"{size:,}",
                ok=size <= summary.budget_bytes,
            )
        )
    compressed = read_row(row)
    if row.score_test is not None:
        checks.append(_score_check("best: score_test", row.score_test, evaluator.test_quality(compressed).score))
    if row.latency_source == "predicted" and row.latency_ms is not None:
        return [*checks, _prediction_check(row.latency_ms, evaluator.latency(compressed, fresh=True))]
    known = evaluator.latency(compressed) if row.latency_ms is not None else None
    again = evaluator.latency(compressed, fresh=True) if known is not None else None
    if known is not None and again is not None and known[0].reference_s and again[0].reference_s:
        claimed, (low, high) = ratio_ci(known[0].samples_s, known[0].reference_s)
        ratio, (again_low, again_high) = ratio_ci(again[0].samples_s, again[0].reference_s)
        checks.append(
            Check(
                name="best: latency / float32, measured in turn",
                claimed=f"{claimed:.3f} [{low:.3f}, {high:.3f}]",
                measured=f"{ratio:.3f} [{again_low:.3f}, {again_high:.3f}]",
                ok=low / TIMING_SLACK <= again_high and again_low <= high * TIMING_SLACK,
            )
        )
    return checks


def _prediction_check(claimed_ms: float, timing: tuple[Measurement, int | None] | None) -> Check:
    """A prediction is a computation: it comes out the same again."""
    found_ms = timing[0].median_s() * 1e3 if timing is not None else math.nan
    return Check(
        name="best: predicted latency",
        claimed=f"{claimed_ms:.4g} ms",
        measured=f"{found_ms:.4g} ms",
        ok=math.isclose(claimed_ms, found_ms, rel_tol=1e-6),
    )
