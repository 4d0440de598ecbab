"""The tiny workload and the command line of the end-to-end tests."""

from __future__ import annotations

from tests.e2e.conftest import autocomp, tiny

__all__ = ["autocomp", "tiny"]
