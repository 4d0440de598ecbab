"""For all tests: one thread a process (several processes run at once), no deadlines on loaded machines."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator

import pytest
from hypothesis import settings

from autocomp.cluster.connection import Cluster, connected

os.environ.setdefault("OMP_NUM_THREADS", "1")
settings.register_profile("autocomp", deadline=None)
settings.load_profile("autocomp")

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # a shell that starts jobs in the background lets them, and all their children, ignore Ctrl-C
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    """A Ray cluster of one node with two CPUs: slow to start, so there is one."""
    pytest.importorskip("ray", reason="Ray is not installed: pip install 'autocomp[ray]'")
    os.environ["RAY_ADDRESS"] = "local"  # never one that happens to run on this machine
    with connected("auto", cores=2) as found:
        yield found
