"""``autocomp sweep``: its options, what it prints, its exit code."""

from __future__ import annotations

from typing import Annotated

import typer

from autocomp import terminal
from autocomp.cli_options import (
    BatchSize,
    Cache,
    Cluster,
    Device,
    ExecutorName,
    Finish,
    Jobs,
    Json,
    MaxDrop,
    MaxEngineSize,
    MaxLatency,
    Metric,
    Preset,
    Quiet,
    Resources,
    Sampler,
    Space,
    SweepFile,
    SweepOut,
    Timeout,
    Trials,
    Verbose,
)


def sweep(
    file: SweepFile,
    metric: Metric = None,
    max_latency: MaxLatency = None,
    max_engine_size: MaxEngineSize = None,
    max_drop: MaxDrop = None,
    batch_size: BatchSize = None,
    space: Space = None,
    preset: Preset = None,
    trials: Trials = None,
    timeout: Timeout = None,
    sampler: Sampler = None,
    finish: Finish = None,
    device: Device = None,
    jobs: Jobs = None,
    cluster: Cluster = None,
    resources: Resources = None,
    executor: ExecutorName = None,
    cache: Cache = None,
    out: SweepOut = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show what would run and how long that took before; run nothing.")
    ] = False,
    fresh: Annotated[bool, typer.Option("--fresh", help="Start over in a folder that holds an earlier sweep.")] = False,
    json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> int:
    """Search models x targets x budgets x seeds with shared caches; the same command again goes on where it stopped."""
    given = dict(locals())
    from autocomp import config
    from autocomp.sweeps import plan

    flags = {name: value for name, value in given.items() if name in config.OPTIONS and name != "out"}
    asked = plan.read(file, flags, out)
    with terminal.guarded(asked.folder, verbose=verbose, resumes=True):
        from autocomp.sweeps import preview, runner, text
        from autocomp.sweeps.rows import exit_code

        if dry_run:
            lines = preview.preview(asked, fresh=fresh)
            if json:
                terminal.print_json(preview.to_json(asked, lines))
            else:
                terminal.print_rich(text.preview_table(asked, lines))
            return 0
        from autocomp.report import live

        if verbose:
            terminal.say_origins(terminal.say, asked.searches[0].settings, asked.provenance)
        rows = runner.run(
            asked,
            progress=lambda: live.terminal(quiet, verbose, stages=live.SEARCH_STAGES),
            say=terminal.say,
            fresh=fresh,
        )
        if json:
            terminal.print_json(runner.state(asked, rows))
        else:
            terminal.print_rich(text.sweep_table(asked, rows))
    return exit_code(rows)
