"""ResNet-20 on CIFAR-10 (JPEG images): the front from 136 to 40 KB.

    python benchmarks/resnet20_cifar.py --data FOLDER --weights FILE [--seeds 0 1 2] [--budgets 136KB 102KB ...]

    python benchmarks/resnet20_cifar.py --planned ...      without the search: one plan a budget, finished and scored

FOLDER holds train/<class>/ and test/<class>/ images (search: first half of each test class, test: second half;
calibration images are drawn from train/ by the seed). Default for FOLDER: the environment variable
AUTOCOMP_BENCH_DATA.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from common import autocomp, save

BUDGETS = ("102kB", "68kB", "50kB", "40kB")


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


def planned(arguments: argparse.Namespace, seed: int, work: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """survey → plan → steps for the finished network → finish → file, for each budget.

    Nothing is chosen by a score, so both halves of the test images count: 10,000 in all.
    """
    from autocomp.config import parse_size
    from autocomp.core.progress import Silent
    from autocomp.core.run_folder import RunFolder
    from autocomp.core.settings import Settings
    from autocomp.planner.plan import solve
    from autocomp.planner.spacing import respaced
    from autocomp.search.finishing import fitted, starting_point
    from autocomp.stages.opening import open_run
    from autocomp.stages.surveying import survey_session

    settings = Settings(
        model="resnet20",
        weights=Path(arguments.weights),
        data=f"imagefolder:{arguments.data}",
        preset=arguments.preset,
        space=arguments.space,
        seed=seed,
        out=work / f"seed{seed}",
    )
    run = RunFolder(settings.out).open(settings)
    evaluator = survey_session(open_run(settings, run, None, Silent()), Silent())
    references = (evaluator.reference, evaluator.test_reference)
    metric = evaluator.session.workload.metric
    float32 = [metric.compute(r.outputs, r.targets, r.outputs) for r in references]
    for budget in arguments.budgets:
        begin, begin_cpu = time.perf_counter(), time.process_time()
        size = parse_size(budget)
        start = solve(evaluator.survey.prices, size, execution="float32").candidate
        candidate = respaced(evaluator.survey.prices, start, size)
        assert candidate is not None
        path = work / f"seed{seed}-{budget}.autocomp"
        compressed, file_bytes = fitted(evaluator, starting_point(evaluator, candidate), path, size)
        seconds, cpu = time.perf_counter() - begin, time.process_time() - begin_cpu
        found = (evaluator.quality(compressed), evaluator.test_quality(compressed))
        drops = [100 * (f - q.score) for f, q in zip(float32, found, strict=True)]
        yield (
            budget,
            {
                "file_bytes": file_bytes,
                "steps": {u: c.label() for u, c in candidate.items()},
                "float32_score": sum(float32) / 2,
                "score": (found[0].score + found[1].score) / 2,
                "drop_points": sum(drops) / 2,
                "drop_points_halves": drops,
                "kl": (found[0].loss + found[1].loss) / 2,
                "seconds_after_survey": seconds,
                "cpu_seconds_after_survey": cpu,
            },
        )
    run.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", default=os.environ.get("AUTOCOMP_BENCH_DATA"), required=False)
    parser.add_argument("--weights", required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--budgets", nargs="+", default=list(BUDGETS))
    parser.add_argument("--preset", default="default")
    parser.add_argument("--space", default="steps", help="bits and step sizes only, by default")
    parser.add_argument("--planned", action="store_true", help="one plan a budget, no search")
    parser.add_argument("--trials", default=None)
    parser.add_argument("--work", type=Path, default=None)
    parser.add_argument("--name", default="resnet20_cifar")
    arguments = parser.parse_args()
    if not arguments.data:
        raise SystemExit("give --data FOLDER or set AUTOCOMP_BENCH_DATA")
    work = arguments.work or Path(tempfile.mkdtemp())
    rows: dict[str, Any] = {}
    for seed in arguments.seeds if arguments.planned else ():
        for budget, row in planned(arguments, seed, work):
            rows[f"{budget} seed {seed}"] = row
            print(budget, seed, row, flush=True)
            save(arguments.name, {"rows": rows})
    for seed in () if arguments.planned else arguments.seeds:
        for budget in arguments.budgets:
            extra = ["--trials", arguments.trials] if arguments.trials else []
            # one folder a seed: the survey and what was tried serve every budget
            summary, seconds, _ = autocomp(
                "search", "resnet20", "--weights", arguments.weights, "--data", f"imagefolder:{arguments.data}",
                "--budget", budget, "--preset", arguments.preset, "--space", arguments.space, "--seed", str(seed),
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
