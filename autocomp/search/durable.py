"""Failures of a storage as one clear line."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from optuna.exceptions import StorageInternalError

from autocomp.errors import StorageError
from autocomp.search._optuna_private import JournalLockLostError


@contextlib.contextmanager
def durable(where: str, *further: type[Exception]) -> Iterator[None]:
    """Failures of the storage inside the block become one clear :class:`StorageError`.

    Args:
        where: path or URL without password.
        further: what else the storage raises when it fails.
    """
    errors: tuple[type[Exception], ...] = (StorageInternalError, JournalLockLostError, *further)
    try:
        yield
    except OSError as error:
        raise StorageError(
            f"{where}: {error.strerror or error}; free or open up the folder and run the same command again"
        ) from error
    except errors as error:
        raise StorageError(f"{where}: {said(error)}; mend the storage and run the same command again") from error


def said(error: BaseException) -> str:
    """What the database itself said, in one line."""
    cause = error.__cause__ if isinstance(error, StorageInternalError) and error.__cause__ is not None else error
    text = str(getattr(cause, "orig", None) or cause).strip()
    return " ".join(text.splitlines()[0].split()) if text else type(cause).__name__
