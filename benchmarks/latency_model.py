"""How well latency is predicted: a table fitted on 60 engines of ResNet-20, judged on 100 others.

    python benchmarks/latency_model.py make    --work FOLDER    write the engines' ONNX models (20 minutes)
    python benchmarks/latency_model.py measure --work FOLDER    time them, interleaved with float32 (10 minutes)
    python benchmarks/latency_model.py fit     --work FOLDER    fit, predict, write results/latency_model.json

Engines are random joint candidates of ResNet-20 at 3 x 32 x 32 (untrained: latency depends on no weight): channels
removed, layers factorised, int8 or float32 for each layer by itself. The 100 held-out ones are drawn by one seed;
the 60 that are built for the fit are chosen among 2,000 drawn by another one (:func:`designed`).
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from common import save

if TYPE_CHECKING:
    from autocomp.core.candidate import Candidate
    from autocomp.core.network import Network
    from autocomp.core.space import SearchSpace
    from autocomp.search.session import Session

TRAIN, HELD_OUT, POOL = 60, 100, 2000
REFERENCE, PAIRS, WARM_UP = "train-000", 40, 5
SPACE = {
    "prune": {"multiple": 4, "ratio": [0.25, 0.5, 0.75], "criterion": "l2"},
    "rank": {"method": ["svd", "tucker2"], "rank": [0.5, 0.25]},
    "weights": {"bits": [8]},
    "activations": {"precisions": ["float32", "int8"], "calibrator": "minmax"},
}


def opened(folder: Path) -> Session:
    """A session on ResNet-20 with random weights and random images."""
    import torch

    from autocomp.testing.families import settle
    from autocomp.testing.joint import joint_session
    from autocomp.workloads.models.cifar_resnet import resnet20

    torch.manual_seed(0)
    inputs, model = torch.randn(4, 3, 32, 32), resnet20(10)
    with torch.no_grad():
        settle(model, torch.randn(16, 3, 32, 32))
    return joint_session(model.eval(), inputs, folder, tables=SPACE, classes=10)


def executed(candidate: Candidate) -> tuple[str, ...]:
    """What decides the latency: every choice but how weights are stored."""
    steps = ((u, choice.get(axis)) for u, choice in candidate.items() for axis in ("prune", "rank", "activations"))
    return tuple(sorted(f"{unit} {step}" for unit, step in steps if step is not None))


def drawn(space: SearchSpace, count: int, seed: int, known: Iterable[Candidate] = ()) -> list[Candidate]:
    """Legal random candidates; no two execute the same, nor the same as one of ``known``."""
    from autocomp.testing.joint import raw_candidates

    rules, seen = space.rules, {executed(c) for c in known}
    assert rules is not None
    found: list[Candidate] = []
    for candidate in raw_candidates(space, 10 * count, seed):
        key = executed(candidate)
        if len(found) < count and rules.reason(candidate) is None and key not in seen:
            seen.add(key)
            found.append(candidate)
    return found


def designed(network: Network, space: SearchSpace, count: int, seed: int) -> list[Candidate]:
    """``count`` candidates of a random pool that together tell most about what the others of the pool cost.

    V-optimal, greedy (Chaloner, Verdinelli 1995): each next one lowers most the mean predictive variance over the pool
    of a linear model with one unknown for each layer shape under each choice. Float32 and int8 throughout come first.
    """
    from autocomp.core.candidate import Candidate
    from autocomp.core.steps import Choice

    int8 = Candidate({u: Choice(tuple(o[1] for a, o in unit.axes.items() if a in ("weights", "activations") and o[1]))
                      for u, unit in space.units.items()})  # fmt: skip
    first = [Candidate({}), int8]
    pool = [*first, *drawn(space, POOL, seed, first)]
    features = _counts(network, pool)
    chosen: list[int] = []
    covariance = np.eye(features.shape[1])
    while len(chosen) < count:
        shared = features @ covariance @ features.T
        gain = (shared**2).sum(axis=0) / (1 + np.diag(shared))
        gain[chosen] = -1
        i = len(chosen) if len(chosen) < len(first) else int(gain.argmax())
        chosen.append(i)
        column = covariance @ features[i]
        covariance -= np.outer(column, column) / (1 + features[i] @ column)
    return [pool[i] for i in chosen]


def _counts(network: Network, pool: Sequence[Candidate]) -> np.ndarray:
    """[candidates, kinds of layer]: how many layers of one shape have one choice."""
    kinds: dict[str, int] = {}
    found = []
    for candidate in pool:
        row: dict[int, float] = {}
        for name, layer in network.layers.items():
            steps = [str(candidate[name].get(axis)) for axis in ("prune", "rank", "activations")]
            kind = kinds.setdefault(f"{layer.weight_shape} {layer.input_shape} {steps}", len(kinds))
            row[kind] = row.get(kind, 0) + 1
        found.append(row)
    return np.array([[row.get(i, 0.0) for i in range(len(kinds))] for row in found])


def make(work: Path, backwards: bool) -> None:
    """Write ``train-NNN.onnx`` and ``held-NNN.onnx``; those that are there are kept (so two processes can share it)."""
    from autocomp.runtimes.export import OnnxExporter
    from autocomp.search.variants import make_variant
    from autocomp.survey.hessians import Hessians
    from autocomp.testing.candidates import int8_candidate

    session = opened(work / "run")
    base = OnnxExporter(session.network)
    hessians = Hessians(session.network, session.calibration[0])
    train = designed(session.network, session.space, TRAIN, seed=7)
    wanted = {f"train-{i:03}": c for i, c in enumerate(train)}  # the first one is float32, the reference
    wanted |= {f"held-{i:03}": c for i, c in enumerate(drawn(session.space, HELD_OUT, seed=1, known=train))}
    for name, candidate in reversed(wanted.items()) if backwards else wanted.items():
        path = work / f"{name}.onnx"
        if path.is_file():
            continue
        variant = make_variant(session, candidate.structure(), hessians)
        asked = {u for u in session.space.units if candidate[u].get("activations") is not None}
        layers = {part for base_layer, parts in variant.parts().items() if base_layer in asked for part in parts}
        network, placement = variant.network, session.target.profile.placement
        compressed = int8_candidate(network, session.calibration[0], placement, only=layers)
        exporter = OnnxExporter(network, like=base)
        path.write_bytes(exporter.export(compressed, placement, layers, batch_size=1))
        print(name, len(network.layers), len(layers), flush=True)


def measure(work: Path, rounds: int) -> None:
    """Add rounds to ``measured.json``: in each, every engine once in random order, in pairs with float32.

    Many short rounds, each with engines loaded anew: what disturbs a measurement (other processes, where buffers lie)
    stays the same for seconds and differs between rounds.
    """
    from autocomp.evaluators._timing import no_garbage_collection, who_first
    from autocomp.runtimes._profiles import load_target

    target = load_target("cpu-onnxruntime")
    example = np.random.default_rng(0).standard_normal((1, 3, 32, 32)).astype(np.float32)
    models = {p.stem: p.read_bytes() for p in sorted(work.glob("*.onnx"))}
    plans = {name: target.runtime.build(model, target.profile, example) for name, model in models.items()}
    path = work / "measured.json"
    found: list[dict[str, Any]] = json.loads(path.read_text()) if path.is_file() else []
    begin = 1 + max((row["round"] for row in found), default=-1)
    for number in range(begin, begin + rounds):
        names = list(plans)
        random.Random(number).shuffle(names)
        for name in names:
            engine, beside = (target.runtime.load(plans[n], target.profile, example) for n in (name, REFERENCE))
            for _ in range(WARM_UP):
                engine.time_once_s(), beside.time_once_s()
            pairs = []
            with no_garbage_collection():
                for first in who_first(PAIRS):
                    a, b = (e.time_once_s() for e in ((engine, beside) if first else (beside, engine)))
                    pairs.append((a, b) if first else (b, a))
            engine.close()
            beside.close()
            samples, reference = ([round(s, 8) for s in column] for column in zip(*pairs, strict=True))
            found.append({"round": number, "engine": name, "samples_s": samples, "reference_s": reference})
        path.write_text(json.dumps(found))
        print("round", number, len(names), "engines", flush=True)


def time_layers(work: Path) -> None:
    """Write ``layers.json``: seconds of each layer inside the engines of the fit, from ONNX Runtime's profile."""
    from autocomp.runtimes._profiles import load_profile
    from autocomp.runtimes.onnxruntime import OnnxRuntime

    profile, runtime = load_profile("cpu-onnxruntime"), OnnxRuntime()
    example = np.random.default_rng(0).standard_normal((1, 3, 32, 32)).astype(np.float32)
    found = {}
    for path in sorted(work.glob("train-*.onnx")):
        plan = runtime.build(path.read_bytes(), profile, example)
        found[path.stem] = runtime.layer_times_s(plan, profile, example)
    (work / "layers.json").write_text(json.dumps(found))


