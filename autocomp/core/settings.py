"""The validated settings of a run: what every stage reads, and nothing else is global."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any


@dataclasses.dataclass(frozen=True, kw_only=True)
class Preset:
    """How much to spend.

    Attributes:
        trials: evaluations of the search (warm starts included).
        calibration: calibration images for statistics, Hessians and ranges.
        sensitivity: of those, how many the survey uses for logit changes.
        finalists: rows that the finish stage recovers.
    """

    trials: int
    calibration: int
    sensitivity: int
    finalists: int


PRESETS = {
    "quick": Preset(trials=32, calibration=256, sensitivity=128, finalists=1),
    "default": Preset(trials=48, calibration=512, sensitivity=128, finalists=2),
    "extensive": Preset(trials=400, calibration=1024, sensitivity=512, finalists=8),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """One search, resolved. Built by ``config.py`` (command line) or by :func:`autocomp.search`.

    Attributes:
        model: model spec (built-in name, torchvision:, timm:, module:factory, file.py:factory).
        weights: file of weights, or None.
        data: data spec, or None for the model's own default.
        image_size: side in pixels that images are brought to, or None for the workload's own.
        normalize: "imagenet", "cifar10", "none", or "m1,m2,m3/s1,s2,s3".
        metric: name of the metric.
        budget_bytes: the file may have this many bytes; None when no budget was set.
        budget_text: the budget as the user wrote it ("4MB", "12%"); a percentage is resolved
            against the float32 file by the pipeline.
        max_latency_s, max_engine_bytes: further limits, or None.
        max_drop: largest loss of the metric, in its own unit as a fraction (1 % is 0.01), or None.
        target: hardware profile name or TOML path.
        batch_size: batch sizes at which latency is measured; the first is the one constrained.
        space: search space name or TOML path.
        preset: "quick", "default" or "extensive".
        trials: evaluations, or None for the preset's.
        timeout_s: stop the search stage after so many seconds, or None.
        sampler: name of the sampler.
        storage: Optuna storage URL, or None for the run's journal.
        device: where candidates are run to score them, as torch calls it: "cpu", "cuda", "cuda:1", "mps", "xpu".
        jobs: processes that evaluate, or None: one on this machine, as many as it has CPUs on a cluster.
        cluster: Ray address or "auto", or None.
        resources: what a node of the cluster must offer to be measured on ("GPU", own labels); empty: this machine.
        executor: name of the executor, or None: by ``jobs`` and ``cluster``.
        finish: "none" or "ptq".
        seed: everything random derives from it.
        out: the run folder.
        cache: folder of prices, coded tensors and measurements that runs may share, or None for the run's own.
    """

    model: str = "resnet18"
    weights: Path | None = None
    data: str | None = None
    image_size: int | None = None
    normalize: str = "imagenet"
    metric: str = "accuracy"
    budget_bytes: int | None = None
    budget_text: str = ""
    max_latency_s: float | None = None
    max_engine_bytes: int | None = None
    max_drop: float | None = None
    target: str = "cpu-onnxruntime"
    batch_size: tuple[int, ...] = (1,)
    space: str = "joint"
    preset: str = "default"
    trials: int | None = None
    timeout_s: float | None = None
    sampler: str = "hybrid"
    storage: str | None = None
    device: str = "cpu"
    jobs: int | None = None
    cluster: str | None = None
    resources: Mapping[str, float] = dataclasses.field(default_factory=dict)
    executor: str | None = None
    finish: str = "ptq"
    seed: int = 0
    out: Path = Path("runs")
    cache: Path | None = None

    @property
    def executor_name(self) -> str:
        """The executor that was asked for, or the usual one: Ray actors on a cluster, else as ``jobs`` wants it."""
        if self.executor is not None:
            return self.executor
        if self.cluster is not None:
            return "ray_actors"
        return "inline" if self.jobs in (None, 1) else "processes"

    @property
    def on_accelerator(self) -> bool:
        """Whether candidates are scored on another device than the CPU."""
        return self.device != "cpu"

    @property
    def spend(self) -> Preset:
        """The preset's numbers, with ``trials`` replaced where the user set it."""
        preset = PRESETS[self.preset]
        return preset if self.trials is None else dataclasses.replace(preset, trials=self.trials)

    def to_json(self) -> dict[str, Any]:
        """Plain values; paths as text, and no password in the storage URL: this is written into files."""
        data = dataclasses.asdict(self)
        if self.storage is not None:
            data["storage"] = without_password(self.storage)
        return {k: str(v) if isinstance(v, Path) else v for k, v in data.items()}

    def identity(self) -> dict[str, Any]:
        """The settings that make two runs comparable: another value is another run folder.

        Trials, timeout, device, jobs, cluster, resources, executor, cache, budget limits and finish may change between
        resumptions.
        """
        keys = (
            "model",
            "weights",
            "data",
            "image_size",
            "normalize",
            "metric",
            "target",
            "batch_size",
            "space",
            "preset",
            "seed",
        )
        data = self.to_json()
        return {k: data[k] for k in keys}


HIDDEN = "***"
"""Stands for a password in what is written."""


def without_password(text: str) -> str:
    """``text`` with the passwords of URLs in it hidden: "postgresql://me:***@host/db"."""
    text = re.sub(r"(://[^:/@\s]*):[^@\s]*@", rf"\1:{HIDDEN}@", text)
    return re.sub(r"([?&]password=)[^&\s]*", rf"\1{HIDDEN}", text)
