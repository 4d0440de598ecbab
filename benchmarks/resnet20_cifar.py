"""ResNet-20 on CIFAR-10 (JPEG images): the front at 136, 102, 85 and 68 KB, beside uniform quantization.

    python benchmarks/resnet20_cifar.py --data FOLDER --weights FILE [--seeds 0 1 2] [--budgets 136KB 102KB ...]

FOLDER holds train/<class>/ and test/<class>/ images (search: first half of each test class, test: second half;
calibration images are drawn from train/ by the seed). Default for FOLDER: the environment variable
AUTOCOMP_BENCH_DATA.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from pathlib import Path
from typing import Any

from common import autocomp, save

BUDGETS = ("136kB", "102kB", "85kB", "68kB")


def row_of(summary: dict[str, Any], seconds: float) -> dict[str, Any]:
    """The figures of one run."""
    best, float32 = summary["best"], summary["float32"]
    if best is None:
        return {"best": None, "wall_seconds": seconds}
    return {
        "file_bytes": best["file_bytes"],
        "score_search": best["score_search"],
        "score_test": best["score_test"],
        "score_test_ci95": best["score_test_ci95"],
        "drop_test_points": 100 * (float32["score_test"] - best["score_test"]),
        "kl_search": best["kl_search"],
        "float32_score_test": float32["score_test"],
        "latency_ms": best["latency_ms"],
        "float32_latency_ms": float32["latency_ms"],
        "techniques": best["techniques"],
        "evaluations": summary["evaluations"],
        "failures": summary["failures"],
        "seconds": summary["seconds"],
        "wall_seconds": seconds,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", default=os.environ.get("AUTOCOMP_BENCH_DATA"), required=False)
    parser.add_argument("--weights", required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--budgets", nargs="+", default=list(BUDGETS))
    parser.add_argument("--preset", default="default")
    parser.add_argument("--trials", default=None)
    parser.add_argument("--work", type=Path, default=None)
    parser.add_argument("--name", default="resnet20_cifar")
    arguments = parser.parse_args()
    if not arguments.data:
        raise SystemExit("give --data FOLDER or set AUTOCOMP_BENCH_DATA")
    work = arguments.work or Path(tempfile.mkdtemp())
    rows: dict[str, Any] = {}
    for seed in arguments.seeds:
        for budget in arguments.budgets:
            extra = ["--trials", arguments.trials] if arguments.trials else []
            # one folder a seed: the survey and what was tried serve every budget
            summary, seconds, _ = autocomp(
                "search", "resnet20", "--weights", arguments.weights, "--data", f"imagefolder:{arguments.data}",
                "--budget", budget, "--preset", arguments.preset, "--seed", str(seed),
                "--out", str(work / f"seed{seed}"), *extra,
            )  # fmt: skip
            rows[f"{budget} seed {seed}"] = row_of(summary, seconds)
            print(budget, seed, rows[f"{budget} seed {seed}"], flush=True)
            rows[f"baselines seed {seed}"] = {
                k: {f: v[f] for f in ("file_bytes", "score_search", "kl_search")}
                for k, v in summary["baselines"].items()
            }
            save(arguments.name, {"rows": rows})


if __name__ == "__main__":
    main()
