"""What is known of a run in progress: stages, steps, the time left."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from autocomp.report.format import seconds

SMOOTHING = 0.15
"""Weight of the newest step in the moving average that the time left is computed from."""

FACTS = {"best": "best", "front": "on the front", "failures": "failed"}


@dataclass
class Stage:
    """One line of the checklist. Times are seconds of the clock.

    Attributes:
        name: as the pipeline says it.
        total: steps, or None where unknown.
        start: when it began, None while it waits.
        end: when the next one began, None before.
        whole: False where it was cut off (an error, Ctrl-C).
        done: steps done, ``resumed`` of them by an earlier run.
        step_s: moving average of a step, None before the first.
        facts: the newest ``failures``, ``front``, ``best``, ...
    """

    name: str
    total: int | None = None
    start: float | None = None
    end: float | None = None
    whole: bool = True
    done: int = 0
    resumed: int = 0
    step_s: float | None = None
    last: float = 0.0
    facts: dict[str, Any] = field(default_factory=dict)

    def advance(self, steps: int, now: float) -> None:
        """Count ``steps`` and smooth the time of one."""
        self.done += steps
        if steps > 0:
            step_s = (now - self.last) / steps
            keep = 0.0 if self.step_s is None else (1 - SMOOTHING) ** min(steps, 50)
            self.step_s = keep * (self.step_s or 0.0) + (1 - keep) * step_s
            self.last = now

    def left_s(self, now: float) -> float | None:
        """Seconds until this stage ends, or None where nobody knows."""
        if self.total is None or self.step_s is None or self.done >= self.total:
            return None
        return max(0.0, self.step_s * (self.total - self.done) - (now - self.last))

    def words(self, *, verbose: bool) -> list[str]:
        """Steps and facts as text; without ``verbose`` structured facts are left out."""
        out = [] if self.total is None and not self.done else [str(self.done)]
        if self.total is not None:
            out = [f"{self.done}/{self.total}"]
        return out + spoken(self.facts, verbose=verbose)


def spoken(facts: Mapping[str, Any], *, verbose: bool = False) -> list[str]:
    """Facts as text; without ``verbose`` structured ones are left out."""
    out = []
    for key, value in facts.items():
        if key == "best" and value is not None:
            out.append(f"best {value}")
        elif key == "failures" and isinstance(value, Mapping):
            if value:
                kinds = ", ".join(f"{count} {kind}" for kind, count in value.items())
                out.append(f"{sum(value.values())} failed ({kinds})")
        elif key in FACTS and value:
            out.append(f"{value} {FACTS[key]}")
        elif key not in FACTS and (verbose or not isinstance(value, dict | list | tuple)):
            out.append(f"{key.replace('_', ' ')} {value}")
    return out


class Board:
    """What is known of the run: the stages so far and the one that runs. Safe between threads.

    Args:
        stages: names of the stages to expect, in order.
        clock: seconds, monotonic.
    """

    def __init__(self, stages: Sequence[str] = (), clock: Callable[[], float] = time.monotonic) -> None:
        self.stages = [Stage(name) for name in stages]
        self.clock = clock
        self.lock = threading.RLock()
        self.current: Stage | None = None

    def begin(self, name: str, total: int | None, done: int) -> Stage:
        """Start a stage; an unexpected one takes its place before those that still wait."""
        with self.lock:
            now = self.clock()
            self.end()
            stage = next((s for s in self.stages if s.name == name and s.start is None), None)
            if stage is None:
                stage = Stage(name)
                waiting = (i for i, s in enumerate(self.stages) if s.start is None)
                self.stages.insert(next(waiting, len(self.stages)), stage)
            stage.total, stage.done, stage.resumed = total, done, done
            stage.start = stage.last = now
            self.current = stage
            return stage

    def advance(self, steps: int, facts: dict[str, Any]) -> Stage | None:
        """Count steps of the running stage."""
        with self.lock:
            if self.current is not None:
                self.current.advance(steps, self.clock())
                self.current.facts.update(facts)
            return self.current

    def end(self, *, whole: bool = True) -> Stage | None:
        """The running stage is over, or was cut off; returns it."""
        with self.lock:
            stage, self.current = self.current, None
            if stage is not None:
                stage.end, stage.whole = self.clock(), whole
            return stage


def line(stage: Stage, now: float, *, verbose: bool = False) -> str:
    """One plain line: "search: 12/32, 1 failed, 7 on the front, best 3.9 MB 98.2 %, 40 s left"."""
    begun = now if stage.start is None else stage.start
    words = stage.words(verbose=verbose)
    if stage.end is not None:
        words.append(f"{'done in' if stage.whole else 'stopped after'} {seconds(stage.end - begun)}")
    else:
        left = stage.left_s(now)
        words.append(f"{seconds(now - begun)}" + ("" if left is None else f", about {seconds(left)} left"))
    return f"{stage.name}: {', '.join(words)}"
