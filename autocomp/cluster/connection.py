"""Find a Ray cluster or start a local one; everything that can be wrong with it is said at once, in one line."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from autocomp.core import threads
from autocomp.errors import ConfigError, RetryableError, UnsupportedError

AUTO = "auto"
ONE_CPU: Mapping[str, float] = {"CPU": 1}
"""What a worker takes that needs no device."""
_PROBE_S = 5.0
_CLIENT = "ray://"
_QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",  # nobody is told of a run
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "1",  # a worker without a GPU must not disturb one that is measured on
    "RAY_AIR_NEW_OUTPUT": "0",
}


@dataclass(frozen=True, kw_only=True)
class Node:
    """A machine of the cluster.

    Attributes:
        id: Ray's own, hexadecimal.
        address: its IP address.
        resources: name → amount in all ("CPU", "GPU", own labels).
    """

    id: str
    address: str
    resources: Mapping[str, float]

    def offers(self, wanted: Mapping[str, float]) -> bool:
        """Whether it has all of ``wanted``, busy or not."""
        return all(self.resources.get(name, 0.0) >= amount for name, amount in wanted.items())


@dataclass(frozen=True, kw_only=True)
class Cluster:
    """A connected cluster.

    Attributes:
        address: where it was found; "local" where it was started for this run.
        started: whether it was started here, and ends with the run.
    """

    address: str
    started: bool

    def nodes(self) -> tuple[Node, ...]:
        """Machines that are up."""
        return tuple(
            Node(id=n["NodeID"], address=n["NodeManagerAddress"], resources=dict(n["Resources"]))
            for n in ray().nodes()
            if n["Alive"]
        )

    def cores(self) -> int:
        """CPUs of all machines, at least 1."""
        return max(1, int(sum(node.resources.get("CPU", 0.0) for node in self.nodes())))

    def crew(self, jobs: int | None, gpus: int) -> tuple[int, Mapping[str, float]]:
        """How many workers, and what each takes.

        Args:
            jobs: workers; None: one a CPU of the cluster, or one each of ``gpus``.
            gpus: that they share; where there are more workers than GPUs, each takes an equal part of one.
        """
        if gpus == 0:
            return self.cores() if jobs is None else jobs, ONE_CPU
        workers = gpus if jobs is None else jobs
        return workers, {"CPU": 1, "GPU": 1 / max(1, -(-workers // gpus))}

    def here(self) -> str:
        """Id of the node this program runs on."""
        return str(ray().get_runtime_context().get_node_id())

    def offering(self, wanted: Mapping[str, float]) -> tuple[Node, ...]:
        """Machines that have ``wanted``.

        Raises:
            ConfigError: none has; names what there is.
        """
        found = tuple(node for node in self.nodes() if node.offers(wanted))
        if not found:
            text = ", ".join(f"{name}={amount:g}" for name, amount in wanted.items())
            have = "; ".join(f"{node.address}: {_shown(node.resources)}" for node in self.nodes())
            raise ConfigError(
                f"--resources {text}: no node of the cluster offers that ({have}); label one with "
                "ray start --resources='{\"NAME\": 1}'"
            )
        return found


def ray() -> ModuleType:
    """The package, told to be quiet.

    Raises:
        UnsupportedError: it is not installed.
    """
    for name, value in _QUIET.items():
        os.environ.setdefault(name, value)
    try:
        import ray as package
    except ImportError:
        raise UnsupportedError("Ray is not installed; pip install 'autocomp[ray]', or use --jobs N") from None
    return package


@contextlib.contextmanager
def connected(address: str, *, cores: int | None = None) -> Iterator[Cluster]:
    """The cluster at ``address``; disconnected, and stopped where it was started here, afterwards.

    Args:
        address: "host:port", "ray://host:port", or "auto": the running cluster that RAY_ADDRESS or this machine's Ray
            knows of, else a local one (always with RAY_ADDRESS=local).
        cores: CPUs of a local one; None: those of this machine.

    Raises:
        RetryableError: nothing answers there.
        ConfigError: its Ray or Python is of another version.
        UnsupportedError: Ray is not installed.
    """
    package = ray()
    if package.is_initialized():  # somebody's own program: its connection is used and left
        yield Cluster(address=package.get_runtime_context().gcs_address, started=False)
        return
    found = running() if address == AUTO else address
    _init(package, found, cores)
    try:
        yield Cluster(address=found or "local", started=found is None)
    finally:
        package.shutdown()


def running() -> str | None:
    """Address of the running cluster that this machine knows of, None where there is none."""
    named = os.environ.get("RAY_ADDRESS", AUTO)
    if named == "local":
        return None
    if named not in ("", AUTO):
        return named
    from ray._private.services import canonicalize_bootstrap_address

    try:
        address = canonicalize_bootstrap_address(AUTO)
    except (ConnectionError, ValueError):
        return None
    return None if address is None or _unreachable(address) else str(address)


def _init(package: ModuleType, address: str | None, cores: int | None) -> None:
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR", "namespace": "autocomp"}
    if address is None:
        package.init(address="local", num_cpus=cores or threads.cores(), include_dashboard=False, **quiet)
        return
    reason = _unreachable(address)
    if reason is not None:
        raise RetryableError(
            f"--cluster {address}: nothing answers there ({reason}); check that `ray status` works on that machine and "
            "that its port is open, or use --cluster auto"
        )
    try:
        package.init(address=address, **quiet)
    except ConnectionError as error:
        raise RetryableError(f"--cluster {address}: {_line(error)}") from None
    except (RuntimeError, ValueError) as error:  # what Ray raises for versions, and for a client that is not installed
        raise ConfigError(
            f"--cluster {address}: {_line(error)}; the same versions of Ray and Python are needed everywhere"
        ) from None


def _unreachable(address: str) -> str | None:
    """Why no connection can be opened; Ray itself would wait for minutes."""
    host, colon, port = address.removeprefix(_CLIENT).rpartition(":")
    if not colon or not port.isdigit():
        raise ConfigError(f"--cluster {address}: write auto, HOST:PORT (6379 is Ray's own) or ray://HOST:10001")
    try:
        with socket.create_connection((host.strip("[]"), int(port)), timeout=_PROBE_S):
            return None
    except OSError as error:
        return error.strerror or str(error)


def _shown(resources: Mapping[str, float]) -> str:
    """Without Ray's own entries a node."""
    plain = {k: v for k, v in resources.items() if not k.startswith(("node:", "memory", "object_store"))}
    return ", ".join(f"{name}={amount:g}" for name, amount in sorted(plain.items())) or "nothing"


def _line(error: Exception) -> str:
    return " ".join(str(error).split())
