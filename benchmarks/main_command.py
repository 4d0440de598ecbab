"""The main job: ``autocomp search --budget 4MB``, first time (training included) and after.

python benchmarks/main_command.py [--work FOLDER]
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from common import autocomp, save


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, default=None, help="folder for runs (default: a temporary one)")
    work = parser.parse_args().work or Path(tempfile.mkdtemp())
    env = {"AUTOCOMP_CACHE": str(work / "cache")}
    figures = {}
    for name in ("first", "second"):
        summary, seconds, peak = autocomp("search", "--budget", "4MB", "--out", str(work / name), env=env)
        best, float32 = summary["best"], summary["float32"]
        between = [r for r in summary["pareto"] if 1e6 <= r["file_bytes"] <= 12e6]
        figures[name] = {
            "wall_seconds": seconds,
            "peak_bytes": peak,
            "seconds": summary["seconds"],
            "best_file_bytes": best["file_bytes"],
            "best_score_test": best["score_test"],
            "float32_score_test": float32["score_test"],
            "front_rows_1MB_12MB": len(between),
            "best_latency_ms": best["latency_ms"],
            "float32_latency_ms": float32["latency_ms"],
            "evaluations": summary["evaluations"],
            "engine_builds": summary["engine_builds"],
            "failures": summary["failures"],
            "notes": best["notes"],
        }
        print(name, figures[name], flush=True)
    print(save("main_command", figures))


if __name__ == "__main__":
    main()
