"""How stages say what they are doing; the command line draws it, libraries ignore it."""

from __future__ import annotations

from typing import Any, Protocol


class Progress(Protocol):
    """Receiver of progress. Calls are cheap; never raise."""

    def stage(self, name: str, total: int | None = None, done: int = 0) -> None:
        """A stage begins; ``total`` steps are known or None; ``done`` were done by an earlier run."""
        ...

    def advance(self, steps: int = 1, **facts: Any) -> None:
        """``steps`` more are done; facts such as ``failures=0, front=7, best="3.9 MB 98.2 %"``."""
        ...

    def note(self, text: str) -> None:
        """One line worth keeping (warnings, answers)."""
        ...


class Silent:
    """Says nothing."""

    def stage(self, name: str, total: int | None = None, done: int = 0) -> None: ...

    def advance(self, steps: int = 1, **facts: Any) -> None: ...

    def note(self, text: str) -> None: ...
