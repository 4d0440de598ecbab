"""One object on a node of the cluster: made there, called by the name of a method, its pulse felt beside.

What happens in the process stays a value: exceptions come back as :class:`Told`. Nothing here imports torch.
"""

from __future__ import annotations

import contextlib
import os
import platform
import signal
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import autocomp
from autocomp.cluster.connection import ray
from autocomp.core.threads import limit_threads
from autocomp.core.told import Told
from autocomp.errors import ConfigError

PULSE = "pulse"
_PULSE_S, _KILL_S = 3.0, 15.0


@dataclass(frozen=True, kw_only=True)
class Whereabouts:
    """A process of the cluster."""

    node: str
    address: str
    pid: int


@dataclass(frozen=True, kw_only=True)
class Versions:
    """What has to be the same in every process of a run."""

    autocomp: str = autocomp.__version__
    python: str = platform.python_version()

    def mismatch(self, theirs: Versions, address: str) -> str | None:
        """One line where another process differs."""
        for name in ("autocomp", "python"):
            mine, other = getattr(self, name), getattr(theirs, name)
            if mine != other:
                return f"{address} runs {name} {other}, this program {name} {mine}; install the same everywhere"
        return None


class Actor:
    """What runs on the node.

    Args:
        make: a list of one callable without arguments that makes the object, or of a reference to it. In a list, so
            that a reference is fetched when it is needed, where a failure can be told.
        threads: for numeric libraries in this process.
    """

    def __init__(self, make: list[Any], threads: int) -> None:
        self._make, self._threads = make, threads
        self._object: Any = None

    def open(self, wanted: Versions) -> Whereabouts | Told:
        """Make the object; where this process is."""
        context = ray().get_runtime_context()
        here = Whereabouts(node=context.get_node_id(), address=ray().util.get_node_ip_address(), pid=os.getpid())
        different = wanted.mismatch(Versions(), here.address)
        if different is not None:
            return Told.of(ConfigError(different))
        return self._opened() or here

    def call(self, method: str, arguments: tuple[Any, ...]) -> Any:
        """``object.method(*arguments)``, or the exception it raised; references among the arguments are fetched."""
        trouble = self._opened()
        if trouble is not None:
            return trouble
        try:
            return getattr(self._object, method)(*map(_fetched, arguments))
        except Exception as error:  # noqa: BLE001  the edge of the process: it is raised again in the caller's
            return Told.of(error)

    def pulse(self) -> None:
        """Answers while the process lives, whatever :meth:`call` is busy with."""

    def _opened(self) -> Told | None:
        """Makes the object, once; Ray starts an actor again without telling whoever uses it."""
        if self._object is None:
            limit_threads(self._threads)
            try:
                self._object = _fetched(self._make[0])()
            except Exception as error:  # noqa: BLE001  as above
                return Told.of(error)
            limit_threads(self._threads)
        return None


def start(
    make: Any,
    *,
    threads: int = 1,
    resources: Mapping[str, float] | None = None,
    node: str | None = None,
    restarts: int = 0,
) -> Any:
    """A handle to a new :class:`Actor`.

    Args:
        make: a picklable callable; or a reference to one, as ``ray.put`` returns it, which its holder keeps alive and
            which goes to each node once.
        threads: see :class:`Actor`.
        resources: what it takes ("CPU", "GPU", labels); default one CPU.
        node: id of the node it has to be on, or None for any.
        restarts: how often Ray itself starts it again; -1 for ever.
    """
    amounts = dict(resources if resources is not None else {"CPU": 1})
    options: dict[str, Any] = {
        "num_cpus": amounts.pop("CPU", 0),
        "num_gpus": amounts.pop("GPU", 0),
        "resources": amounts,
        "max_restarts": restarts,
        "max_task_retries": 0,
        "concurrency_groups": {PULSE: 1},
    }
    if node is not None:
        strategies = ray().util.scheduling_strategies
        options["scheduling_strategy"] = strategies.NodeAffinitySchedulingStrategy(node_id=node, soft=False)
    return ray().remote(**options)(Actor).remote([make], threads)


def _fetched(value: Any) -> Any:
    return ray().get(value) if isinstance(value, ray().ObjectRef) else value


def feel_pulse(actor: Any) -> Any:
    """Reference that resolves as soon as the process answers."""
    return actor.pulse.options(concurrency_group=PULSE).remote()


def end(actors: Mapping[Any, Whereabouts | None]) -> None:
    """End actors for good. One that is stopped hears nothing of Ray's and would outlive the program: it is killed by
    a signal of its own node.

    Args:
        actors: handle → where it is, None where it has not said so yet.
    """
    pulses = {feel_pulse(actor): where for actor, where in actors.items() if where is not None}
    if pulses:
        _, silent = ray().wait(list(pulses), num_returns=len(pulses), timeout=_PULSE_S)
        killed = [_kill_on_node(where) for pulse in silent if (where := pulses[pulse]) is not None]
        if killed:
            ray().wait(killed, num_returns=len(killed), timeout=_KILL_S)
    for actor in actors:
        ray().kill(actor)


def _kill_on_node(where: Whereabouts) -> Any:
    strategies = ray().util.scheduling_strategies
    on_node = strategies.NodeAffinitySchedulingStrategy(node_id=where.node, soft=True)
    return ray().remote(num_cpus=0, max_retries=0, scheduling_strategy=on_node)(_kill).remote(where)


def _kill(where: Whereabouts) -> None:
    if ray().get_runtime_context().get_node_id() == where.node:  # else its node is gone, and it with it
        with contextlib.suppress(ProcessLookupError):
            os.kill(where.pid, signal.SIGKILL)
