"""Predicted against written file bytes for every technique.

    python benchmarks/predicted_bytes.py [MODEL --weights FILE --data SPEC] [--spaces ...] [--candidates 20]

For each search space: the survey on few images (sizes do not depend on how many), then random candidates, each written
to disk before any finishing. "storage" candidates change how weights are stored: their prediction is a sum of coded
tensors. "structure" candidates also lose channels or are factorised: the planner's figure for them is an estimate from
the shares of weights that stay.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from common import save

from autocomp.core import shipped
from autocomp.core.progress import Silent
from autocomp.core.run_folder import RunFolder
from autocomp.core.settings import Settings
from autocomp.core.space import unit_and_axis
from autocomp.core.steps import STRUCTURE_AXES
from autocomp.search.session import open_session
from autocomp.stages.surveying import survey_session


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", nargs="?", default="resnet18")
    parser.add_argument("--weights", type=Path, default=None)
    parser.add_argument("--data", default=None)
    parser.add_argument("--normalize", default="imagenet")
    parser.add_argument("--spaces", nargs="+", default=shipped.names("search_spaces"))
    parser.add_argument("--candidates", type=int, default=20)
    arguments = parser.parse_args()
    figures: dict[str, Any] = {"model": arguments.model}
    for space in arguments.spaces:
        out = Path(tempfile.mkdtemp())
        settings = Settings(
            model=arguments.model,
            weights=arguments.weights,
            data=arguments.data,
            normalize=arguments.normalize,
            space=space,
            preset="quick",
            out=out,
        )
        begin = time.perf_counter()
        evaluator = survey_session(open_session(settings, RunFolder(out)), Silent())
        seconds = time.perf_counter() - begin
        rng, counts = np.random.default_rng(0), evaluator.session.space.parameters()
        errors: dict[str, list[float]] = {"storage": [], "structure": []}
        for number in range(arguments.candidates):
            params = {name: int(rng.integers(count)) for name, count in counts.items()}
            if number % 2:  # every other one leaves the structure alone
                params = {n: 0 if unit_and_axis(n)[1] in STRUCTURE_AXES else v for n, v in params.items()}
            candidate = evaluator.session.space.decode(params)
            predicted = evaluator.survey.prices.file_bytes(candidate)
            written = evaluator.write(evaluator.realise(candidate), out / "candidate.autocomp")
            kind = "structure" if len(candidate.structure()) else "storage"
            errors[kind].append(abs(written - predicted) / written)
        figures[space] = {
            kind: {"candidates": len(found), "largest": max(found), "median": float(np.median(found))}
            for kind, found in errors.items()
            if found
        } | {"survey_seconds": seconds}
        print(space, figures[space], flush=True)
        save("predicted_bytes", figures)


if __name__ == "__main__":
    main()
