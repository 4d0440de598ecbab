"""A trained tiny network, its data as npz, and the command line as a user runs it."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from tiny_workload import HERE, Tiny


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    import torch
    from safetensors.torch import save_file
    from sklearn.datasets import load_digits
    from tiny_net import TinyNet
    from torch.nn import functional as F

    folder = tmp_path_factory.mktemp("tiny")
    digits = load_digits()
    images = (digits.images[:, None] / 8.0 - 1.0).astype(np.float32)
    labels = digits.target.astype(np.int64)
    order = np.random.default_rng(0).permutation(len(labels))
    train, test = order[:1200], order[1200:]
    np.savez(
        folder / "digits.npz",
        x_train=images[train],
        y_train=labels[train],
        x_test=images[test],
        y_test=labels[test],
    )
    torch.manual_seed(0)
    net = TinyNet()
    optimizer = torch.optim.AdamW(net.parameters(), lr=5e-3)
    x, y = torch.from_numpy(images[train]), torch.from_numpy(labels[train])
    for _ in range(12):
        for batch in torch.randperm(len(x)).split(64):
            optimizer.zero_grad()
            F.cross_entropy(net(x[batch]), y[batch]).backward()
            optimizer.step()
    save_file(net.state_dict(), folder / "tiny.safetensors")
    return Tiny(f"{HERE / 'tiny_net.py'}:model", folder / "tiny.safetensors", f"npz:{folder / 'digits.npz'}")


@pytest.fixture(scope="session")
def autocomp() -> Callable[..., subprocess.CompletedProcess[str]]:
    """``autocomp(*arguments)`` in a process of its own, as a user runs it."""

    def run(*arguments: object, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "autocomp", *map(str, arguments)],
            capture_output=True,
            text=True,
            check=False,
            cwd=cwd,
            env={**os.environ, "COLUMNS": "200"},
        )

    return run
