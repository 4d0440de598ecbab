"""Flags and config files → validated settings. Every error is one line: which option, its value, what is allowed."""

from __future__ import annotations

import dataclasses
import re
import tomllib
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from autocomp.core import plugins, shipped
from autocomp.core.quantities import parse_budget, parse_drop, parse_duration, parse_size, split
from autocomp.core.settings import HIDDEN, PRESETS, Settings
from autocomp.errors import AutocompError, ConfigError, UnknownNameError, UnsupportedError

_FINISHES = ("none", "ptq")
_FACTORY_FORMS = ("package.module:factory", "path/file.py:factory")
_MODEL_FORMS = ("torchvision:NAME", "timm:NAME", *_FACTORY_FORMS)
_DATA_FORMS = ("digits", "imagefolder:PATH", "npz:PATH", *_FACTORY_FORMS)
_FRACTION_METRICS = ("accuracy", "top5", "f1_macro")


def _whole(low: int, high: int) -> Callable[[Any, str], int]:
    def parse(value: Any, name: str) -> int:
        parts = split(value)
        if parts is None or parts[1] or parts[0] != int(parts[0]) or not low <= parts[0] <= high:
            raise ConfigError(f"{name} = {value!r}: allowed are whole numbers from {low} to {high}")
        return int(parts[0])

    return parse


def _batch_sizes(value: Any, name: str) -> tuple[int, ...]:
    items = value if isinstance(value, list | tuple) else str(value).split(",")
    sizes = tuple(_whole(1, 65_536)(item, name) for item in items)
    if not sizes:
        raise ConfigError(f"{name} = {value!r}: at least one batch size is needed, such as 1 or 1,16")
    return tuple(dict.fromkeys(sizes))


def _text(value: Any, name: str) -> str:
    if not isinstance(value, str) or not value.strip():
        raise ConfigError(f"{name} = {value!r}: text is expected")
    return value.strip()


def _shipped(folder: str, kind: str) -> Callable[[Any, str], str]:
    def parse(value: Any, name: str) -> str:
        text = _text(value, name)
        if text.endswith(".toml") and not Path(text).is_file():
            raise ConfigError(f"{name} = {text!r}: there is no such file; known: {', '.join(shipped.names(folder))}")
        shipped.resolve(folder, kind, text)
        return text

    return parse


def _one_of(kind: str, known: Callable[[], list[str]]) -> Callable[[Any, str], str]:
    def parse(value: Any, name: str) -> str:
        text = _text(value, name)
        if text not in known():
            raise UnknownNameError(kind, text, known())
        return text

    return parse


def _model(value: Any, name: str) -> str:
    text = _text(value, name)
    if ":" not in text and text != Settings.model:  # the default needs no look at the families, which import torch
        from autocomp.workloads import models

        if text not in models.names():
            raise UnknownNameError("model", text, [*models.names(), *_MODEL_FORMS])
    return text


def _finish(value: Any, name: str) -> str:
    if value == "qat":
        raise UnsupportedError(f"{name} = 'qat': comes in a later version; use --finish ptq")
    return _one_of("finish", lambda: list(_FINISHES))(value, name)


def _metric(value: Any, name: str) -> str:
    from autocomp.workloads import metrics

    text = _text(value, name)
    metrics.check_name(text)
    return text


def _normalize(value: Any, name: str) -> str:
    from autocomp.workloads import normalize

    text = _text(value, name)
    normalize.parse(text)
    return text


def _weights(value: Any, name: str) -> Path:
    path = Path(str(value)).expanduser()
    if not path.is_file():
        raise ConfigError(f"{name} = {str(value)!r}: there is no such file; give safetensors or a torch checkpoint")
    return path


def _data(value: Any, name: str) -> str:
    text = _text(value, name)
    kind, colon, rest = text.partition(":")
    if kind in ("imagefolder", "npz") and colon and "://" not in rest:
        path = Path(rest).expanduser()
        if not (path.is_dir() if kind == "imagefolder" else path.is_file()):
            thing = "folder" if kind == "imagefolder" else "file"
            raise ConfigError(f"{name} = {text!r}: there is no {thing} {path}")
    elif text != "digits" and not colon:
        raise UnknownNameError("data", text, _DATA_FORMS)
    return text


def _folder(value: Any, name: str) -> Path:
    path = Path(_text(str(value), name)).expanduser()
    if path.exists() and not path.is_dir():
        raise ConfigError(f"{name} = {str(value)!r}: this is a file; give a folder")
    return path


