"""What a search returns: the front as a table, the answer as a file, the file as a network.

python examples/python_api.py
"""

from __future__ import annotations

import torch
from own_model_and_data import SmallNet, digits, train

import autocomp


def main() -> None:
    data = digits()
    model = train(data[0])
    result = autocomp.search(model, data, budget="10%", preset="quick", trials=10, out="runs/example-api")

    # The front is a pandas DataFrame, one row a candidate.
    front = result.pareto
    print(front[["trial", "feasible", "file_bytes", "score_search", "kl_search", "latency_ms"]].to_string(index=False))

    # The answer is one file; it holds tensors and the recipe, no code.
    path = result.best.save("small.autocomp")
    print(f"{path}: {path.stat().st_size:,} bytes, {', '.join(result.best.techniques)}")

    # Loading replays the recipe on an untrained copy of your own class.
    small = autocomp.load(path, into=SmallNet())
    inputs, targets = data[2]
    with torch.no_grad():
        agree = (small(inputs).argmax(1) == model(inputs).argmax(1)).float().mean().item()
        accuracy = (small(inputs).argmax(1) == targets).float().mean().item()
    print(f"test accuracy {accuracy:.4f}; same answer as float32 on {100 * agree:.1f} % of the images")

    # A file can be checked by itself: checksums, the same bytes when packed again, finite tensors.
    for check in autocomp.verify(path):
        print(f"{'holds' if check.ok else 'DOES NOT HOLD'}: {check.name} ({check.measured})")


if __name__ == "__main__":
    main()
