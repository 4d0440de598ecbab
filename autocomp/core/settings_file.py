"""Settings as TOML: the ``config.toml`` of a run, which ``--config`` reads back."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from autocomp.core.settings import Settings, without_password


def to_options(settings: Settings) -> dict[str, Any]:
    """Option names and values, as flags or a config file would give them; what is not set is left out.

    A budget in percent stays in percent: it means the same for the same model. The password of a storage is hidden.
    """
    options: dict[str, Any] = {
        "model": settings.model,
        "weights": str(settings.weights) if settings.weights is not None else None,
        "data": settings.data,
        "image_size": settings.image_size,
        "normalize": settings.normalize,
        "metric": settings.metric,
        "budget": settings.budget_text or settings.budget_bytes,
        "max_latency": _seconds(settings.max_latency_s),
        "max_engine_size": settings.max_engine_bytes,
        "max_drop": settings.max_drop,
        "target": settings.target,
        "batch_size": list(settings.batch_size),
        "space": settings.space,
        "preset": settings.preset,
        "trials": settings.trials,
        "timeout": _seconds(settings.timeout_s),
        "sampler": settings.sampler,
        "storage": without_password(settings.storage) if settings.storage is not None else None,
        "device": settings.device,
        "jobs": settings.jobs,
        "cluster": settings.cluster,
        "resources": ",".join(f"{k}={v:g}" for k, v in settings.resources.items()) or None,
        "executor": settings.executor,
        "finish": settings.finish,
        "seed": settings.seed,
        "out": str(settings.out),
        "cache": str(settings.cache) if settings.cache is not None else None,
    }
    return {name: value for name, value in options.items() if value is not None}


def write_config(settings: Settings, path: Path) -> None:
    """Write ``settings`` so that ``--config`` reads them back; the file is replaced whole.

    Raises:
        OSError: the folder cannot be written.
    """
    import tomli_w

    from autocomp.core.run_folder import write_atomic

    text = "# Resolved settings of this run; use them again with: autocomp search --config THIS_FILE\n"
    write_atomic(path, (text + tomli_w.dumps(to_options(settings))).encode())


def _seconds(value: float | None) -> str | None:
    """ "0.002s": the shortest text that reads back to the same number."""
    return None if value is None or not math.isfinite(value) else f"{value!r}s"
