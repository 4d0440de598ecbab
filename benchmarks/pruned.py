"""Removed means removed: ResNet-18 with half of every group's channels gone, counted in the exported ONNX and timed.

    python benchmarks/pruned.py [--ratio 0.5] [--batch 1]

Parameters and multiply-accumulates are counted in the ONNX model that ONNX Runtime gets; file bytes are those of the
written file; latency is measured with the unpruned float32 engine in turn (ratio of medians, 95 % interval).
"""

from __future__ import annotations

import argparse
import math
import tempfile
from pathlib import Path
from typing import Any

from common import save


def counted(model: bytes) -> dict[str, int]:
    """Parameters and multiply-accumulates of a serialized ONNX model with a fixed batch size of 1."""
    import onnx

    graph = onnx.shape_inference.infer_shapes(onnx.load_from_string(model)).graph
    weights = {t.name: list(t.dims) for t in graph.initializer}
    shapes = {v.name: [d.dim_value for d in v.type.tensor_type.shape.dim] for v in (*graph.value_info, *graph.output)}
    macs = 0
    for node in graph.node:
        if node.op_type in ("Conv", "Gemm", "MatMul") and node.input[1] in weights:
            weight, output = weights[node.input[1]], shapes[node.output[0]]
            inputs = math.prod(weight[1:]) if node.op_type == "Conv" else math.prod(weight) // output[-1]
            macs += math.prod(output) * inputs
    return {"parameters": sum(math.prod(d) for d in weights.values()), "macs": macs}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--ratio", type=float, default=0.5)
    parser.add_argument("--batch", type=int, default=1)
    arguments = parser.parse_args()
    from autocomp.core.candidate import Candidate
    from autocomp.core.progress import Silent
    from autocomp.core.run_folder import RunFolder
    from autocomp.core.settings import Settings
    from autocomp.core.steps import Choice
    from autocomp.evaluators.statistics import ratio_ci
    from autocomp.search.evaluator import Evaluator
    from autocomp.search.session import open_session
    from autocomp.stages.surveying import survey_session
    from autocomp.transforms.prune import PruneChannels
    from autocomp.transforms.quantize import QuantizeActivations, QuantizeWeights

    work = Path(tempfile.mkdtemp())
    space = work / "space.toml"
    space.write_text(f"[prune]\nratio = [{arguments.ratio}]\n[weights]\nbits = [8]\nrounding = 'nearest'\n"
                     "[activations]\nprecisions = ['float32', 'int8']\n")  # fmt: skip
    session = open_session(Settings(space=str(space), preset="quick", out=work / "run"), RunFolder(work / "run"))
    evaluator: Evaluator = survey_session(session, Silent())
    prune = PruneChannels(ratio=arguments.ratio)
    roots = [u for u, unit in session.space.units.items() if len(unit.axes.get("prune", ())) > 1]
    int8 = (QuantizeWeights(bits=8, rounding="nearest"), QuantizeActivations())
    units = session.space.units
    candidates = {
        "float32": Candidate({}),
        "float32 pruned": Candidate({u: Choice((prune,)) for u in roots}),
        "int8": Candidate({u: Choice(int8) for u in units}),
        "int8 pruned": Candidate({u: Choice((*([prune] if u in roots else []), *int8)) for u in units}),
    }
    figures: dict[str, Any] = {"ratio": arguments.ratio, "batch": arguments.batch}
    for name, candidate in candidates.items():
        done, compressed = evaluator.measure(candidate, work / f"{candidate.id}.autocomp")
        timing = evaluator.latency(compressed, arguments.batch, fresh=True)
        assert timing is not None
        ratio, interval = ratio_ci(timing[0].samples_s, timing[0].reference_s)
        plain = counted(evaluator.onnx(compressed.replace(activations={}), 1))
        figures[name] = {
            **plain,
            "file_bytes": done.file_bytes,
            "latency_ms": timing[0].median_s() * 1e3,
            "latency_over_float32": ratio,
            "latency_over_float32_ci95": interval,
            "kl_search": done.kl,
            "score_search": done.score,
        }
        print(name, figures[name], flush=True)
    print(save("pruned", figures))


if __name__ == "__main__":
    main()
