"""A bench in a process of its own beside the device, called from anywhere in the cluster."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from autocomp import runtimes
from autocomp.cluster.connection import ray
from autocomp.cluster.remote import Remote
from autocomp.core.hardware import HardwareProfile, Plan, Target
from autocomp.core.outcome import Measurement
from autocomp.errors import UnsupportedError
from autocomp.evaluators._timing import TimingRecipe
from autocomp.evaluators.bench import LocalBench

if TYPE_CHECKING:
    import numpy as np

PLANS_SENT = 4
"""Plans remembered as sent: the reference goes with every measurement, an engine that is scored with every batch."""


class HostedBench(LocalBench):
    """What runs beside the device: it takes the lease itself, since whoever calls is on another machine."""

    def time(
        self, plan: Plan, reference: Plan, example: np.ndarray, recipe: TimingRecipe, fastest_s: float | None
    ) -> Measurement:
        with self.exclusive():
            return super().time(plan, reference, example, recipe, fastest_s)


@dataclass(frozen=True, kw_only=True)
class HostedBenchFactory:
    """Picklable recipe of a :class:`HostedBench`.

    Attributes:
        profile: of the target; its runtime is looked up where the bench is made.
    """

    profile: HardwareProfile

    def __call__(self) -> HostedBench:
        target = Target(profile=self.profile, runtime=runtimes.find(self.profile.runtime))
        reason = target.cannot_measure()
        if reason is not None:
            raise UnsupportedError(f"{self.profile.name} cannot be measured there: {reason}")
        return HostedBench(target)


class RemoteBench:
    """A :class:`~autocomp.evaluators.bench.Bench` that asks a :class:`HostedBench` of the cluster. Can be pickled.

    Args:
        remote: its actors.
        facts: what they tell of their device, the same for all.
    """

    def __init__(self, remote: Remote, facts: dict[str, Any]) -> None:
        self._remote, self._facts = remote, facts
        self._sent: dict[int, tuple[Plan, Any]] = {}

    def __reduce__(self) -> tuple[Any, ...]:
        return RemoteBench, (self._remote, self._facts)

    def facts(self) -> dict[str, Any]:
        return self._facts

    def exclusive(self) -> AbstractContextManager[None]:
        """Nothing to hold here: the actor does one thing at a time, and holds the device's lease."""
        return nullcontext()

    def build(self, model: bytes, example: np.ndarray) -> Plan:
        built = self._remote.call("build", model, example)
        assert isinstance(built, Plan)
        return built

    def time(
        self, plan: Plan, reference: Plan, example: np.ndarray, recipe: TimingRecipe, fastest_s: float | None
    ) -> Measurement:
        timed = self._remote.call("time", self._ref(plan), self._ref(reference), example, recipe, fastest_s)
        assert isinstance(timed, Measurement)
        return timed

    def outputs(self, plan: Plan, inputs: np.ndarray) -> np.ndarray:
        return self._remote.call("outputs", self._ref(plan), inputs)  # type: ignore[no-any-return]

    def _ref(self, plan: Plan) -> Any:
        """Reference to the plan in the object store; the plan is kept beside it, so that its id stays its own."""
        if id(plan) not in self._sent:
            self._sent[id(plan)] = (plan, ray().put(plan))
            while len(self._sent) > PLANS_SENT:
                self._sent.pop(next(iter(self._sent)))
        return self._sent[id(plan)][1]
