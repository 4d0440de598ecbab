"""Uniform settings of a finished run's network, through the same coder: what a search has to beat.

    python benchmarks/uniform.py RUN

Nominal bits (maximum as scale, rounding to nearest) with and without re-estimated statistics, and one step size for
every layer with compensated rounding, each written to a real file and scored on the search and the test split.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from common import save

from autocomp.core.candidate import Candidate
from autocomp.core.compressed import CompressedModel
from autocomp.core.run_folder import RunFolder
from autocomp.core.steps import Choice
from autocomp.search.reopening import reopened
from autocomp.stages.opening import settings_of
from autocomp.transforms.quantize import QuantizeWeights
from autocomp.transforms.stitch import stitch


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path)
    run = RunFolder.existing(parser.parse_args().run)
    evaluator = reopened(settings_of(run), run)
    session = evaluator.session
    bits = [QuantizeWeights(bits=b, scale="max", rounding="nearest") for b in (8, 5, 4, 3, 2)]
    steps = sorted(
        {
            s
            for u in session.space.units.values()
            for s in u.axes["weights"]
            if isinstance(s, QuantizeWeights) and s.step
        },
        key=lambda s: s.step or 0.0,
    )
    rows = {}
    for config in (*bits, *steps):
        candidate = Candidate({unit: Choice((config,)) for unit in session.space.units})
        forms: dict[str, CompressedModel] = {"restored": evaluator.realise(candidate)}
        if config.bits:
            forms["plain"] = stitch(session.network, candidate, evaluator.base.source.lookup)
        for form, compressed in forms.items():
            with tempfile.TemporaryDirectory() as folder:
                size = evaluator.write(compressed, Path(folder) / "x.autocomp")
            found = {
                "file_bytes": size,
                "score_search": evaluator.quality(compressed).score,
                "score_test": evaluator.test_quality(compressed).score,
            }
            rows[f"{config.label()} {form}"] = found
            print(config.label(), form, found, flush=True)
    print(save(f"uniform_{session.workload.name}", {"rows": rows}))


if __name__ == "__main__":
    main()
