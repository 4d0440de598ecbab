"""The cluster of a run: connected, its device found, and what its workers need made ready to travel."""

from __future__ import annotations

import contextlib
import dataclasses
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from autocomp.cluster.actor import Versions, start
from autocomp.cluster.connection import Cluster, Node, connected, ray
from autocomp.cluster.remote import Remote
from autocomp.core.hardware import HardwareProfile, Target
from autocomp.core.progress import Progress
from autocomp.core.settings import Settings
from autocomp.core.told import Told
from autocomp.errors import ConfigError
from autocomp.evaluators.bench import Bench
from autocomp.evaluators.remote_bench import HostedBenchFactory, RemoteBench
from autocomp.runtimes._profiles import load_target
from autocomp.search.reopening import WorkerFactory, mark_shared
from autocomp.search.session import Session
from autocomp.workloads import factories

WAIT_S = 30.0
"""After so long without the device a note says what is waited for."""


@contextlib.contextmanager
def joined(settings: Settings, progress: Progress, *, scores: bool = False) -> Iterator[Bench | None]:
    """Connect to the cluster that the settings name, if any; yields where latencies are measured.

    None: on this machine, or nowhere (they are predicted).

    Args:
        settings: of the run.
        progress: receives notes.
        scores: workers will score candidates: what they need for it has to be there.

    Raises:
        RetryableError, ConfigError, UnsupportedError: no cluster there, other versions, no such device.
    """
    if settings.cluster is None:
        yield None
        return
    target = load_target(settings.target)
    with connected(settings.cluster, cores=settings.jobs) as cluster:
        nodes = cluster.nodes()
        count = f"{len(nodes)} node{'s' if len(nodes) > 1 else ''}, {cluster.cores()} CPUs"
        progress.note(f"cluster {cluster.address}: {count}" + (", started for this run" if cluster.started else ""))
        if scores:
            scoring_gpus(settings, cluster)
        places, needs = _timing(settings, target, cluster)
        yield _bench(target.profile, places, needs, progress) if places else None


def scoring_gpus(settings: Settings, cluster: Cluster) -> int:
    """GPUs that candidates are scored on: those that none measures on and that have a CPU beside them for a worker.

    0 with ``--device cpu``.

    Raises:
        ConfigError: none is left; the workers would wait for ever.
    """
    if not settings.on_accelerator:
        return 0
    places, needs = _timing(settings, load_target(settings.target), cluster)
    held = {node.id: needs for node in places}

    def left(node: Node, name: str) -> int:
        return int(node.resources.get(name, 0.0) - held.get(node.id, {}).get(name, 0.0))

    free = sum(max(0, min(left(node, "GPU"), left(node, "CPU"))) for node in cluster.nodes())
    if free < 1:
        there = sum(node.resources.get("GPU", 0.0) for node in cluster.nodes())
        raise ConfigError(
            f"--device {settings.device}: of the cluster's GPUs ({there:g}) none is left that no latencies are "
            "measured on and that has a CPU beside it; start nodes with both (ray start --num-gpus N), or take "
            "--device cpu"
        )
    return free


def _timing(settings: Settings, target: Target, cluster: Cluster) -> tuple[tuple[Node, ...], Mapping[str, float]]:
    """Where latencies are measured, and what is taken there: the nodes that were named, else the device of this one.

    No nodes where they are predicted: no device here, and none named.
    """
    whole = {"GPU": 1.0} if target.profile.on_gpu else {}  # nobody else's work on what is measured
    if settings.resources:
        places = cluster.offering(settings.resources)
        return places, {**(whole if all(node.offers(whole) for node in places) else {}), **settings.resources}
    if target.cannot_measure() is not None:
        return (), {}
    here = _here(cluster)
    return (here,), whole if here.offers(whole) else {}


def _here(cluster: Cluster) -> Node:
    return next(node for node in cluster.nodes() if node.id == cluster.here())


def _bench(
    profile: HardwareProfile, places: tuple[Node, ...], resources: Mapping[str, float], progress: Progress
) -> RemoteBench:
    """One exclusive actor a device; all of them have to be of one kind.

    Raises:
        ConfigError: the devices differ.
        UnsupportedError: a device cannot be used.
    """
    make = HostedBenchFactory(profile=profile)
    actors = [start(make, resources=resources, node=node.id, restarts=-1) for node in places]
    opening = {actor: actor.open.remote(Versions()) for actor in actors}
    waiting = list(opening.values())
    while waiting:
        ready, waiting = ray().wait(waiting, num_returns=len(waiting), timeout=WAIT_S)
        if not ready and waiting:
            text = ", ".join(f"{name}={amount:g}" for name, amount in resources.items()) or "this machine"
            progress.note(f"waiting for {text}: another program of the cluster holds it (Ctrl-C gives up)")
    facts = []
    for actor, node in zip(actors, places, strict=True):
        found = ray().get(opening[actor])
        if isinstance(found, Told):
            raise found.error(f"node {node.address}")
        facts.append(ray().get(actor.call.remote("facts", ())))
    differs = next((i for i, fact in enumerate(facts) if kind_of(fact) != kind_of(facts[0])), None)
    if differs is not None:
        raise ConfigError(
            f"--resources: the nodes have different devices ({places[0].address}: {kind_of(facts[0])}; "
            f"{places[differs].address}: {kind_of(facts[differs])}); a search measures on one kind: label them apart"
        )
    return RemoteBench(Remote(tuple(actors), f"the timing process of {profile.name}"), facts[0])


def travelling(session: Session) -> WorkerFactory:
    """What works on another machine: model and data go with it, files only by path."""
    for module in factories.loaded_from_files():
        ray().cloudpickle.register_pickle_by_value(module)
    settings = dataclasses.replace(
        session.settings, target=_absolute(session.settings.target), space=_absolute(session.settings.space)
    )
    return WorkerFactory(
        settings=settings,
        folder=session.run.path,
        workload=session.workload,
        bench=session.bench,
        shared=mark_shared(session.run),
    )


def _absolute(name_or_path: str) -> str:
    return str(Path(name_or_path).absolute()) if name_or_path.endswith(".toml") else name_or_path


def kind_of(facts: Mapping[str, Any]) -> str:
    """A device's name and the versions that decide how fast it runs, in one line."""
    device = facts["versions"].get("device", facts["cpu"]["model"])
    others = {k: v for k, v in facts["versions"].items() if k != "device"}
    return f"{device} ({json.dumps(others, sort_keys=True)})"
