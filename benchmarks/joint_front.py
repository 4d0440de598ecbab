"""The joint space against step sizes alone at equal evaluations: hypervolume of the fronts.

    python benchmarks/joint_front.py [--spaces joint steps] [--trials 48] [--seeds 0] [-- MODEL and its options]

Without options: the built-in workload at --budget 4MB. Both searches of a pair run on the same machine, one after the
other. Hypervolume in (log10 bytes, log10 loss) and (log10 latency, log10 loss), where latency is the ratio to float32
measured in turn (milliseconds of two runs differ by what else the machine does) and loss the KL divergence to the
float32 network on the search split: the area that the front dominates of the box from the best of the union front to
the worst (float32's bytes and latency; KL 1 nat), 1 at most.
"""

from __future__ import annotations

import argparse
import math
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from common import autocomp, save

WORST_LOSS, LEAST_LOSS = 1.0, 1e-5


def hypervolume(points: Sequence[tuple[float, float]], best: tuple[float, float], worst: tuple[float, float]) -> float:
    """Share of the box between ``best`` and ``worst`` that ``points`` dominate (both minimised)."""
    size = [(x - best[0]) / (worst[0] - best[0]) for x, _ in points]
    loss = [(y - best[1]) / (worst[1] - best[1]) for _, y in points]
    area, floor = 0.0, 1.0
    for x, y in sorted((max(0.0, x), max(0.0, y)) for x, y in zip(size, loss, strict=True) if x < 1 and y < 1):
        if y < floor:
            area += (1.0 - x) * (floor - y)
            floor = y
    return area


def points(summary: dict[str, Any], axis: str) -> list[tuple[float, float]]:
    """(log10 cost, log10 loss) of every evaluated row that the front holds."""
    return [
        (math.log10(row[axis]), math.log10(max(LEAST_LOSS, row["kl_search"])))
        for row in summary["pareto"]
        if row[axis] is not None and row["kl_search"] < WORST_LOSS
    ]


def float32_cost(summary: dict[str, Any], axis: str) -> float:
    """The axis's value of the uncompressed network."""
    return 1.0 if axis == "latency_ratio" else float(summary["float32"][axis])


def compared(summaries: dict[str, dict[str, Any]]) -> dict[str, dict[str, float]]:
    """Hypervolume of each space's front on both planes."""
    out: dict[str, dict[str, float]] = {name: {} for name in summaries}
    for axis in ("file_bytes", "latency_ratio"):
        fronts = {name: points(s, axis) for name, s in summaries.items()}
        union = [p for front in fronts.values() for p in front]
        if not union:
            continue
        float32 = max(math.log10(float32_cost(s, axis)) for s in summaries.values())
        worst = (max(float32, *(x for x, _ in union)), math.log10(WORST_LOSS))
        best = (min(x for x, _ in union), math.log10(LEAST_LOSS))
        for name, front in fronts.items():
            out[name][axis] = hypervolume(front, best, worst)
    return out


def main() -> None:
    own = sys.argv[1 : sys.argv.index("--")] if "--" in sys.argv else sys.argv[1:]
    rest = sys.argv[sys.argv.index("--") + 1 :] if "--" in sys.argv else ["--budget", "4MB"]
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--spaces", nargs="+", default=["joint", "steps"])
    parser.add_argument("--trials", type=int, default=48)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--work", type=Path, default=None)
    parser.add_argument("--name", default="joint_front")
    arguments = parser.parse_args(own)
    work = arguments.work or Path(tempfile.mkdtemp())
    figures: dict[str, Any] = {"command": rest, "trials": arguments.trials}
    for seed in arguments.seeds:
        summaries: dict[str, dict[str, Any]] = {}
        for space in arguments.spaces:
            summary, seconds, _ = autocomp(
                "search", *rest, "--space", space, "--trials", str(arguments.trials), "--seed", str(seed),
                "--out", str(work / f"{space}-{seed}"),
            )  # fmt: skip
            summaries[space] = summary
            changed = [r for r in summary["pareto"] if {"prune_channels", "factorise"} & set(r["techniques"])]
            figures[f"{space} seed {seed}"] = {
                "wall_seconds": seconds,
                "seconds": summary["seconds"],
                "evaluations": summary["evaluations"],
                "failures": summary["failures"],
                "front": len(summary["pareto"]),
                "front_with_changed_structure": len(changed),
                "best": summary["best"] and {k: summary["best"][k] for k in (
                    "file_bytes", "score_search", "score_test", "kl_search", "latency_ms", "techniques")},
                "rows": [
                    [r[f] for f in ("file_bytes", "latency_ms", "latency_ratio", "kl_search", "techniques")]
                    for r in summary["pareto"]
                ],
            }  # fmt: skip
        figures[f"hypervolume seed {seed}"] = compared(summaries)
        print(seed, figures[f"hypervolume seed {seed}"], flush=True)
        save(arguments.name, figures)


if __name__ == "__main__":
    main()
