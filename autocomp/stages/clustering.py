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
from autocomp.core.hardware import HardwareProfile
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
def joined(settings: Settings, progress: Progress) -> Iterator[Bench | None]:
    """Connect to the cluster that the settings name, if any; yields where latencies are measured.

    None: on this machine, or nowhere (they are predicted).

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
        if not settings.resources and target.cannot_measure() is not None:
            yield None  # no device here, and none named: predicted, as without a cluster
            return
        places = cluster.offering(settings.resources) if settings.resources else (_here(cluster),)
        yield _bench(target.profile, places, settings.resources, progress)


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
