"""The coder: speed on ResNet-18's shapes, what a small file spends beside its symbols, bytes against plain packing.

    python benchmarks/coding.py [--weights FILE] [--repeats 3]

Speed: Gaussian weights of ResNet-18's shapes, a deviation of their own for each output and input channel, on step
grids, one thread, CPU time; MB/s of float32 output, from the record to the float32 weight. FILE: a safetensors
checkpoint of ResNet-20; without one only the speed is measured.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from common import save

from autocomp.coding.coders import huffman
from autocomp.coding.container import overhead_bytes, pack_artifact
from autocomp.coding.tensors import decode_tensor, describe, encode_tensor
from autocomp.core.encodings import Encoding, FloatTensor, QuantizedTensor
from autocomp.transforms.quantize import QuantizeWeights, quantize_weight

STEPS = (0.7, 1.8)
SMALL_STEP = 1.05  # standard deviations: a file of about 64 KB


def resnet18_shapes() -> list[tuple[int, ...]]:
    """Weights of ResNet-18 for 1000 classes: 11.7 million numbers."""
    shapes: list[tuple[int, ...]] = [(64, 3, 7, 7)]
    inside = 64
    for width in (64, 128, 256, 512):
        shapes += [(width, inside, 3, 3), *[(width, width, 3, 3)] * 3]
        shapes += [(width, inside, 1, 1)] if inside != width else []
        inside = width
    return [*shapes, (1000, 512)]


def random_weights() -> list[torch.Tensor]:
    """Gaussian weights of these shapes; each output and input channel has a deviation of its own."""
    generator = torch.Generator().manual_seed(0)
    out = []
    for shape in resnet18_shapes():
        ones = [1] * (len(shape) - 2)
        rows = torch.exp(0.4 * torch.randn(shape[0], 1, *ones, generator=generator))
        columns = torch.exp(0.4 * torch.randn(1, shape[1], *ones, generator=generator))
        out.append(torch.randn(shape, generator=generator) * rows * columns)
    return out


def median_cpu_seconds(work: Callable[[], Any], repeats: int) -> float:
    """Median CPU seconds: one thread, so what a free core would take."""
    times = []
    for _ in range(repeats):
        begin = time.process_time()
        work()
        times.append(time.process_time() - begin)
    return statistics.median(times)


def speed(step: float, repeats: int) -> dict[str, float]:
    """Seconds and MB/s of a whole ResNet-18 on step grids."""
    config = QuantizeWeights(step=step, rounding="nearest")
    encodings = [quantize_weight(w, config) for w in random_weights()]
    records = [encode_tensor(e) for e in encodings]
    for encoding, record in zip(encodings, records, strict=True):
        assert torch.equal(decode_tensor(record).decode(), encoding.decode())
    count = sum(describe(r)["symbols"] for r in records)
    encode = median_cpu_seconds(lambda: [encode_tensor(e) for e in encodings], repeats)
    decode = median_cpu_seconds(lambda: [decode_tensor(r).decode() for r in records], repeats)
    return {
        "step": step,
        "weights": count,
        "bytes": sum(map(len, records)),
        "bits_per_weight": 8 * sum(map(len, records)) / count,
        "encode_cpu_seconds": encode,
        "decode_cpu_seconds": decode,
        "decode_mb_per_cpu_s": 4 * count / decode / 1e6,
    }


def small_file(path: str) -> dict[str, float]:
    """Bytes of a ResNet-20 file by what they are for."""
    from safetensors.torch import load_file

    from autocomp.graph.trace import build_network
    from autocomp.transforms.stitch import float_encodings
    from autocomp.workloads.models.cifar_resnet import resnet20

    model = resnet20(10)
    model.load_state_dict(load_file(path))
    network = build_network(model.eval(), torch.zeros(2, 3, 32, 32))
    tensors: dict[str, Encoding] = dict(float_encodings(network))
    config, state = (
        QuantizeWeights(step=SMALL_STEP, rounding="nearest", granularity="tensor"),
        network.module.state_dict(),
    )
    for layer in network.layers.values():
        tensors[layer.weight] = quantize_weight(state[layer.weight], config, axis=layer.channel_axis)
    records = {name: encode_tensor(encoding) for name, encoding in tensors.items()}
    manifest = {
        "model": "resnet20",
        "classes": 10,
        "input": [3, 32, 32],
        "folds": [[f.layer, f.norm] for f in network.folds.values()],
        "activations": {},
    }
    total = len(pack_artifact(manifest, records))
    floats = [n for n, e in tensors.items() if isinstance(e, FloatTensor)]
    parts = {
        "container": overhead_bytes(manifest, list(records), map(len, records.values())),
        "scales_and_shapes": sum(describe(r)["side_bytes"] for n, r in records.items() if n not in floats),
        "biases": sum(len(records[n]) for n in floats),
    }
    return {"file_bytes": total, **parts, "not_symbols_percent": 100 * sum(parts.values()) / total}


def step_of_equal_error(weight: torch.Tensor, error: float, granularity: str) -> QuantizedTensor:
    """The coarsest step grid with at most the squared ``error``, by bisection."""
    low, high, best = 0.01, 8.0, None
    for _ in range(22):
        step = (low * high) ** 0.5
        config = QuantizeWeights(step=step, rounding="nearest", granularity=granularity)
        made = quantize_weight(weight, config)
        assert isinstance(made, QuantizedTensor)
        if float((made.decode() - weight).square().sum()) <= error:
            low, best = step, made
        else:
            high = step
    assert best is not None, "the finest step is too coarse"
    return best


def against_packing(weights: list[torch.Tensor], bits: int, granularity: str) -> dict[str, Any]:
    """Plain packing of clipped per-channel grids, and coded step grids of the same squared error in every layer."""
    packed = coded = by_huffman = 0
    for weight in weights:
        plain = quantize_weight(weight, QuantizeWeights(bits=bits, rounding="nearest"))
        packed += (weight.numel() * bits + 7) // 8 + 2 * weight.shape[0]
        ours = step_of_equal_error(weight, float((plain.decode() - weight).square().sum()), granularity)
        record = encode_tensor(ours)
        facts = describe(record)
        coded += len(record)
        by_huffman += facts["side_bytes"] + (huffman.size(ours.symbols.numpy().astype(np.int32)) or 0)
    return {
        "bits": bits,
        "granularity": granularity,
        "packed_bytes": packed,
        "coded_bytes": coded,
        "saved_percent": 100 * (1 - coded / packed),
        "huffman_bytes": by_huffman,
        "huffman_loss_percent": 100 * (by_huffman / coded - 1),
    }


def table(rows: list[dict[str, Any]]) -> None:
    """Print rows under their keys."""
    print("  ".join(f"{key:>20}" for key in rows[0]))
    for row in rows:
        print("  ".join(f"{v:20.2f}" if isinstance(v, float) else f"{v!s:>20}" for v in row.values()))
    print()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights")
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    results: dict[str, Any] = {"speed": [speed(step, arguments.repeats) for step in STEPS]}
    table(results["speed"])
    if arguments.weights:
        from safetensors.torch import load_file

        results["small_file"] = small_file(arguments.weights)
        table([results["small_file"]])
        weights = [w.float() for w in load_file(arguments.weights).values() if w.dim() > 1]
        cases = [(bits, granularity) for bits in (4, 3, 2) for granularity in ("channel", "tensor")]
        results["against_packing"] = [against_packing(weights, *case) for case in cases]
        table(results["against_packing"])
    print(save("coding", results))


if __name__ == "__main__":
    main()