def _storage(value: Any, name: str) -> str:
    text = _text(value, name)
    if "://" not in text:
        raise ConfigError(
            f"{name} = {text!r}: not a storage URL; write sqlite:///study.db, postgresql://USER@HOST/DB or "
            "journal:///shared/study.journal"
        )
    if f":{HIDDEN}@" in text or f"password={HIDDEN}" in text:
        raise ConfigError(
            f"{name} = {text!r}: the password is not kept in files; leave it out and give it in PGPASSWORD or "
            "~/.pgpass, or give the whole URL in --storage"
        )
    return text


def _cluster(value: Any, name: str) -> str:
    text = _text(value, name)
    host, colon, port = text.removeprefix("ray://").rpartition(":")
    if text != "auto" and not (host and colon and port.isdigit()):
        raise ConfigError(f"{name} = {text!r}: write auto, HOST:PORT (6379 is Ray's own) or ray://HOST:10001")
    return text


def _resources(value: Any, name: str) -> dict[str, float]:
    """{"GPU": 1.0, "target_orin": 1.0} from "gpu=1,target_orin=1"; Ray's own names have capital letters."""
    found: dict[str, float] = {}
    for item in _text(value, name).split(","):
        label, _, amount = (part.strip() for part in item.partition("="))
        parts = split(amount)
        if not label or parts is None or parts[1] or parts[0] <= 0:
            raise ConfigError(f"{name} = {str(value)!r}: {item.strip()!r} is no NAME=AMOUNT above 0, such as gpu=1")
        found[label.upper() if label.lower() in ("cpu", "gpu") else label] = parts[0]
    return found


def _device(value: Any, name: str) -> str:
    text = _text(value, name)
    if re.fullmatch(r"cpu|mps|(cuda|xpu)(:\d+)?", text) is None:
        raise ConfigError(f"{name} = {text!r}: allowed are cpu, cuda, cuda:N, xpu, xpu:N and mps")
    return text


def _executors() -> list[str]:
    return plugins.names("autocomp.executors")


def _samplers() -> list[str]:
    return plugins.names("autocomp.search.samplers")


_PARSERS: dict[str, tuple[str, Callable[[Any, str], Any]]] = {
    "model": ("model", _model),
    "weights": ("weights", _weights),
    "data": ("data", _data),
    "image_size": ("image_size", _whole(8, 4096)),
    "normalize": ("normalize", _normalize),
    "metric": ("metric", _metric),
    "max_latency": ("max_latency_s", parse_duration),
    "max_engine_size": ("max_engine_bytes", parse_size),
    "max_drop": ("max_drop", parse_drop),
    "target": ("target", _shipped("hw_profiles", "target")),
    "batch_size": ("batch_size", _batch_sizes),
    "space": ("space", _shipped("search_spaces", "space")),
    "preset": ("preset", _one_of("preset", lambda: list(PRESETS))),
    "trials": ("trials", _whole(1, 1_000_000)),
    "timeout": ("timeout_s", parse_duration),
    "sampler": ("sampler", _one_of("sampler", _samplers)),
    "storage": ("storage", _storage),
    "device": ("device", _device),
    "jobs": ("jobs", _whole(1, 1024)),
    "cluster": ("cluster", _cluster),
    "resources": ("resources", _resources),
    "executor": ("executor", _one_of("executor", _executors)),
    "finish": ("finish", _finish),
    "seed": ("seed", _whole(0, 2**32 - 1)),
    "out": ("out", lambda value, name: Path(str(value)).expanduser()),
    "cache": ("cache", lambda value, name: _folder(value, name).absolute()),
}
"""Option → (field of the settings, parser of (value, name for messages)); the budget sets two fields."""

OPTIONS = ("budget", *_PARSERS)
"""Names of options, as in config files; flags have dashes."""


@dataclasses.dataclass(frozen=True)
class Given:
    """A value that somebody set.

    Attributes:
        value: text or number, as it was written.
        label: the option as the user wrote it, for messages ("--budget", "run.toml: budget").
        source: "flag" or the file.
    """

    value: Any
    label: str
    source: str = "flag"

    @staticmethod
    def flags(values: Mapping[str, Any]) -> dict[str, Given]:
        """Option → value, for every flag that was given.

        Raises:
            UnknownNameError: no such option.
        """
        given = {name: value for name, value in values.items() if value is not None}
        check_known(given, "option")
        return {name: Given(value, f"--{name.replace('_', '-')}") for name, value in given.items()}


