"""int8 against float32 of the same runtime: ResNet-18 at 224 x 224, random weights, on this CPU.

    python benchmarks/int8_speed.py [--batches 1 16] [--ratio 0.32]

int8, half of the multiply-accumulates removed, and both, each timed in pairs with the runtime's own float32 engine
(:class:`~autocomp.evaluators.latency.LatencyMeter`); the ratio of neighbours is what a shared machine leaves intact.
Which layers really ran on integers is read from the engine. Raw samples are kept.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

import torch
from common import save
from pruned import counted

from autocomp.core.candidate import Candidate
from autocomp.core.compressed import CompressedModel
from autocomp.core.network import Network
from autocomp.core.variant import Variant
from autocomp.evaluators._timing import TimingRecipe
from autocomp.evaluators.latency import LatencyMeter
from autocomp.evaluators.statistics import ratio_ci
from autocomp.graph.coupling import coupled_groups
from autocomp.graph.trace import build_network
from autocomp.runtimes._profiles import load_target
from autocomp.runtimes.export import OnnxExporter
from autocomp.testing.candidates import int8_candidate
from autocomp.transforms.prune import PruneChannels, prune_channels
from autocomp.workloads.models import build

PLAIN = CompressedModel(candidate=Candidate({}), tensors={})


def pruned(network: Network, ratio: float) -> Network:
    """Every group of channels shortened by ``ratio``, to multiples of 16."""
    coupling = coupled_groups(network)
    steps = dict.fromkeys(coupling.groups, PruneChannels(ratio=ratio))
    return prune_channels(Variant.base(network), steps, coupling=coupling, multiple=16, compensate=False).network


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 16])
    parser.add_argument("--ratio", type=float, default=0.32)
    parser.add_argument("--targets", nargs="+", default=["cpu-onnxruntime", "cpu-openvino"])
    arguments = parser.parse_args()
    torch.manual_seed(0)
    inputs = torch.randn(2, 3, 224, 224)
    networks = {"whole": build_network(build("resnet18", 1000).eval(), inputs)}
    networks["pruned"] = pruned(networks["whole"], arguments.ratio)
    exporters = {name: OnnxExporter(network) for name, network in networks.items()}
    recipe = TimingRecipe(target_s=3.0, slow_samples=11)
    rows: list[dict[str, Any]] = []
    for name in arguments.targets:
        target = load_target(name)
        placement = target.profile.placement
        models = {f"float32 {kind}": (exporters[kind], PLAIN) for kind in networks}
        for kind, network in networks.items():
            models[f"int8 {kind}"] = (exporters[kind], int8_candidate(network, inputs, placement))
        with LatencyMeter(target, Path(tempfile.mkdtemp()), recipe=recipe) as meter:
            for batch in arguments.batches:
                example = torch.randn(batch, 3, 224, 224).numpy()
                data = {k: e.export(c, placement, None if c is PLAIN else set(e.network.layers), batch)
                        for k, (e, c) in models.items()}  # fmt: skip
                for kind in ("float32 whole", "int8 whole", "float32 pruned", "int8 pruned"):
                    found, engine_bytes = meter.measure(
                        f"{kind} {batch}", lambda d=data[kind]: d, example, lambda d=data["float32 whole"]: d
                    )
                    ratio, interval = ratio_ci(found.samples_s, found.reference_s)
                    exporter = models[kind][0]
                    rows.append({
                        "target": name,
                        "network": kind,
                        "batch": batch,
                        "macs": counted(exporter.export(PLAIN, placement, None, 1))["macs"],
                        "engine_bytes": engine_bytes,
                        "latency_ms": found.median_s() * 1e3,
                        "latency_over_float32": ratio,
                        "latency_over_float32_ci95": interval,
                        "measurement": found.to_json(),
                    })  # fmt: skip
                    shown = {k: v for k, v in rows[-1].items() if k != "measurement"}
                    ran = list(found.conditions["layer_precisions"].values())
                    print(shown, "int8 layers", ran.count("int8"), "of", len(ran), "load",
                          found.conditions["load_before"], flush=True)  # fmt: skip
    print(save("int8_speed", {"ratio": arguments.ratio, "rows": rows}))


if __name__ == "__main__":
    main()
