"""A Ray cluster for the tests of this folder: slow to start, so there is one."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from autocomp.cluster.connection import Cluster, connected


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    pytest.importorskip("ray", reason="Ray is not installed: pip install 'autocomp[ray]'")
    with connected("auto", cores=2) as found:
        yield found
