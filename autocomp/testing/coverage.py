"""Whether a whole network can be compressed: survey, candidates, files, fresh loading and ONNX Runtime.

Everything runs through the parts that a search runs. :func:`check_family` does the work of one process;
:func:`check_loading` then loads all its files in another one.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from autocomp.core.candidate import Candidate
from autocomp.core.compressed import CompressedModel
from autocomp.errors import AutocompError
from autocomp.evaluators.artifact import read_compressed
from autocomp.graph.capture import EXPORT_ERRORS, first_tensor, one_line
from autocomp.search.evaluator import Evaluator
from autocomp.search.session import Session
from autocomp.survey.survey import survey
from autocomp.testing.joint import joint_session, random_candidates, value_range

FLOAT_TOLERANCE = 1e-3
"""Largest difference of outputs between simulation and ONNX Runtime, in their range, without int8: both sum
float32 products in orders of their own, and low-rank chains and deep networks amplify the last bits a
thousandfold at worst; one wrong channel shows in the first digit."""

INT8_TOLERANCE = 0.02
"""Mean difference with int8 layers, in the outputs' range. Where a sum lies at a tie it may be rounded to
the next step, 1/255 of a value's range, and a few steps may add up along the way; a value on another grid, or
a layer that reads another one, differs by tens of percent everywhere."""


@dataclass(frozen=True, kw_only=True)
class Coverage:
    """What was done with one network, and what failed.

    Attributes:
        layers, groups: compressible layers; groups of channels or heads that can be removed.
        skipped: parts that stay in float32, "name: why".
        refused: layers whose channels stay, "name: why".
        notes: what the space left out, one line each.
        candidates: how many were drawn; ``built`` of them were realised, written, read back bit for bit and run.
        varied: how many of those give different outputs for different inputs (compressed beyond all use, a
            network may not; then little is compared).
        with_int8: how many of them execute a layer in int8.
        exported: how many ran in ONNX Runtime.
        failures: "candidate or stage: error", one line each.
        techniques: kinds of steps that were really used.
        float_difference: largest difference of a candidate without int8, in the range of its outputs.
        int8_difference: largest mean difference of a candidate with int8, the same way.
        top1: share of outputs with the same largest class in simulation and ONNX Runtime.
        seconds: wall seconds.
        digests: path of each file → :func:`digest` of its network's outputs.
    """

    layers: int
    groups: int
    skipped: tuple[str, ...]
    refused: tuple[str, ...]
    notes: tuple[str, ...]
    candidates: int
    built: int = 0
    varied: int = 0
    with_int8: int = 0
    exported: int = 0
    failures: tuple[str, ...] = ()
    techniques: tuple[str, ...] = ()
    float_difference: float = 0.0
    int8_difference: float = 0.0
    top1: float = 1.0
    seconds: float = 0.0
    digests: Mapping[str, str] = field(default_factory=dict, repr=False)

    def to_json(self) -> dict[str, Any]:
        """Plain values, without the digests."""
        return {k: v for k, v in asdict(self).items() if k != "digests"}


def check_family(
    model: nn.Module,
    inputs: Tensor,
    folder: Path,
    *,
    candidates: int = 20,
    seed: int = 0,
    classes: int | None = None,
    tables: Mapping[str, Any] | None = None,
    factory: str = "",
) -> Coverage:
    """Survey ``model`` and build, write, read, run and export random candidates of its joint space.

    Args:
        model: in evaluation mode; read only.
        inputs: [n, ...], calibration and comparison.
        folder: candidates' files stay there, with what :func:`check_loading` needs.
        candidates: how many.
        seed: of everything random.
        classes: number of classes, None where the output is no class score.
        tables: of the search space; None: those of :func:`spread`.
        factory: "module:function" or "module:function:argument" that makes an untrained instance in another process.

    Returns:
        What was done. Errors of single candidates are in :attr:`Coverage.failures`; those of opening and
        surveying the network are raised.
    """
    begin = time.perf_counter()
    session = joint_session(model, inputs, folder, tables=tables, classes=classes, seed=seed)
    done = check_candidates(session, random_candidates(session.space, candidates, seed), begin=begin)
    torch.save(inputs, folder / "inputs.pt")
    (folder / "expected.json").write_text(json.dumps({"factory": factory, "digests": done.digests}))
    return done


def check_candidates(
    session: Session, candidates: Sequence[Candidate], *, export: bool = True, begin: float | None = None
) -> Coverage:
    """Survey the session's network, then build, write, read and run ``candidates``.

    Args:
        session: from :func:`joint_session`.
        candidates: legal ones.
        export: also export each to ONNX and compare with ONNX Runtime.
        begin: ``time.perf_counter()`` that :attr:`Coverage.seconds` counts from; default: now.
    """
    begin = time.perf_counter() if begin is None else begin
    found = survey(dataclasses.replace(session.survey_order(), sensitivity=len(session.calibration[0])))
    checker = _Checker(Evaluator(session, found), export)
    for candidate in candidates:
        checker.check(candidate)
    coupling = session.coupling()
    return Coverage(
        layers=len(session.network.layers),
        groups=len(coupling.groups),
        skipped=tuple(f"{s.name}: {s.reason}" for s in session.network.skipped),
        refused=tuple(f"{s.name}: {s.reason}" for s in coupling.refused),
        notes=session.space.notes,
        candidates=len(candidates),
        digests=checker.digests,
        **checker.counts,
        failures=tuple(checker.failures),
        techniques=tuple(sorted(checker.techniques)),
        float_difference=max(checker.float_differences, default=0.0),
        int8_difference=max(checker.int8_differences, default=0.0),
        top1=checker.agreeing / checker.compared if checker.compared else 1.0,
        seconds=time.perf_counter() - begin,
    )


class _Checker:
    """Carries candidates through and keeps count."""

    def __init__(self, evaluator: Evaluator, export: bool) -> None:
        self.evaluator, self.export = evaluator, export and evaluator.session.network.graph is not None
        self.inputs = evaluator.session.calibration[0]
        self.digests: dict[str, str] = {}
        self.failures: list[str] = []
        self.techniques: set[str] = set()
        self.counts = dict.fromkeys(("built", "varied", "with_int8", "exported"), 0)
        self.float_differences: list[float] = []
        self.int8_differences: list[float] = []
        self.agreeing = self.compared = 0

    def check(self, candidate: Candidate) -> None:
        stage = "build"
        try:
            compressed = self.evaluator.realise(candidate)
            stage = "price"
            self.evaluator.survey.prices.file_bytes(candidate)
            self.evaluator.survey.prices.predicted_kl(candidate)
            stage = "write"
            path = self.evaluator.path_of(candidate)
            self.evaluator.write(compressed, path)
            stage = "read"
            _same(compressed, read_compressed(path, candidate))
            stage = "run"
            with torch.inference_mode():
                outputs = self.evaluator.simulated(compressed)(self.inputs)
            expected = self.evaluator.reference.outputs.shape
            if outputs.shape != expected or not bool(torch.isfinite(outputs).all()):
                raise ValueError(f"outputs of shape {tuple(outputs.shape)} for {tuple(expected)}, or not finite")
            self.digests[str(path)] = digest(outputs)
            self.techniques |= set(candidate.techniques())
            self.counts["built"] += 1
            spread = float(outputs.std(0).mean()) if len(outputs) > 1 else 0.0
            self.counts["varied"] += spread > 1e-3 * value_range(outputs)
            self.counts["with_int8"] += bool(compressed.activations)
            if self.export:
                stage = "onnx"
                self._compare(compressed, outputs)
        except (AutocompError, *EXPORT_ERRORS) as error:
            self.failures.append(f"{candidate.id}: {stage}: {one_line(error)}")

    def _compare(self, compressed: CompressedModel, outputs: Tensor) -> None:
        session = self.evaluator.session
        model, target = self.evaluator.onnx(compressed), session.target
        engine = target.engine(model, session.workload.example().numpy())
        try:
            found = torch.from_numpy(engine.run(self.inputs.numpy()))
        finally:
            engine.close()
        self.counts["exported"] += 1
        difference = (found - outputs).abs() / value_range(outputs)
        axis = 1 if outputs.dim() == 4 else -1
        same = found.argmax(axis) == outputs.argmax(axis)
        self.agreeing, self.compared = self.agreeing + int(same.sum()), self.compared + same.numel()
        if compressed.activations:
            self.int8_differences.append(float(difference.mean()))
            wrong = float(difference.mean()) > INT8_TOLERANCE
        else:
            self.float_differences.append(float(difference.max()))
            wrong = float(difference.max()) > FLOAT_TOLERANCE
        if wrong:
            raise ValueError(f"ONNX Runtime's outputs differ by up to {float(difference.max()):.2g} of their range")


def _same(made: CompressedModel, read: CompressedModel) -> None:
    """ValueError where a file does not hold the network that was written, bit for bit."""
    if set(made.tensors) != set(read.tensors) or made.activations != read.activations or made.edits != read.edits:
        raise ValueError("the file holds other tensors, quantizers or edits")
    for name, encoding in made.tensors.items():
        if not torch.equal(encoding.decode(), read.tensors[name].decode()):
            raise ValueError(f"{name} is read back with other values")


def digest(outputs: Tensor) -> str:
    """SHA-256 of a tensor's shape and bits."""
    content = outputs.detach().contiguous().numpy()
    return hashlib.sha256(repr(content.shape).encode() + content.tobytes()).hexdigest()


