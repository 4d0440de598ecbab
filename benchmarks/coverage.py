"""Network families through the joint search space: built, written, loaded afresh, run by ONNX Runtime.

    python benchmarks/coverage.py [NAME ...] [--candidates 20]

Names: autocomp's own small families and torchvision's networks at full size ("tv:resnet18"); default: all of
both. Each result goes to ``results/coverage.json`` at once; ``--table`` prints it as Markdown.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import tempfile
from pathlib import Path
from typing import Any

from autocomp.errors import UnsupportedError
from autocomp.testing.coverage import check_family, check_loading
from autocomp.testing.families import FAMILIES, make_family
from autocomp.testing.families.full_size import FULL_SIZE, full_size, full_size_inputs

RESULTS = Path(__file__).parent / "results" / "coverage.json"
IMAGES = 4


def measured(name: str, candidates: int, folder: Path) -> dict[str, Any]:
    """One network's row."""
    begin = cpu_seconds()
    if name.startswith("tv:"):
        plain = name.removeprefix("tv:")
        model, inputs, classes = full_size(plain), full_size_inputs(plain, IMAGES), True
        factory = f"autocomp.testing.families.full_size:untrained_full_size:{plain}"
    else:
        model, family = make_family(name)
        inputs, classes = family.inputs(IMAGES), family.classes
        factory = f"autocomp.testing.families:untrained:{name}"
    found = check_family(model, inputs, folder, candidates=candidates, classes=classes, factory=factory)
    problems = check_loading([folder], timeout_s=3600)
    peak = max(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    parameters = sum(p.numel() for p in model.parameters())
    row = {**found.to_json(), "parameters": parameters, "loading": problems, "peak_memory_bytes": 1024 * peak}
    return {**row, "cpu_seconds": cpu_seconds() - begin}


def cpu_seconds() -> float:
    """Of this process and of those it has waited for: a busy machine does not lengthen them."""
    return sum(os.times()[:4])


def table(rows: dict[str, dict[str, Any]]) -> str:
    """Markdown."""
    head = (
        "| network | parameters | layers | groups | parts left alone | built / failed | int8 | loads bit for bit "
        "| float32: largest difference | int8: largest mean difference | same top-1 | peak GB | CPU s |"
    )
    lines = [head, "|" + "---|" * 13]
    for name, row in rows.items():
        exported = row["exported"] > 0
        cells = [
            name,
            f"{row['parameters']:,}",
            row["layers"],
            row["groups"],
            len(row["skipped"]),
            f"{row['built']} / {len(row['failures'])}",
            row["with_int8"],
            "no" if row["loading"] else "yes",
            f"{row['float_difference']:.1e}" if exported else "no graph",
            f"{row['int8_difference']:.1e}" if row["with_int8"] else "none",
            f"{100 * row['top1']:.1f} %" if exported else "none",
            f"{row['peak_memory_bytes'] / 1e9:.1f}",
            f"{row['cpu_seconds']:.0f}" if "cpu_seconds" in row else "",
        ]
        lines.append("| " + " | ".join(str(c) for c in cells) + " |")
    return "\n".join(lines)


def kept() -> dict[str, dict[str, Any]]:
    """Rows that are measured already, also by another process meanwhile."""
    return json.loads(RESULTS.read_text()) if RESULTS.is_file() else {}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME")
    parser.add_argument("--candidates", type=int, default=20)
    parser.add_argument(
        "--work", type=Path, help="surveys and files stay there: a run that was ended goes on (CPU seconds: its own)"
    )
    parser.add_argument("--table", action="store_true")
    options = parser.parse_args()
    if options.table:
        print(table(kept()))
        return
    for name in options.names or [*FAMILIES, *(f"tv:{n}" for n in FULL_SIZE)]:
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary) if options.work is None else options.work / name.replace(":", "_")
            try:
                row = measured(name, options.candidates, folder)
            except UnsupportedError as error:
                print(f"{name}: skipped: {error}")
                continue
        RESULTS.write_text(json.dumps({**kept(), name: row}, indent=1) + "\n")
        print(table({name: row}).splitlines()[-1], *row["failures"], *row["loading"], sep="\n  ", flush=True)


if __name__ == "__main__":
    main()