def resolve(flags: Mapping[str, Any], config_file: Path | None = None) -> tuple[Settings, dict[str, str]]:
    """Settings from flags over a config file over defaults, and where each value came from.

    Args:
        flags: option name → value as text or number; None means not given.
        config_file: TOML with option names as keys (dashes or underscores).

    Returns:
        The settings, and option → "default", "flag" or the file's path.

    Raises:
        UnknownNameError: an option, target, space, sampler, metric or preset that nothing answers to.
        ConfigError, UnsupportedError: a value that is not allowed.
    """
    given = Given.flags(flags)
    from_file = {} if config_file is None else _read(config_file)
    return settle({**{k: Given(v, f"{config_file}: {k}", str(config_file)) for k, v in from_file.items()}, **given})


def settle(given: Mapping[str, Given]) -> tuple[Settings, dict[str, str]]:
    """Settings from option → value over defaults, and option → "default" or the value's source.

    Raises:
        UnknownNameError, ConfigError, UnsupportedError: a value that is not allowed; for one from a file the message
            names the file and the key.
    """
    fields: dict[str, Any] = {}
    for option, item in given.items():
        try:
            fields |= _parsed(option, item.value, item.label)
        except AutocompError as error:
            if item.source == "flag" or item.label in str(error):
                raise
            raise error.at(item.label) from None
    provenance = dict.fromkeys(OPTIONS, "default") | {option: item.source for option, item in given.items()}
    settings = Settings(**fields)
    if settings.max_drop is not None and settings.max_drop >= 1 and settings.metric in _FRACTION_METRICS:
        raise ConfigError(
            f"max_drop = {settings.max_drop:g}: {settings.metric} is a fraction, so a drop is below 1; "
            f"write {settings.max_drop:g}% or {settings.max_drop / 100:g}"
        )
    settings = _placed(settings)
    if "out" not in fields:
        settings = dataclasses.replace(settings, out=default_out(settings))
    return settings, provenance


def _placed(settings: Settings) -> Settings:
    """Executors of Ray have a cluster, others have none."""
    on_ray = settings.executor_name.startswith("ray_")
    if on_ray and settings.cluster is None:
        settings = dataclasses.replace(settings, cluster="auto")
    if settings.cluster is not None and not on_ray:
        raise ConfigError(
            f"executor = {settings.executor!r}: works on this machine only; leave out --cluster, or take ray_actors"
        )
    if settings.resources and settings.cluster is None:
        raise ConfigError("resources: name nodes of a cluster; give --cluster auto or its address as well")
    if settings.cluster is not None and settings.device not in ("cpu", "cuda"):
        raise ConfigError(f"device = {settings.device!r}: on a cluster cpu, or cuda: each worker sees its own GPU")
    return settings


def default_out(settings: Settings) -> Path:
    """``runs/<model>-<budget>-<target>-s<seed>``, in characters that any file system takes."""
    return Path("runs") / run_name(settings, model_label(settings.model))


def run_name(settings: Settings, model: str) -> str:
    """``<model>-<budget>-<target>-s<seed>``."""
    budget = _plain(settings.budget_text.replace("%", "pct")) or "free"
    return f"{model}-{budget}-{target_label(settings.target)}-s{settings.seed}"


def model_label(spec: str) -> str:
    """A model spec as a short name: "path/net.py:make" → "net-make"."""
    kind, colon, name = spec.rpartition(":")
    return _plain(f"{Path(kind).stem}-{name}" if colon else name)


def target_label(target: str) -> str:
    """The name of a target; of a TOML file its stem."""
    return _plain(Path(target).stem if target.endswith(".toml") else target)


def _plain(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9._]+", "-", text).strip("-.")


def _parsed(option: str, value: Any, label: str) -> dict[str, Any]:
    """Fields of the settings that one option sets."""
    if option == "budget":
        size, text = parse_budget(value, label)
        return {"budget_bytes": size, "budget_text": text}
    field, parser = _PARSERS[option]
    return {field: parser(value, label)}


def check_known(names: Iterable[str], kind: str) -> None:
    """UnknownNameError where a name is no option."""
    for name in names:
        if name not in OPTIONS:
            raise UnknownNameError(kind, name, OPTIONS)


def read_toml(path: Path, label: str) -> dict[str, Any]:
    """The tables of a TOML file; ConfigError, led by ``label``, where there is none or it cannot be read."""
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ConfigError(f"{label}: there is no such file") from error
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{label}: cannot be read ({error})") from error
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{label}: not valid TOML: {error}") from error


def _read(path: Path) -> dict[str, Any]:
    options = {name.replace("-", "_"): value for name, value in read_toml(path, f"--config {path}").items()}
    check_known(options, f"option in {path}")
    return options
