"""What the command line prints, and what becomes of errors: one line each, tracebacks in a log."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import json
import math
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from autocomp.core.run_folder import storage_errors
from autocomp.core.settings import without_password
from autocomp.errors import AutocompError, UnexpectedError


class InterruptedRunError(AutocompError):
    """Ctrl-C; what was done is kept."""

    exit_code = 130


def complain(message: str) -> None:
    """One line on stderr."""
    with contextlib.suppress(OSError, ValueError):  # a terminal that went away takes nothing else with it
        print(f"error: {' '.join(message.split())}", file=sys.stderr, flush=True)


def say(message: str) -> None:
    """One line of progress on stderr."""
    with contextlib.suppress(OSError, ValueError):
        print(message, file=sys.stderr, flush=True)


def say_origins(say: Callable[[str], None], settings: Any, provenance: dict[str, str]) -> None:
    """Which settings are not defaults, and where they came from."""
    from autocomp.core.settings_file import to_options

    for name, value in to_options(settings).items():
        if provenance.get(name, "default") != "default":
            say(f"{name} = {value} ({provenance[name]})")


@contextlib.contextmanager
def guarded(
    run: Path | None, *, verbose: bool = False, resumes: bool = False, interrupted: str = "nothing is lost"
) -> Iterator[None]:
    """Interruptions and bugs inside become errors of one line.

    Args:
        run: folder whose log takes tracebacks.
        verbose: tracebacks of expected errors are logged too.
        resumes: the same command goes on where it was interrupted.
        interrupted: what Ctrl-C leaves, where it does not.
    """
    try:
        with storage_errors(run or Path.cwd()):
            yield
    except BrokenPipeError:
        raise  # whoever read stdout has gone: the parser ends the program quietly
    except KeyboardInterrupt as error:
        saved = f"what was done is saved in {run}; the same command goes on from there" if resumes else interrupted
        raise InterruptedRunError(f"interrupted; {saved}") from error
    except AutocompError as error:
        if verbose:
            write_log(error, run)
        raise
    except Exception as error:
        raise UnexpectedError.of(error, write_log(error, run)) from error


def write_log(error: BaseException, run: Path | None) -> Path | None:
    """Append the traceback to the run's log.txt, or to a file for temporary files; None where neither is possible."""
    stamp = datetime.datetime.now(tz=datetime.UTC).isoformat(timespec="seconds")
    entry = without_password(f"{stamp} {' '.join(sys.argv)}\n{''.join(traceback.format_exception(error))}\n")
    candidates = [run / "log.txt"] if run is not None and run.is_dir() else []
    for path in [*candidates, Path(tempfile.gettempdir()) / "autocomp-log.txt"]:
        try:
            with path.open("a", encoding="utf-8") as log:
                log.write(entry)
        except OSError:
            continue
        return path
    return None


def print_json(data: Any) -> None:
    """One JSON object on stdout; numbers that JSON has no word for are null."""
    print(json.dumps(_plain(data), allow_nan=False), flush=True)


def _plain(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, Path):
        return str(value)
    return value


def print_rich(renderable: Any) -> None:
    """A table or a group of them, on stdout; into a file or a pipe as wide as it needs to be."""
    from rich.console import Console

    console = Console() if sys.stdout.isatty() else Console(width=200)
    console.print(renderable)


def print_file(path: str, *, as_json: bool) -> None:
    """The one file that a command wrote: its path, or {"file": path}."""
    if as_json:
        print_json({"file": path})
    else:
        print(path)


def print_rows(title: str, rows: Sequence[Any], *, as_json: bool) -> None:
    """Mappings or dataclasses of one kind as a table, or as one JSON object {title: rows}."""
    plain = [dict(row) if isinstance(row, Mapping) else dataclasses.asdict(row) for row in rows]
    if as_json:
        print_json({title: plain})
        return
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, header_style="bold")
    columns = list(plain[0]) if plain else []
    for name in columns:
        numeric = all(isinstance(row[name], int | float | None) and not isinstance(row[name], bool) for row in plain)
        table.add_column(name.replace("_", " "), justify="right" if numeric else "left", overflow="fold")
    for row in plain:
        table.add_row(*(Text(_cell(row[name])) for name in columns))
    print_rich(table)


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, list | tuple):
        return ", ".join(map(str, value))
    return str(value)
