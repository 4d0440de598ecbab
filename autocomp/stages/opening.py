"""Open a run: its folder, its settings, its budget; stop at once where the budget cannot be met."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from autocomp.coding.tensors import encode_tensor
from autocomp.core.candidate import Candidate
from autocomp.core.encodings import FloatTensor
from autocomp.core.progress import Progress
from autocomp.core.result import RunSummary
from autocomp.core.run_folder import RunFolder, storage_errors
from autocomp.core.settings import Settings
from autocomp.core.settings_file import write_config
from autocomp.core.steps import STRUCTURE_AXES, Choice, StepConfig
from autocomp.core.workload import Workload
from autocomp.environment import environment
from autocomp.errors import ConfigError, CorruptFileError, UnsupportedError
from autocomp.evaluators.bench import Bench
from autocomp.evaluators.meter import make_meter
from autocomp.search.session import Session, open_session
from autocomp.stages.limits import unreachable_budget
from autocomp.transforms.quantize import QuantizeWeights, quantize_weight
from autocomp.transforms.recipe import Recipe

if TYPE_CHECKING:
    from torch import Tensor


def settings_of(run: RunFolder) -> Settings:
    """The resolved settings that a run was made with."""
    file = run.cache / "settings.json"
    try:
        data = json.loads(file.read_text())
    except (OSError, ValueError) as error:
        raise CorruptFileError(f"{file} cannot be read ({error}); run the search command again") from error
    if data.get("model") == "<object>":
        raise UnsupportedError(
            f"{run.path} was made from objects of a Python program; use the Result that autocomp.search returned there"
        )
    data["batch_size"] = tuple(data["batch_size"])
    data["out"] = Path(data["out"])
    for key in ("weights", "cache"):
        data[key] = Path(data[key]) if data.get(key) else None
    return Settings(**data)


def summary_of(run: RunFolder) -> RunSummary:
    """The stored summary of a finished run."""
    if not run.summary.is_file():
        raise CorruptFileError(f"{run.path} is not finished; run the same search command again: it goes on from there")
    return RunSummary.from_json(json.loads(run.summary.read_text()))


_WHERE_IT_RUNS = ("device", "jobs", "cluster", "resources", "executor", "out", "cache")
"""Settings that change nothing in what is found."""


def already_finished(run: RunFolder, settings: Settings) -> RunSummary | None:
    """The summary of an earlier run with exactly these settings whose files are there, or None."""
    if not run.summary.is_file():
        return None
    summary = summary_of(run)
    free = list(_WHERE_IT_RUNS)
    if settings.budget_text.endswith("%"):
        free.append("budget_bytes")  # what the percentage comes to is known once the model is loaded
    asked = {k: v for k, v in settings.to_json().items() if k not in free}
    made = {k: v for k, v in summary.settings.items() if k not in free}
    if json.loads(json.dumps(asked)) != made:
        return None
    rows = [r for r in (summary.best, *summary.pareto) if r is not None and r.file]
    return summary if all(_size(run, r.file) == r.file_bytes for r in rows) else None


def _size(run: RunFolder, file: str | None) -> int | None:
    """Bytes on disk of a file of the run; None where there is none, or where it is that of a run this is a copy of."""
    path = Path(file or "")
    return path.stat().st_size if path.is_file() and path.resolve().is_relative_to(run.path.resolve()) else None


def resolve_budget(settings: Settings, float32_bytes: int, progress: Progress) -> Settings:
    """Percent budgets against the float32 file; a note where the budget is no limit."""
    text = settings.budget_text.strip()
    if text.endswith("%"):
        settings = dataclasses.replace(settings, budget_bytes=int(float32_bytes * float(text[:-1]) / 100))
    if settings.budget_bytes is not None and settings.budget_bytes >= float32_bytes:
        progress.note(
            f"the budget of {settings.budget_bytes:,} bytes is no limit: float32 takes {float32_bytes:,} bytes"
        )
    return settings


def open_run(
    settings: Settings, run: RunFolder, workload: Workload | None, progress: Progress, bench: Bench | None = None
) -> Session:
    """Workload, network, target and space of the run; its settings and environment are written down."""
    on_cluster = settings.cluster is not None
    session = open_session(settings, run, workload=workload, progress=progress, bench=bench, elsewhere=on_cluster)
    settings = resolve_budget(settings, session.workload.float32_bytes(), progress)
    session = dataclasses.replace(session, settings=settings)
    run.check_identity({**settings.identity(), "fingerprint": session.workload.fingerprint})
    run.write_json(run.cache / "settings.json", settings.to_json())
    run.write_json(run.environment, environment())
    with storage_errors(run.path):
        write_config(settings, run.config)
    why = session.cannot_measure()
    _check_quiet(session, measured=why is None)
    if why is not None:
        make_meter(session.target, run.cache)  # refuses here where there is nothing to predict from
        progress.note(
            f"latencies for {session.target.profile.name} are predicted, not measured: {why}; to measure them, run "
            "the same command on the device"
        )
    for skipped in session.network.skipped:
        progress.note(f"{skipped.name} stays float32: {skipped.reason}")
    for note in session.space.notes:
        progress.note(note)
    return session


def _check_quiet(session: Session, measured: bool) -> None:
    """Refuse processes that score on the GPU that latencies are measured on. (On a cluster Ray keeps them apart.)

    Raises:
        ConfigError: what to do instead.
    """
    settings = session.settings
    alone = settings.executor_name == "inline" or settings.cluster is not None
    if measured and not alone and session.target.profile.on_gpu and settings.device in ("cuda", "cuda:0"):
        raise ConfigError(
            f"--device {settings.device} with --jobs {settings.jobs}: processes that score would disturb the GPU that "
            "latencies are measured on; take --jobs 1, another GPU (--device cuda:1), --device cpu, or --cluster auto"
        )


LEAST_BITS = 0.25
"""A weight that is shared or mostly zero is taken to cost at least so many bits, for a quick look."""


def smallest_estimate(session: Session) -> int:
    """Coded bytes with every unit at its coarsest choice and the strongest structure: a quick look before the survey.

    Grids are rounded to nearest; compensated rounding spreads symbols a little further, so this is at most what
    the survey will find.
    """
    state = session.network.module.state_dict()
    shares = strongest_shares(session)
    decided: set[str] = set()
    total = 0
    for unit in session.space.units.values():
        steps = [s for axis in unit.storage_axes() for s in unit.axes[axis] if s is not None]
        for name in unit.layers if steps or unit.name in shares else ():
            layer = session.network.layers[name]
            total += int(_smallest_weight(state[layer.weight], steps, layer.channel_axis) * shares.get(unit.name, 1.0))
            decided.add(layer.weight)
    for name, tensor in state.items():
        if name not in decided and tensor.is_floating_point():
            whole = tensor.dim() > 1
            total += len(encode_tensor(FloatTensor(values=tensor) if whole else FloatTensor.half(tensor)))
    return total


def _smallest_weight(weight: Tensor, steps: Sequence[StepConfig], axis: int) -> int:
    """Least bytes of one weight under any of ``steps``, about."""
    grids = [s for s in steps if isinstance(s, QuantizeWeights)]
    if any(not isinstance(s, QuantizeWeights) for s in steps):
        return int(weight.numel() * LEAST_BITS / 8)
    if not grids:
        return 4 * weight.numel()
    coarsest = [s for s in (grids[-1], min(grids, key=lambda s: s.bits or 99)) if s.bits or s is grids[-1]]
    plain = [dataclasses.replace(s, rounding="nearest") for s in coarsest]
    return min(len(encode_tensor(quantize_weight(weight, s, axis=axis))) for s in plain)


def strongest_shares(session: Session) -> dict[str, float]:
    """Unit → share of its weights that the strongest structure of the space keeps, where that is not all."""
    recipe = session.space.rules
    if not isinstance(recipe, Recipe):
        return {}
    last = {
        u.name: Choice(tuple(s for a in STRUCTURE_AXES if (s := u.axes.get(a, (None,))[-1]) is not None))
        for u in session.space.units.values()
    }
    return recipe.shares(recipe.legal(Candidate(last)))


def check_reachable(session: Session) -> None:
    """Exit early, before the survey, where the budget is far below anything reachable.

    Raises:
        InfeasibleError: with the smallest reachable size.
    """
    budget = session.settings.budget_bytes
    if budget is None:
        return
    smallest = smallest_estimate(session)
    if budget < 0.9 * smallest:
        raise unreachable_budget(budget, smallest)
