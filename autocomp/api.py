"""The Python interface: ``autocomp.search`` and what it returns."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from autocomp.core.progress import Progress, Silent
from autocomp.core.result import RunSummary
from autocomp.core.row import Row
from autocomp.errors import InfeasibleError

if TYPE_CHECKING:
    import pandas as pd
    from torch import nn

    from autocomp.sweeps.rows import SweepRow


class Best:
    """The answer of a search: its row, and its file.

    Attributes:
        row: everything measured on it.
    """

    def __init__(self, row: Row) -> None:
        self.row = row

    def __getattr__(self, name: str) -> Any:
        return getattr(self.row, name)

    def __repr__(self) -> str:
        return f"Best({self.row.name}: {self.row.file_bytes:,} bytes, score {self.row.score_search:.4f})"

    def save(self, path: str | Path) -> Path:
        """Copy the file to ``path``; returns it."""
        if self.row.file is None:
            raise InfeasibleError(f"{self.row.name} has no file")
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(self.row.file, path)
        return Path(path)

    def load(self, *, into: nn.Module | None = None) -> nn.Module:
        """The network itself (see :func:`autocomp.load`)."""
        from autocomp.loading import load

        return load(self.row.file or "", into=into)


class Result:
    """What a search found.

    Attributes:
        summary: everything the run claims.
    """

    def __init__(self, summary: RunSummary) -> None:
        self.summary = summary

    @property
    def pareto(self) -> pd.DataFrame:
        """The front, one row a candidate, columns as in ``pareto.csv``."""
        from autocomp.report.tables import frame

        return frame(self.summary.pareto)

    @property
    def trials(self) -> pd.DataFrame:
        """Every evaluated candidate."""
        from autocomp.report.tables import frame

        return frame(self.summary.trials)

    @property
    def best(self) -> Best:
        """The feasible row with the best search score."""
        if self.summary.best is None:
            raise InfeasibleError("no evaluated candidate meets the constraints", self.summary.nearest)
        return Best(self.summary.best)

    @property
    def folder(self) -> Path:
        """The run folder."""
        return Path(self.summary.run)


def search(
    model: nn.Module | str = "resnet18",
    data: Any = None,
    *,
    budget: str | int | None = None,
    progress: Progress | None = None,
    fresh: bool = False,
    **options: Any,
) -> Result:
    """Search for compressed networks that meet the constraints.

    Args:
        model: your trained network, or a model spec ("resnet18", "torchvision:resnet50", "file.py:factory").
        data: a data spec, or (train, test) or (train, search, test), each a ``torch`` dataset or a pair of
            tensors (inputs, targets).
        budget: bytes of the compressed file: "4MB", "4MiB", 4000000, "12%".
        progress: receiver of progress; default: silent.
        fresh: start over in a folder that holds an earlier run.
        **options: as the command line, with underscores: ``max_latency="2ms"``, ``max_drop="1%"``, ``target``,
            ``space``, ``preset``, ``trials``, ``timeout``, ``sampler``, ``jobs``, ``finish``, ``metric``, ``seed``,
            ``out``, ``batch_size``, ``weights``, ``image_size``, ``normalize``, ``storage``, ``max_engine_size``,
            ``cache``, ``cluster``, ``resources``, ``executor``. For your own network ``out`` is
            ``runs/<class>-<budget>-s<seed>``: name one for each target.

    Returns:
        The result; ``result.best`` is the answer, ``result.pareto`` the front.

    Raises:
        ConfigError: a setting is wrong.
        InfeasibleError: the budget is below what any candidate can reach.
    """
    import dataclasses

    from autocomp import config, pipeline

    if isinstance(model, str):
        flags = {"model": model, "data": data, "budget": budget, **options}
        settings, _ = config.resolve(flags, None)
        return Result(pipeline.search(settings, progress or Silent(), fresh=fresh))
    from autocomp.workloads.load import from_objects

    name = type(model).__name__.lower()
    if "out" not in options:
        options["out"] = f"runs/{name}-{budget or 'free'}-s{options.get('seed', 0)}"
    settings, _ = config.resolve({"budget": budget, **options}, None)
    settings = dataclasses.replace(settings, model="<object>", data="<object>")
    workload = from_objects(model, data, settings)
    return Result(pipeline.search(settings, progress or Silent(), fresh=fresh, workload=workload))


class SweepResult:
    """What a sweep found.

    Attributes:
        rows: one a search, in the order of the file.
        folder: the sweep's folder; ``sweep.html`` in it compares all fronts.
    """

    def __init__(self, rows: list[SweepRow], folder: Path) -> None:
        self.rows, self.folder = rows, folder

    @property
    def table(self) -> pd.DataFrame:
        """One row a search, columns as in ``sweep.csv``."""
        from autocomp.sweeps.rows import frame

        return frame(self.rows)


def sweep(
    source: str | Path | Mapping[str, Any],
    *,
    out: str | Path | None = None,
    progress: Progress | None = None,
    fresh: bool = False,
    **options: Any,
) -> SweepResult:
    """Search models x targets x budgets x seeds, with shared caches; called again, it goes on where it stopped.

    Args:
        source: TOML file with [sweep] and [search] (docs/sweeps.md), or the same as a mapping:
            ``{"sweep": {"models": ["resnet18"], "budgets": ["2MB", "4MB"]}, "search": {"preset": "quick"}}``.
        out: the sweep's folder; default: ``runs/<name of the file>``.
        progress: receiver of progress; default: silent.
        fresh: start over in a folder that holds an earlier sweep.
        **options: common to all searches, over those of [search].

    Returns:
        The result; ``result.table`` has a row a search. One that could not be done is a row with its reason.

    Raises:
        ConfigError: something in ``source`` is wrong.
        StorageError: the folder belongs to something else, is in use, or cannot be written.
    """
    from contextlib import nullcontext

    from autocomp.sweeps import plan, runner

    asked = plan.read(
        source if isinstance(source, Mapping) else Path(source), options, Path(out) if out is not None else None
    )
    receiver = progress or Silent()
    rows = runner.run(asked, progress=lambda: nullcontext(receiver), say=receiver.note, fresh=fresh)
    return SweepResult(rows, asked.folder)
