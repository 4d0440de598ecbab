"""A search space, prices and an evaluator that cost nothing: for tests of searching itself."""

from __future__ import annotations

import functools
import itertools
import os
import signal
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from autocomp.core.candidate import Candidate
from autocomp.core.executor import Evaluate, Job
from autocomp.core.outcome import Completed, Failed, Outcome
from autocomp.core.prices import Prices, PriceTable
from autocomp.core.space import SearchSpace, Unit
from autocomp.core.steps import FLOAT, Choice, StepConfig

BUDGET_BYTES = 3000
"""A limit that about half of the fake space meets."""


@dataclass(frozen=True, kw_only=True)
class FakeWeights(StepConfig):
    """A weight width, without the transforms (and the torch) behind the real one."""

    axis: ClassVar[str] = "weights"
    order: ClassVar[int] = 40
    kernels: ClassVar[tuple[str, ...]] = ("int8",)
    bits: int

    def label(self) -> str:
        return f"{self.bits}b"


@dataclass(frozen=True, kw_only=True)
class FakeActivations(StepConfig):
    """int8 execution."""

    axis: ClassVar[str] = "activations"
    precision: ClassVar[str] = "int8"
    order: ClassVar[int] = 50

    def label(self) -> str:
        return "int8"


def fake_space(units: int = 6, bits: tuple[int, ...] = (2, 3, 4, 6, 8), activations: bool = False) -> SearchSpace:
    """``units`` units with a weight width each, and int8 execution where asked."""
    weights = (None, *(FakeWeights(bits=b) for b in sorted(bits, reverse=True)))
    axes: dict[str, tuple[Any, ...]] = {"weights": weights}
    if activations:
        axes["activations"] = (None, FakeActivations())
    names = [f"layer{i}" for i in range(units)]
    return SearchSpace(name="fake", units={n: Unit(name=n, layers=(n,), axes=axes) for n in names})


def fake_prices(space: SearchSpace, *, dimensions: int = 8, seed: int = 0) -> PriceTable:
    """Prices that follow from the widths: bytes linear in bits, logit changes falling by 2**-bits."""
    rng = np.random.default_rng(seed)
    storage, execution = {}, {}
    for unit in space.units.values():
        direction = rng.normal(size=dimensions)
        choices = sorted({c.storage() for c in unit.choices()}, key=lambda c: -_bits(c))
        storage[unit.name] = _prices(choices, [100 * _bits(c) for c in choices], direction)
        if "activations" in unit.axes:
            quantized = sorted({c.execution() for c in unit.choices()}, key=lambda c: c != FLOAT)
            execution[unit.name] = _prices(quantized, [0] * len(quantized), rng.normal(size=dimensions) * 0.01)
    return PriceTable(storage=storage, execution=execution, fixed_bytes=50)


def _prices(choices: list[Choice], sizes: list[int], direction: np.ndarray) -> Prices:
    scale = np.array([0.0 if c == FLOAT else 2.0 ** -_bits(c) for c in choices])
    delta = (scale[:, None] * direction).astype(np.float32)
    return Prices(
        choices=tuple(choices),
        bytes=np.array(sizes, dtype=np.int64),
        kl=0.5 * (delta.astype(np.float64) ** 2).sum(axis=1),
        delta=delta,
    )


def _bits(choice: Choice) -> int:
    step = choice.get("weights")
    if isinstance(step, FakeWeights):
        return step.bits
    return 8 if choice.get("activations") is not None else 32


def fake_outcome(candidate: Candidate, space: SearchSpace) -> Completed:
    """What evaluating ``candidate`` gives: a function of it alone; early units weigh more, and pairs interact."""
    widths = [_bits(candidate[name].storage()) for name in space.units]
    errors = [2.0**-b * (1.0 + 1.0 / (1 + i)) for i, b in enumerate(widths)]
    loss = sum(errors) + 4.0 * sum(a * b for a, b in itertools.pairwise(errors))
    return Completed(file_bytes=50 + 100 * sum(widths), kl=loss, score=1.0 / (1.0 + loss))


def within_budget(outcome: Completed) -> Mapping[str, float]:
    """The fake run's only limit."""
    return {"file_bytes": outcome.file_bytes / BUDGET_BYTES - 1.0}


@dataclass(frozen=True)
class FakeFactory:
    """Picklable factory of a cheap, deterministic evaluator with accidents on demand.

    Attributes:
        units: of the space.
        sleep_s: seconds an evaluation takes.
        accidents: trial number → "raise", "oom", "die" (SIGKILL, every time), "die-once", "hang" or "nan".
        log: file that gets a line "number attempt" before each evaluation, or None.
        broken: message of the error that the factory itself raises, or "".
    """

    units: int = 6
    sleep_s: float = 0.0
    accidents: tuple[tuple[int, str], ...] = ()
    log: Path | None = None
    broken: str = ""

    def __call__(self) -> Evaluate:
        if self.broken:
            raise ValueError(self.broken)
        space = fake_space(self.units)
        return functools.partial(self._evaluate, space, dict(self.accidents))

    def _evaluate(self, space: SearchSpace, accidents: Mapping[int, str], job: Job) -> Outcome:
        if self.log is not None:
            with self.log.open("a") as file:
                file.write(f"{job.number} {job.attempt}\n")
        time.sleep(self.sleep_s)
        accident = accidents.get(job.number)
        if accident is not None:
            failed = _ACCIDENTS[accident](job)
            if failed is not None:
                return failed
        return fake_outcome(job.candidate, space)


def _raise(job: Job) -> Outcome | None:
    raise RuntimeError(f"trial {job.number} goes wrong\non purpose")


def _out_of_memory(job: Job) -> Outcome | None:
    raise MemoryError


def _die(job: Job) -> Outcome | None:
    os.kill(os.getpid(), signal.SIGKILL)
    return None


def _die_once(job: Job) -> Outcome | None:
    return _die(job) if job.attempt == 1 else None


def _hang(job: Job) -> Outcome | None:
    time.sleep(3600)
    return None


def _nan(job: Job) -> Outcome | None:
    return Completed(file_bytes=1000, kl=float("nan"), score=0.5)


def _say(job: Job) -> Outcome | None:
    return Failed(stage="latency", kind="unsupported", message="the runtime has no such kernel")


_ACCIDENTS: dict[str, Callable[[Job], Outcome | None]] = {
    "raise": _raise,
    "oom": _out_of_memory,
    "die": _die,
    "die-once": _die_once,
    "hang": _hang,
    "nan": _nan,
    "say": _say,
}