def check_loading(folders: Sequence[Path], timeout_s: float = 600) -> list[str]:
    """Load every file that :func:`check_family` left in ``folders``, in one fresh process.

    Returns:
        One line for each file that does not load or whose outputs differ in a single bit; empty where all hold.
    """
    command = [sys.executable, "-m", "autocomp.testing.coverage", *map(str, folders)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=timeout_s)
    if done.returncode != 0:
        return [f"the loading process ended with {done.returncode}: {done.stderr.strip()[-2000:]}"]
    said: list[str] = json.loads(done.stdout.splitlines()[-1])
    return said


def _load_all(folder: Path) -> list[str]:
    """What is wrong with the files of one folder."""
    import importlib

    from autocomp.loading import load

    expected = json.loads((folder / "expected.json").read_text())
    module, name, *arguments = expected["factory"].split(":")
    build = getattr(importlib.import_module(module), name)
    inputs = torch.load(folder / "inputs.pt", weights_only=True)
    problems = []
    for path, wanted in expected["digests"].items():
        try:
            network = load(path, into=build(*arguments))
            with torch.inference_mode():
                found = digest(first_tensor(network(inputs)))
        except (AutocompError, *EXPORT_ERRORS) as error:
            problems.append(f"{path}: {one_line(error)}")
            continue
        if found != wanted:
            problems.append(f"{path}: the loaded network's outputs differ")
    return problems


if __name__ == "__main__":
    print(json.dumps([problem for folder in sys.argv[1:] for problem in _load_all(Path(folder))]))
