"""Every error autocomp raises on purpose, named by what the caller should do.

    AutocompError
    ├── ConfigError        change a setting, a file or a flag          exit 2
    │   ├── UnknownNameError   pick one of the names offered
    │   └── DataError          mend the data, the weights or the model
    ├── UnsupportedError   this cannot be done here; the message says what would      exit 2
    ├── InfeasibleError    nothing meets the constraints; loosen one   exit 3
    ├── CorruptFileError   the file is damaged or hostile; get it again  exit 2
    ├── StorageError       free or open up the output folder, run again  exit 2
    ├── RetryableError     the same call may succeed later
    └── UnexpectedError    a defect here; please report it             exit 70

Each message is one line: what, where, the limit, the remedy.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from pathlib import Path
from typing import Self


class AutocompError(Exception):
    """Base of all; ``exit_code`` is what the command line returns.

    Args:
        message: one line.
        failure: the word under which an evaluation that ends so is recorded ("timeout", "died", "oom"); None: the
            class's name.
    """

    exit_code = 2

    def __init__(self, message: str = "", *, failure: str | None = None) -> None:
        super().__init__(message)
        self.failure = failure

    def at(self, place: str) -> Self:
        """This error, its message led by where it is ("sweep.toml: targets[1]")."""
        self.args = (f"{place}: {self}",)
        return self


class ConfigError(AutocompError):
    """A setting is wrong: the caller changes it."""


class UnknownNameError(ConfigError):
    """A name that nothing answers to; the message offers the nearest ones.

    Args:
        kind: what was being looked up ("target", "sampler", ...).
        name: what was asked for.
        known: the names there are.
    """

    def __init__(self, kind: str, name: str, known: Iterable[str]) -> None:
        names = sorted(known)
        longer = [n for n in names if name and n.startswith(name)]
        near = list(dict.fromkeys([*longer, *difflib.get_close_matches(name, names, n=3, cutoff=0.5)]))[:3]
        hint = f"did you mean {' or '.join(near)}?" if near else f"known: {', '.join(names)}"
        super().__init__(f"unknown {kind} {name!r}; {hint}")
        self.kind, self.name, self.known, self.near = kind, name, names, near


class DataError(ConfigError):
    """Data, weights or a model that cannot be used as they are."""


class UnsupportedError(AutocompError):
    """Not possible here (a missing package, device or feature); the message names the remedy."""


class InfeasibleError(AutocompError):
    """Nothing reachable meets the constraints; carries the nearest miss.

    Args:
        message: one line with the nearest miss.
        nearest: the smallest size, lowest latency, best metric that were reachable.
    """

    exit_code = 3

    def __init__(self, message: str, nearest: dict[str, float] | None = None) -> None:
        super().__init__(message)
        self.nearest = nearest or {}


class CorruptFileError(AutocompError):
    """A file fails its checks; nothing of it was used."""


class StorageError(AutocompError):
    """The output folder cannot be written or belongs to another run."""


class RetryableError(AutocompError):
    """A passing fault: the same call may succeed later."""


class UnexpectedError(AutocompError):
    """A bug: the line says what, the log says where."""

    exit_code = 70

    @staticmethod
    def of(error: BaseException, log: Path | None) -> UnexpectedError:
        """One line for ``error``, whose traceback is in ``log``."""
        text = (str(error).strip() or "no message").splitlines()[0]
        hint = f"; the traceback is in {log}" if log else ""
        return UnexpectedError(f"unexpected {type(error).__name__}: {text}{hint}; please report it")
