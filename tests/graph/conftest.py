"""Networks are traced once for all tests of the folder."""

from __future__ import annotations

import functools
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from autocomp.core.network import Network
from autocomp.graph.trace import build_network
from autocomp.testing.networks import example

Traced = tuple[nn.Module, Network, Tensor]


@functools.cache
def _traced(name: str) -> Traced:
    model, inputs = example(name, samples=5)
    return model, build_network(model, inputs[:1]), inputs


@pytest.fixture
def traced() -> Callable[[str], Traced]:
    """Name in ``autocomp.testing.networks`` → (model, network, inputs [5, ...])."""
    torch.manual_seed(0)
    return _traced
