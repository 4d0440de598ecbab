"""Two promises, measured on a finished run: predicted bytes equal written bytes, simulation equals engine.

    python benchmarks/agreement.py RUN [--candidates 100]

100 random candidates of the run's space are built and written; the size that the price table predicts is
compared with ``os.stat``. The best network's exported engine and its PyTorch simulation are compared image by
image on the test split; where the top-1 differs, the margin between the two classes is shown.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import numpy as np
import torch
from common import save

from autocomp.core.run_folder import RunFolder
from autocomp.evaluators.quality import run_split
from autocomp.search.evaluator import Evaluator
from autocomp.search.reopening import reopened
from autocomp.stages.opening import settings_of, summary_of
from autocomp.stages.verifying import read_row


def predicted_bytes(evaluator: Evaluator, count: int) -> dict[str, object]:
    """Relative errors of the predicted file size on random candidates."""
    rng = np.random.default_rng(0)
    space, errors = evaluator.session.space, []
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(count):
            candidate = space.decode({k: int(rng.integers(n)) for k, n in space.parameters().items()})
            size = evaluator.write(evaluator.realise(candidate), Path(folder) / "x.autocomp")
            errors.append(evaluator.survey.prices.file_bytes(candidate) / size - 1.0)
    return {"candidates": count, "largest_relative_error": max(map(abs, errors)), "errors": errors}


def engine_agreement(evaluator: Evaluator, row: object) -> dict[str, object]:
    """Top-1 agreement of simulation and engine on the test split."""
    session = evaluator.session
    compressed = read_row(row)  # type: ignore[arg-type]
    simulation = run_split(evaluator.simulated(compressed), session.workload.test).outputs
    engine = session.target.engine(evaluator.onnx(compressed), session.workload.example(1).numpy())
    outputs = torch.cat(
        [torch.from_numpy(np.array(engine.run(x.numpy()))) for x, _ in session.workload.test.batches(64)]
    )
    engine.close()
    differs = (simulation.argmax(1) != outputs.argmax(1)).nonzero().flatten().tolist()
    margins = []
    for i in differs:
        a, b = int(simulation[i].argmax()), int(outputs[i].argmax())
        margins.append(
            {
                "image": i,
                "margin_simulation": float(simulation[i, a] - simulation[i, b]),
                "margin_engine": float(outputs[i, b] - outputs[i, a]),
            }
        )
    return {
        "images": len(simulation),
        "same_top1": 1.0 - len(differs) / len(simulation),
        "largest_logit_difference": float((simulation - outputs).abs().max()),
        "differs": margins,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("--candidates", type=int, default=100)
    arguments = parser.parse_args()
    run = RunFolder.existing(arguments.run)
    summary = summary_of(run)
    evaluator = reopened(settings_of(run), run)
    size = predicted_bytes(evaluator, arguments.candidates)
    print("predicted against written bytes: largest relative error", size["largest_relative_error"])
    rows = {"best": summary.best, **{k: summary.baselines[k] for k in ("int8",)}}
    agreement = {k: engine_agreement(evaluator, r) for k, r in rows.items() if r is not None and r.file}
    for name, figures in agreement.items():
        print(name, "same top-1:", figures["same_top1"], "differs:", figures["differs"])
    print(save("agreement", {"predicted_bytes": size, "engine": agreement}))


if __name__ == "__main__":
    main()
