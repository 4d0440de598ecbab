"""Options of the commands, as their types: help text, panel, and how the value is written."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Optional

import typer

_WHAT, _LIMITS, _HOW, _RUN = "What is compressed", "Constraints", "How it is searched", "The run"

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout; progress stays on stderr.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress, only notes and the answer.")]
Verbose = Annotated[bool, typer.Option("--verbose", "-v", help="All facts; tracebacks go to the log.")]


def _option(help_text: str, panel: str, metavar: str, *names: str) -> Any:
    return typer.Option(*names, help=help_text, rich_help_panel=panel, metavar=metavar, show_default=False)


Model = Annotated[
    Optional[str],  # noqa: UP045  (typer below 0.16 reads no X | None)
    typer.Argument(
        metavar="MODEL",
        help="Built-in name, torchvision:NAME, timm:NAME, package.module:factory or path/file.py:factory. "
        "(default: resnet18, trained on digits)",
        show_default=False,
    ),
]
Text = Optional[str]  # noqa: UP045
Weights = Annotated[Text, _option("safetensors, or a torch checkpoint (weights_only).", _WHAT, "FILE")]
Data = Annotated[
    Text,
    _option("digits, imagefolder:PATH, npz:PATH, package.module:factory or path/file.py:factory.", _WHAT, "SPEC"),
]
ImageSize = Annotated[Text, _option("Side in pixels that images are brought to.", _WHAT, "PIXELS")]
Normalize = Annotated[Text, _option("imagenet (default), cifar10, none, or mean/std numbers.", _WHAT, "NAME|M/S")]
Metric = Annotated[
    Text,
    _option("accuracy (default), top5, f1_macro, mse, kl, perplexity or module:function.", _WHAT, "NAME"),
]
Budget = Annotated[
    Text, _option("Bytes of the compressed file: 4MB, 4MiB, 4000000, or 12% of the float32 file.", _LIMITS, "SIZE")
]
MaxLatency = Annotated[Text, _option("Highest latency of one batch: 2ms, 300us.", _LIMITS, "TIME")]
MaxEngineSize = Annotated[Text, _option("Largest engine of the runtime: 8MB.", _LIMITS, "SIZE")]
MaxDrop = Annotated[Text, _option("Largest loss of the metric, absolute: 1% or 0.01.", _LIMITS, "DROP")]
Target = Annotated[Text, _option("Hardware profile, name or TOML. (default: cpu-onnxruntime)", _HOW, "NAME|FILE")]
BatchSize = Annotated[Text, _option("Batch sizes at which latency is measured: 1,16. (default: 1)", _HOW, "N[,N]")]
Space = Annotated[Text, _option("Search space, name or TOML. (default: joint)", _HOW, "NAME|FILE")]
Preset = Annotated[Text, _option("How much to spend: quick, default, extensive.", _HOW, "NAME")]
Trials = Annotated[Text, _option("Stop after so many evaluations.", _HOW, "N")]
Timeout = Annotated[Text, _option("Stop searching after so long: 10min.", _HOW, "TIME")]
Sampler = Annotated[Text, _option("hybrid (default), tpe, nsga2, random, plan (solver only).", _HOW, "NAME")]
Finish = Annotated[Text, _option("How finalists are recovered: ptq (default) or none.", _HOW, "NAME")]
Storage = Annotated[
    Text,
    _option("sqlite:///FILE, postgresql://USER@HOST/DB or journal:///FILE. (default: in the run folder)", _RUN, "URL"),
]
Device = Annotated[
    Text,
    _option("Where candidates are scored: cpu (default), cuda, cuda:1, mps, xpu. Latencies: --target.", _RUN, "NAME"),
]
Jobs = Annotated[
    Text,
    _option("Processes that evaluate. (default: 1; on a cluster one a CPU, or a GPU with --device cuda)", _RUN, "N"),
]
Cluster = Annotated[
    Text, _option("A Ray cluster: auto (the running one, else a local one for the run) or HOST:PORT.", _RUN, "ADDRESS")
]
Resources = Annotated[
    Text, _option("Nodes of the cluster to measure on: gpu=1,target_orin=1. (default: this machine)", _RUN, "NAME=N")
]
ExecutorName = Annotated[
    Text, _option("inline, processes, ray_actors or ray_tune. (default: by jobs and cluster)", _RUN, "NAME")
]
Seed = Annotated[Text, _option("Everything random derives from it. (default: 0)", _RUN, "N")]
Out = Annotated[
    Optional[Path],  # noqa: UP045
    _option("Run folder. (default: runs/<model>-<budget>-<target>-s<seed>)", _RUN, "FOLDER"),
]
Cache = Annotated[
    Optional[Path],  # noqa: UP045
    _option("Folder of prices and measurements that runs share. (default: the run's own)", _RUN, "FOLDER", "--cache"),
]
Config = Annotated[
    Optional[Path],  # noqa: UP045
    _option("TOML file of these options; flags win over it.", _RUN, "FILE", "--config"),
]
SweepFile = Annotated[
    Path,
    typer.Argument(help="TOML file with [sweep] and [search] (docs/sweeps.md).", metavar="FILE", show_default=False),
]
SweepOut = Annotated[
    Optional[Path],  # noqa: UP045
    _option("The sweep's folder. (default: runs/<name of the file>)", _RUN, "FOLDER", "--out"),
]
Run = Annotated[Path, typer.Argument(help="Run folder.", metavar="RUN", show_default=False)]
