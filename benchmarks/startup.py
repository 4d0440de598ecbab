"""Start-up: ``import autocomp`` and ``autocomp --help``, median of ten processes each.

python benchmarks/startup.py
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import time

from common import save


def median_seconds(command: list[str], runs: int = 10) -> float:
    """Median wall seconds of a process."""
    times = []
    for _ in range(runs + 1):
        begin = time.perf_counter()
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        times.append(time.perf_counter() - begin)
    return statistics.median(times[1:])


def main() -> None:
    figures = {
        "python": median_seconds([sys.executable, "-c", "pass"]),
        "import autocomp": median_seconds([sys.executable, "-c", "import autocomp"]),
        "autocomp --help": median_seconds([sys.executable, "-m", "autocomp", "--help"]),
    }
    for name, seconds in figures.items():
        print(f"{name}: {seconds:.3f} s")
    print(save("startup", {"median_seconds": figures}))


if __name__ == "__main__":
    main()
