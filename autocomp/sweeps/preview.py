"""What a sweep would do, and how long that took before: nothing is written, no model is loaded."""

from __future__ import annotations

import dataclasses
import json
import statistics
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from autocomp.core.run_folder import RunFolder
from autocomp.core.settings import Settings
from autocomp.errors import AutocompError
from autocomp.stages.exploring import trials_done
from autocomp.stages.opening import already_finished, settings_of
from autocomp.survey.stored import priced
from autocomp.sweeps.plan import Sweep
from autocomp.sweeps.rows import FAILED, INFEASIBLE, earlier

_NETWORK = ("model", "weights", "data", "image_size", "normalize", "metric", "target")
SAME_PRICES = (*_NETWORK, "space", "preset", "seed")
"""Settings that the files of prices depend on."""
SAME_ENGINES = (*_NETWORK, "batch_size")
"""Settings that remembered latencies depend on; spaces share what they have in common."""
SAME_PACE = (
    *SAME_ENGINES,
    "space",
    "preset",
    "sampler",
    "finish",
    "device",
    "jobs",
    "cluster",
    "resources",
    "executor",
)
"""Settings that a search's seconds depend on; budgets, seeds and trials may differ."""


@dataclass(frozen=True, kw_only=True)
class Preview:
    """One search as ``--dry-run`` shows it.

    Attributes:
        search: name of its folder.
        state: "finished", "begun", "new", or how it ended before ("infeasible", "failed"): it is then tried again.
        trials: evaluations it is to have in all.
        done: those that its study holds.
        prices: "13/13": files of prices that the shared cache holds, of those that this search or an earlier one of
            the same model, target, space and seed was found to need; "" where none was.
        engines: latencies that finished searches of the same model and target left in the shared cache.
        seconds: what is left, estimated from finished searches; None where nothing is known.
    """

    search: str
    state: str
    trials: int
    done: int
    prices: str
    engines: int
    seconds: float | None


@dataclass(frozen=True, kw_only=True)
class Known:
    """A run that is there.

    Attributes:
        run: its folder.
        settings: it was made with.
        seconds: by stage, empty unless it is finished in one go: a resumed one knows its last start only.
        evaluations, engine_builds: of its search, 0 unless it is finished.
    """

    run: RunFolder
    settings: Settings
    seconds: Mapping[str, float]
    evaluations: int
    engine_builds: int

    def like(self, settings: Settings, keys: Sequence[str]) -> bool:
        """Whether it was made with the same values of ``keys``."""
        return all(getattr(self.settings, key) == getattr(settings, key) for key in keys)


def preview(sweep: Sweep, *, fresh: bool = False) -> list[Preview]:
    """One line a search, in the order they run."""
    known = list(_runs(sweep))
    before = {} if fresh else earlier(sweep.folder)
    emptied = fresh and sweep.own_cache
    out: list[Preview] = []
    for number, search in enumerate(sweep.searches):
        run, settings = RunFolder(search.settings.out), search.settings
        sharing = [] if emptied else [k for k in known if k.settings.cache == settings.cache]
        finished = not fresh and already_finished(run, settings) is not None
        done = 0 if fresh else trials_done(run)
        row = before.get(search.name)
        state = "begun" if (run.cache / "settings.json").is_file() and not fresh else "new"
        if row is not None and row.state in (INFEASIBLE, FAILED):
            state = row.state
        held, needed = _prices(sharing, settings)
        made = any(_same_prices(other.settings, settings) for other in sweep.searches[:number])
        seconds = 0.0 if finished else _seconds(known, settings, done, priced=made or 0 < needed == held)
        out.append(
            Preview(
                search=search.name,
                state="finished" if finished else state,
                trials=settings.spend.trials,
                done=done,
                prices=f"{held}/{needed}" if needed else "",
                engines=sum(k.engine_builds for k in sharing if k.like(settings, SAME_ENGINES)),
                seconds=seconds,
            )
        )
    return out


def to_json(sweep: Sweep, lines: Sequence[Preview]) -> dict[str, Any]:
    """What ``--dry-run --json`` prints; ``seconds`` in all is None where any of them is unknown."""
    told = [line.seconds for line in lines if line.seconds is not None]
    return {
        "sweep": str(sweep.folder),
        "searches": [dataclasses.asdict(line) for line in lines],
        "seconds": sum(told) if len(told) == len(lines) else None,
        "unknown": len(lines) - len(told),
    }


def _runs(sweep: Sweep) -> Iterator[Known]:
    """Runs in the sweep's folder, and in ``runs/`` here: searches and those of other sweeps."""
    patterns = ((sweep.folder, "*"), (Path("runs").absolute(), "*"), (Path("runs").absolute(), "*/*"))
    folders = dict.fromkeys(path for root, pattern in patterns for path in sorted(root.glob(pattern)))
    for folder in folders:
        run = RunFolder(folder)
        if not (run.cache / "settings.json").is_file():
            continue
        with suppress(AutocompError, TypeError):  # of another version, or made from Python objects
            yield _known(run, settings_of(run))


def _known(run: RunFolder, settings: Settings) -> Known:
    try:
        summary = json.loads(run.summary.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        summary = {}
    row = earlier(run.path.parent).get(run.path.name)
    resumed = row is not None and row.resumed
    return Known(
        run=run,
        settings=settings,
        seconds={} if resumed else summary.get("seconds", {}),
        evaluations=int(summary.get("evaluations", 0)),
        engine_builds=int(summary.get("engine_builds", 0)),
    )


def _same_prices(one: Settings, other: Settings) -> bool:
    return all(getattr(one, key) == getattr(other, key) for key in SAME_PRICES)


def _prices(sharing: Sequence[Known], settings: Settings) -> tuple[int, int]:
    """Files of prices that are there, and that are needed, as the index of a run with the same prices names them."""
    found = [priced(k.run.cache) for k in sharing if k.like(settings, SAME_PRICES)]
    return max(found, default=(0, 0))


def _seconds(known: Sequence[Known], settings: Settings, done: int, *, priced: bool) -> float | None:
    """Estimate: the survey where prices are missing, the trials that are left, and the other stages.

    Of finished runs with the same pace the median; of their surveys the longest stands for one that has to price,
    the shortest for one that finds all prices in the cache.
    """
    same = [k for k in known if k.like(settings, SAME_PACE) and k.evaluations and "search" in k.seconds]
    if not same:
        return None
    surveys = [k.seconds.get("survey", 0.0) for k in same]
    trial_s = statistics.median(k.seconds["search"] / k.evaluations for k in same)
    rest_s = statistics.median(sum(s for n, s in k.seconds.items() if n not in ("survey", "search")) for k in same)
    left = max(0, settings.spend.trials - done)
    return (min if priced else max)(surveys) + trial_s * left + rest_s
