"""An exception told to another process: as plain text, since not every exception can be pickled."""

from __future__ import annotations

from dataclasses import dataclass

from autocomp import errors
from autocomp.errors import AutocompError, UnsupportedError


@dataclass(frozen=True, kw_only=True)
class Told:
    """What was raised elsewhere.

    Attributes:
        kind: class name of the exception.
        message: one line.
        failure: the word an :class:`AutocompError` carries ("timeout", "died"), or None.
    """

    kind: str
    message: str
    failure: str | None = None

    @staticmethod
    def of(error: Exception) -> Told:
        """``error`` as text."""
        message = " ".join(str(error).split())
        return Told(kind=type(error).__name__, message=message, failure=getattr(error, "failure", None))

    def error(self, place: str) -> AutocompError:
        """The exception to raise here: of the same class where it is one of ours.

        Args:
            place: what could not be done where, for exceptions that are not ours.
        """
        kind = getattr(errors, self.kind, None)
        if isinstance(kind, type) and issubclass(kind, AutocompError) and kind is not errors.UnknownNameError:
            return kind(self.message, failure=self.failure)
        return UnsupportedError(f"{place}: {self.kind}: {self.message}", failure=self.failure)
