"""The joint search space of a whole network, a session on it, and candidates drawn from it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from autocomp.core.candidate import Candidate
from autocomp.core.network import Network
from autocomp.core.run_folder import RunFolder
from autocomp.core.settings import Settings
from autocomp.core.space import SearchSpace
from autocomp.core.steps import STRUCTURE_AXES, Choice
from autocomp.core.workload import Workload
from autocomp.graph.capture import first_tensor
from autocomp.graph.coupling import coupled_groups
from autocomp.graph.trace import build_network
from autocomp.runtimes._profiles import load_target
from autocomp.search.session import Session
from autocomp.survey.space_file import space_from_toml
from autocomp.workloads.metrics import mse
from autocomp.workloads.splits import TensorSplit

JOINT: dict[str, Any] = {
    "prune": {"multiple": 1, "ratio": [0.25, 0.5], "criterion": ["l2", "activation"]},
    "rank": {"method": ["svd", "whitened_svd", "tucker2", "spatial"], "rank": [0.5, 0.25]},
    "sparsity": {"ratio": [0.5], "pattern": ["2:4"]},
    "weights": {"bits": [16, 8, 3], "steps": [0.25, 1.0]},
    "share": [
        {"kind": "cluster_weights", "entries": 8},
        {"kind": "ternarize_weights"},
        {"kind": "binarize_weights"},
        {"kind": "power_of_two", "bits": 4},
        {"kind": "vector_quantize", "dim": 2, "entries": 16},
        {"kind": "hash_weights", "buckets": 0.125},
        {"kind": "dct_kernels", "step": 0.5},
    ],
    "activations": {"precisions": ["float32", "int8"], "calibrator": "minmax"},
}
"""Every technique for every layer, "cp" aside: it takes too long on large ones."""

CP_WEIGHTS = 2_000
"""Layers of at most so many weights are offered "cp"."""


def value_range(outputs: Tensor) -> float:
    """Largest less smallest element, at least 1e-6."""
    return max(float(outputs.max() - outputs.min()), 1e-6)


def spread(network: Network) -> dict[str, Any]:
    """Tables of a joint space: few choices a layer, so that surveys are short; all techniques over the layers."""
    overrides = []
    for i, (name, layer) in enumerate(network.layers.items()):
        methods = [*JOINT["rank"]["method"], *(["cp"] if np.prod(layer.weight_shape) <= CP_WEIGHTS else [])]
        shares = [JOINT["share"][(2 * i + j) % len(JOINT["share"])] for j in (0, 1)]
        overrides.append(
            {
                "match": name,
                "prune": {"ratio": [0.25, 0.5], "criterion": ["l2", "activation"][i % 2]},
                "rank": {"method": [methods[i % len(methods)], "whitened_svd"], "rank": 0.4},
                "sparsity": {"ratio": 0.5} if i % 2 else {"pattern": "2:4"},
                "share": shares,
            }
        )
    weights = {"bits": [8], "steps": [0.5]}
    return {"prune": {"multiple": 1}, "weights": weights, "activations": JOINT["activations"], "override": overrides}


def joint_session(
    model: nn.Module,
    inputs: Tensor,
    folder: Path,
    *,
    tables: Mapping[str, Any] | None = None,
    classes: int | None = None,
    seed: int = 0,
) -> Session:
    """A search session of ``model`` on ``inputs``, as the command line would open one.

    Args:
        model: in evaluation mode.
        inputs: [n, ...], calibration and search split alike.
        folder: of the run.
        tables: of the search space; None: those of :func:`spread`.
        classes: number of classes, None where the output is no class score.
        seed: of everything random.
    """
    with torch.inference_mode():
        outputs = first_tensor(model(inputs))
    if float((outputs[0] - outputs[1]).abs().max()) < 1e-3 * value_range(outputs[:2]):
        raise ValueError("the network gives the same outputs for different inputs: nothing could be told apart")
    split = TensorSplit(inputs=inputs, targets=outputs.argmax(-1))
    workload = Workload(
        name="coverage",
        model=model,
        model_spec="<object>",
        calibration=split,
        search=split,
        test=split,
        metric=mse(),
        classes=classes,
        fingerprint="coverage",
    )
    network = build_network(model, workload.example())
    target = load_target("cpu-onnxruntime")
    coupling = cache(partial(coupled_groups, network))
    data = spread(network) if tables is None else tables
    space = space_from_toml(data, network, target.profile, coupling, file="joint.toml", name="joint")
    run = RunFolder(folder)
    run.cache.mkdir(parents=True, exist_ok=True)
    return Session(
        settings=Settings(model="<object>", data="<object>", seed=seed, out=folder),
        run=run,
        workload=workload,
        network=network,
        target=target,
        space=space,
        coupling=coupling,
        calibration=[inputs],
    )


def random_candidates(space: SearchSpace, count: int, seed: int = 0) -> list[Candidate]:
    """Uniform option indices, decoded as a sampler's are.

    Three candidates share a structure, since exporting one takes seconds; the second and third may run int8.
    """
    rng = np.random.default_rng(seed)
    sizes = space.parameters()
    structural = tuple(f":{axis}" for axis in STRUCTURE_AXES)
    found: list[Candidate] = []
    point: dict[str, int] = {}
    for i in range(count):
        fresh = {name: int(rng.integers(n)) for name, n in sizes.items()}
        if i % 3:
            fresh.update({name: point[name] for name in point if name.endswith(structural)})
        else:
            fresh.update({name: 0 for name in fresh if name.endswith(":activations")})
        point = fresh
        found.append(space.decode(point))
    return found


def raw_candidates(space: SearchSpace, count: int, seed: int = 0) -> Iterator[Candidate]:
    """Options drawn for each unit and axis by themselves, legal together or not.

    How often an option other than the first is taken is drawn anew for each candidate: mild and wild ones occur.
    """
    rng = np.random.default_rng(seed)
    for _ in range(count):
        share = float(rng.random())
        choices = {}
        for unit in space.units.values():
            steps = [o[int(rng.integers(len(o)))] if rng.random() < share else o[0] for o in unit.axes.values()]
            choices[unit.name] = Choice(tuple(s for s in steps if s is not None))
        yield Candidate(choices)
