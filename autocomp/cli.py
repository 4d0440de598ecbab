"""The command line: parse, call, print, exit code. Results go to stdout, progress and errors to stderr.

Exit codes: 0 done; 1 a check failed (``verify``); 2 bad input or settings; 3 nothing can meet the constraints;
70 a bug (its traceback is in the log); 130 interrupted.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, NoReturn, Optional

import typer

import autocomp
from autocomp import terminal
from autocomp.cli_options import (
    BatchSize,
    Budget,
    Cache,
    Cluster,
    Config,
    Data,
    Device,
    ExecutorName,
    Finish,
    ImageSize,
    Jobs,
    Json,
    MaxDrop,
    MaxEngineSize,
    MaxLatency,
    Metric,
    Model,
    Normalize,
    Out,
    Preset,
    Quiet,
    Resources,
    Run,
    Sampler,
    Seed,
    Space,
    Storage,
    Target,
    Timeout,
    Trials,
    Verbose,
    Weights,
)
from autocomp.cli_sweep import sweep
from autocomp.errors import AutocompError, ConfigError, UnexpectedError

app = typer.Typer(
    name="autocomp",
    help="Compression search: the Pareto front of networks that really are that small and that fast.",
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)


def _version(asked: bool) -> None:
    if asked:
        typer.echo(f"autocomp {autocomp.__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    pass


@app.command()
def search(
    model: Model = None,
    weights: Weights = None,
    data: Data = None,
    image_size: ImageSize = None,
    normalize: Normalize = None,
    metric: Metric = None,
    budget: Budget = None,
    max_latency: MaxLatency = None,
    max_engine_size: MaxEngineSize = None,
    max_drop: MaxDrop = None,
    target: Target = None,
    batch_size: BatchSize = None,
    space: Space = None,
    preset: Preset = None,
    trials: Trials = None,
    timeout: Timeout = None,
    sampler: Sampler = None,
    finish: Finish = None,
    storage: Storage = None,
    device: Device = None,
    jobs: Jobs = None,
    cluster: Cluster = None,
    resources: Resources = None,
    executor: ExecutorName = None,
    seed: Seed = None,
    out: Out = None,
    cache: Cache = None,
    config: Config = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="Start over in a folder that holds an earlier run.")] = False,
    json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> int:
    """Search for compressed networks that meet the constraints; the same command again goes on where it stopped."""
    given = dict(locals())
    settings, provenance = _resolve(given, config)
    with terminal.guarded(settings.out, verbose=verbose, resumes=True):
        from autocomp import pipeline
        from autocomp.report import live, text

        with live.terminal(quiet, verbose, stages=live.SEARCH_STAGES) as progress:
            if verbose:
                terminal.say_origins(progress.note, settings, provenance)
            summary = pipeline.search(settings, progress, fresh=fresh)
        if json:
            terminal.print_json(summary.to_json(brief=True))
        else:
            terminal.print_rich(text.summary_table(summary))
        if summary.best is None:
            if json:  # else the table has said it
                from autocomp.report.format import answer

                terminal.complain(answer(summary))
            return 3
    return 0


app.command()(sweep)


@app.command()
def survey(
    model: Model = None,
    weights: Weights = None,
    data: Data = None,
    image_size: ImageSize = None,
    normalize: Normalize = None,
    metric: Metric = None,
    target: Target = None,
    space: Space = None,
    preset: Preset = None,
    jobs: Jobs = None,
    seed: Seed = None,
    out: Out = None,
    cache: Cache = None,
    config: Config = None,
    json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> int:
    """Price every layer and choice: coded bytes and the change of the outputs, as a sensitivity table."""
    given = dict(locals())
    settings, provenance = _resolve(given, config)
    with terminal.guarded(settings.out, verbose=verbose, resumes=True):
        from autocomp import pipeline
        from autocomp.report import live, text

        with live.terminal(quiet, verbose) as progress:
            if verbose:
                terminal.say_origins(progress.note, settings, provenance)
            rows = pipeline.survey(settings, progress)
        if json:
            terminal.print_json({"run": str(settings.out.absolute()), "prices": rows})
        else:
            terminal.print_rich(text.survey_table(rows))
    return 0


@app.command()
def watch(
    run: Run,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object of the present state, and end.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print one line of the present state, and end.")] = False,
    verbose: Verbose = False,
) -> int:
    """Follow a search from another terminal, or from another machine that sees its folder, until it ends."""
    with terminal.guarded(None, verbose=verbose, interrupted="the run goes on without being watched"):
        from autocomp.core.run_folder import RunFolder
        from autocomp.report import watch as watching

        folder = RunFolder(run)
        if json:
            terminal.print_json(watching.view(folder).to_json())
        elif quiet:
            typer.echo(watching.verdict(watching.view(folder)))
        else:
            typer.echo(watching.verdict(watching.follow(folder, sys.stdout, verbose=verbose)))
    return 0


@app.command()
def report(run: Run, json: Json = False, verbose: Verbose = False) -> int:
    """Rebuild report.html, pareto.csv, pareto.json, pareto.png and trials.csv of a run."""
    with terminal.guarded(run, verbose=verbose):
        from autocomp import pipeline

        files = [str(path) for path in pipeline.report(run)]
        if json:
            terminal.print_json({"files": files})
        else:
            typer.echo("\n".join(files))
    return 0


@app.command()
def export(
    run: Run,
    file_format: Annotated[
        str, typer.Option("--format", help="autocomp, onnx, safetensors or tensorrt.", metavar="FORMAT")
    ] = "autocomp",
    pick: Annotated[str, typer.Option(help="best, knee, or the number of a trial.", metavar="ROW")] = "best",
    out: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(help="File to write. (default: beside the run's files)", metavar="FILE", show_default=False),
    ] = None,
    json: Json = False,
    verbose: Verbose = False,
) -> int:
    """Write one network of a run as a file."""
    with terminal.guarded(run, verbose=verbose):
        from autocomp import pipeline

        terminal.print_file(str(pipeline.export(run, pick, file_format, out)), as_json=json)
    return 0


@app.command()
def verify(
    path: Annotated[
        Path, typer.Argument(help="Run folder, or an .autocomp file.", metavar="RUN|FILE", show_default=False)
    ],
    json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> int:
    """Measure again what a run or a file claims; exit code 1 if something does not hold."""
    with terminal.guarded(path if path.is_dir() else None, verbose=verbose):
        from autocomp import pipeline
        from autocomp.report import live, text

        with live.terminal(quiet, verbose) as progress:
            checks = pipeline.verify(path, progress)
        holds = all(check.ok for check in checks)
        if json:
            fields = ("name", "claimed", "measured", "ok")
            rows = [{field: getattr(check, field) for field in fields} for check in checks]
            terminal.print_json({"ok": holds, "checks": rows})
        else:
            terminal.print_rich(text.checks_table(checks))
    return 0 if holds else 1


@app.command()
def profile(
    target: Annotated[
        str, typer.Argument(help="Hardware profile, name or TOML.", metavar="TARGET", show_default=False)
    ],
    out: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(help="TOML file to write. (default: <target>-measured.toml)", metavar="FILE", show_default=False),
    ] = None,
    json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> int:
    """Measure the device that is here and write a hardware profile; interrupted, the same command goes on."""
    with terminal.guarded(None, verbose=verbose):
        from autocomp.profiling.measure import profile_device
        from autocomp.report import live
        from autocomp.runtimes._profiles import load_target

        found = load_target(target)
        path = out or Path(f"{found.profile.name}-measured.toml")
        with live.terminal(quiet, verbose) as progress:
            written = profile_device(found, path, progress).absolute()
        terminal.print_file(str(written), as_json=json)
    return 0


@app.command()
def targets(json: Json = False) -> int:
    """Hardware profiles: what there is, what is usable here, and why not."""
    with terminal.guarded(None):
        from autocomp.runtimes._profiles import list_targets

        terminal.print_rows("targets", list_targets(), as_json=json)
    return 0


@app.command()
def spaces(json: Json = False) -> int:
    """Search spaces that ship."""
    with terminal.guarded(None):
        from autocomp.survey.space_file import list_spaces

        terminal.print_rows("spaces", list_spaces(), as_json=json)
    return 0


@app.command()
def models(json: Json = False) -> int:
    """Built-in models, and how others are named."""
    with terminal.guarded(None):
        from autocomp.workloads.load import list_models

        terminal.print_rows("models", list_models(), as_json=json)
    return 0


@app.command()
def doctor(json: Json = False) -> int:
    """This machine: versions, runtimes, devices, what is missing and how to get it."""
    with terminal.guarded(None):
        from autocomp.environment import doctor as examine

        terminal.print_rows("doctor", examine(), as_json=json)
    return 0


def _resolve(given: dict[str, Any], config_file: Path | None) -> tuple[Any, dict[str, str]]:
    from autocomp import config

    flags = {name: value for name, value in given.items() if name in config.OPTIONS}
    return config.resolve(flags, config_file)


def run(arguments: Sequence[str] | None = None) -> int:
    """One command; returns its exit code. Errors become one line on stderr."""
    try:
        code = app(args=None if arguments is None else list(arguments), prog_name="autocomp", standalone_mode=False)
    except AutocompError as error:
        terminal.complain(str(error))
        return error.exit_code
    except Exception as error:  # noqa: BLE001  the edge of the program: a usage error of the parser, or a bug
        usage = getattr(error, "format_message", None)
        if usage is None:
            unexpected = UnexpectedError.of(error, terminal.write_log(error, None))
            terminal.complain(str(unexpected))
            return unexpected.exit_code
        if message := usage():  # empty where the help was shown instead
            terminal.complain(f"{message} (autocomp --help shows what there is)")
        return ConfigError.exit_code
    return int(code or 0)


def main() -> NoReturn:
    """Entry point of ``autocomp`` and ``python -m autocomp``."""
    sys.exit(run())
