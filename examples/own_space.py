"""Your own search space: the choices of own_space.toml and no others, searched by the solver alone.

python examples/own_space.py
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from own_model_and_data import digits, train

import autocomp
from autocomp.report.format import choices


def main() -> None:
    data = digits()
    result = autocomp.search(
        train(data[0]),
        data,
        budget="60kB",
        max_drop="2%",  # of accuracy, absolute, on the search split
        space=str(Path(__file__).with_name("own_space.toml")),
        sampler="plan",  # solves for many budgets at once; no random search
        preset="quick",
        trials=8,
        out="runs/example-own-space",
    )
    used = Counter(label for label, _ in choices(result.best.row).values())
    print(f"best: {result.best.file_bytes:,} bytes; choices by number of layers: {dict(used)}")
    for row in result.summary.pareto:
        print(f"{row.file_bytes:>9,} bytes  loss {row.kl_search:.4f}  {'' if row.feasible else 'breaks a constraint'}")


if __name__ == "__main__":
    main()
