"""The user's own code: ``package.module:name`` and ``path/file.py:name``. Run because the user named it."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import inspect
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

from autocomp.errors import AutocompError, ConfigError, DataError, UnknownNameError

_USER = "autocomp_user_"


def is_factory(spec: str) -> bool:
    """Whether ``spec`` looks like ``package.module:name`` or ``path/file.py:name``."""
    module, colon, name = spec.rpartition(":")
    return bool(colon and module and name.isidentifier())


def load_object(spec: str, what: str) -> Any:
    """What ``spec`` names.

    Args:
        spec: ``package.module:name`` (the working folder is searched too) or ``path/file.py:name``.
        what: "model", "data", "metric": for messages.

    Raises:
        ConfigError: no such module, file or name.
        DataError: importing it failed.
    """
    module_text, _, name = spec.rpartition(":")
    module = _from_file(module_text, spec, what) if module_text.endswith(".py") else _imported(module_text, spec, what)
    if not hasattr(module, name):
        public = [n for n, value in vars(module).items() if callable(value) and not n.startswith("_")]
        raise UnknownNameError(f"name in {module_text} ({what} {spec})", name, public)
    return getattr(module, name)


def call(factory: Any, spec: str, what: str, **offered: Any) -> Any:
    """``factory(...)`` with those of ``offered`` that it takes as parameters; an object that is no function, as it is.

    Raises:
        DataError: the factory raised; its own message is repeated, the traceback is chained.
    """
    if not callable(factory):
        return factory
    accepted = takes(factory)
    with user_code(f"{what} {spec}: the factory failed"):
        return factory(**{k: v for k, v in offered.items() if k in accepted})


def takes(factory: Any) -> set[str]:
    """Names of the parameters that can be passed by name."""
    try:
        parameters = inspect.signature(factory).parameters.values()
    except (TypeError, ValueError):
        return set()
    return {p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}


@contextmanager
def user_code(failure: str) -> Iterator[None]:
    """Whatever the user's code raises becomes a :class:`DataError` of one line, with the cause chained."""
    try:
        yield
    except AutocompError:
        raise
    except Exception as error:
        text = (str(error).strip() or "no message").splitlines()[0]
        raise DataError(f"{failure}: {type(error).__name__}: {text}") from error


def loaded_from_files() -> list[ModuleType]:
    """Modules of ``path/file.py:name``: no other process can import them by name."""
    return [module for name, module in sys.modules.items() if name.startswith(_USER)]


def _from_file(path_text: str, spec: str, what: str) -> ModuleType:
    path = Path(path_text).expanduser()
    if not path.is_file():
        raise ConfigError(f"{what} {spec}: there is no file {path}")
    path = path.resolve()
    mark = hashlib.sha256(f"{path}:{path.stat().st_mtime_ns}".encode()).hexdigest()[:12]
    name = f"{_USER}{mark}"
    if name in sys.modules:
        return sys.modules[name]
    module_spec = importlib.util.spec_from_file_location(name, path)
    if module_spec is None or module_spec.loader is None:
        raise ConfigError(f"{what} {spec}: {path} is no Python file")
    module = importlib.util.module_from_spec(module_spec)
    if str(path.parent) not in sys.path:
        sys.path.append(str(path.parent))  # files beside it may be imported, as with `python path/file.py`
    sys.modules[name] = module  # dataclasses and pickling look the module up by name
    try:
        with user_code(f"{what} {spec}: importing it failed"):
            module_spec.loader.exec_module(module)
    except DataError:
        del sys.modules[name]
        raise
    return module


def _imported(module_text: str, spec: str, what: str) -> ModuleType:
    here = str(Path.cwd())
    if here not in sys.path and "" not in sys.path:
        sys.path.append(here)
    try:
        with user_code(f"{what} {spec}: importing it failed"):
            return importlib.import_module(module_text)
    except DataError as error:
        missing = getattr(error.__cause__, "name", None) if isinstance(error.__cause__, ModuleNotFoundError) else None
        if missing and (module_text == missing or module_text.startswith(f"{missing}.")):
            raise ConfigError(
                f"{what} {spec}: there is no module {missing}; install it, run from its folder, or give path/file.py"
            ) from error
        raise