def judged(work: Path, percentile: float) -> dict[str, Any]:
    """Fit and predictions, latencies taken as the median over rounds of the ratio to float32.

    Args:
        work: what :func:`measure` and :func:`time_layers` left.
        percentile: of the samples of one round; 50 is their median, low ones look past other processes.
    """
    from scipy.stats import kendalltau

    from autocomp.profiling.operations import operations
    from autocomp.profiling.table import Sample, fit

    rows, layers_s = json.loads((work / "measured.json").read_text()), json.loads((work / "layers.json").read_text())
    ratios: dict[str, list[float]] = {}
    for row in rows:
        of_round = [float(np.percentile(row[name], percentile)) for name in ("samples_s", "reference_s")]
        ratios.setdefault(row["engine"], []).append(of_round[0] / of_round[1])
    float32_s = float(np.percentile([np.percentile(r["reference_s"], percentile) for r in rows], 10))
    measured = {name: statistics.median(values) for name, values in sorted(ratios.items())}
    halves = np.array([[statistics.median(v[i::2]) for i in (0, 1)] for v in ratios.values()])
    held = [name for name in measured if name.startswith("held")]
    found = {name: operations((work / f"{name}.onnx").read_bytes()) for name in measured}
    truth = np.array([measured[name] * float32_s for name in held])
    figures: dict[str, Any] = {
        "rounds": len(ratios[REFERENCE]),
        "float32_s": float32_s,
        "noise": _errors(halves[:, 0], halves[:, 1]) | {"kendall_tau": float(kendalltau(*halves.T)[0])},
        "measured_over_float32": measured,
    }
    for title, alone in (("engines", False), ("engines and layers", True)):
        samples = [
            Sample(operations=found[n], seconds=measured[n] * float32_s, layers_s=layers_s[n] if alone else {})
            for n in measured
            if n.startswith("train")
        ]
        table = fit(samples)
        predicted = np.array([table.predict(found[name]).seconds for name in held])
        figures[title] = {
            **_errors(predicted, truth),
            "kendall_tau": float(kendalltau(predicted, truth)[0]),
            "cross_validated_error": table.error,
            "terms": len(table.costs_s),
            "predicted_over_float32": dict(zip(held, (predicted / float32_s).tolist(), strict=True)),
        }
    return figures


def _errors(found: np.ndarray, truth: np.ndarray) -> dict[str, float]:
    errors = np.abs(found / truth - 1)
    return {
        "median": float(np.median(errors)),
        "p90": float(np.percentile(errors, 90)),
        "within_5_percent": float((errors < 0.05).mean()),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("stage", choices=["make", "measure", "fit"])
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--backwards", action="store_true", help="make: begin with the last engine")
    parser.add_argument("--rounds", type=int, default=20)
    arguments = parser.parse_args()
    arguments.work.mkdir(parents=True, exist_ok=True)
    if arguments.stage == "make":
        make(arguments.work, arguments.backwards)
    elif arguments.stage == "measure":
        measure(arguments.work, arguments.rounds)
        time_layers(arguments.work)
    else:
        figures = {f"percentile {p}": judged(arguments.work, p) for p in (50, 5)}
        for name, found in figures.items():
            for title in ("noise", "engines", "engines and layers"):
                print(name, title, {k: v for k, v in found[title].items() if isinstance(v, float)})
        print(save("latency_model", figures))


if __name__ == "__main__":
    main()
