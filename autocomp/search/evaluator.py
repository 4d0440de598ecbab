"""One candidate into one outcome: build, write, score, time."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from autocomp.core.candidate import Candidate
from autocomp.core.compressed import CompressedModel
from autocomp.core.executor import Job
from autocomp.core.hardware import Placement
from autocomp.core.outcome import Completed, Measurement, Outcome
from autocomp.core.run_folder import storage_errors
from autocomp.core.stage import Stage
from autocomp.core.variant import Variant
from autocomp.core.workload import Split
from autocomp.evaluators import artifact
from autocomp.evaluators.latency import disturbance_notes
from autocomp.evaluators.meter import Meter, make_meter
from autocomp.evaluators.quality import Quality, Scored, judge, run_split
from autocomp.evaluators.scoring_device import CPU
from autocomp.graph.simulate import simulated, uncompressed
from autocomp.search.session import Session
from autocomp.search.structured import Structured, TensorSource, unit_layers
from autocomp.search.variants import make_variant
from autocomp.survey.hessians import Hessians
from autocomp.survey.on_demand import OnDemand, Surveyed
from autocomp.survey.stored import Survey
from autocomp.transforms.compensate import Hessian

FLOAT32 = Placement()
"""How the reference is written: in float32 also where a target's own float type is another."""
STRUCTURES_KEPT = 3
"""Structures held in memory; each holds its own weights and Hessians."""


class Evaluator:
    """Evaluates candidates of one session. Makes no decision; holds caches only.

    Args:
        session: what is searched.
        survey: prices, coded tensors and activation quantizers.
    """

    def __init__(self, session: Session, survey: Survey) -> None:
        self.session = session
        self.survey = survey
        self._structures: OrderedDict[str, Structured] = OrderedDict()
        self._moments: dict[str, Hessian] = {}

    # what is measured against

    @cached_property
    def reference(self) -> Scored:
        """The float32 network on the search split."""
        return self._reference(self.session.workload.search)

    @cached_property
    def test_reference(self) -> Scored:
        """The float32 network on the test split."""
        return self._reference(self.session.workload.test)

    @property
    def restoring(self) -> Sequence[torch.Tensor]:
        """The first batch of the calibration images: statistics need fewer than Hessians, and every trial pays."""
        return self.session.calibration[:1]

    @cached_property
    def meter(self) -> Meter:
        return make_meter(self.session.target, self.session.shared_cache / "engines", self.session.bench)

    # the structures

    @cached_property
    def hessians(self) -> Hessians:
        """Of the unchanged network's layers."""
        return Hessians(self.session.network, self._images, seed=self.session.settings.seed)

    @cached_property
    def base(self) -> Structured:
        """The network as it is, with what the survey made of it."""
        variant = Variant.base(self.session.network)
        source = Surveyed(database=self.survey.database, rest=self._on_demand(variant, self.hessians))
        return self._structured(variant, source, quantizers=self.survey.quantizers)

    def structured(self, candidate: Candidate) -> Structured:
        """The structure that ``candidate`` has; the last few are kept."""
        structure = candidate.structure()
        if not len(structure):
            return self.base
        if structure.id not in self._structures:
            self._structures[structure.id] = self._derived(structure)
            while len(self._structures) > STRUCTURES_KEPT:
                self._structures.popitem(last=False)
        self._structures.move_to_end(structure.id)
        return self._structures[structure.id]

    def _derived(self, structure: Candidate) -> Structured:
        session = self.session
        variant = make_variant(session, structure, self.hessians, self._moments)
        # every structure pays for its own: the first batch has to do
        hessians = Hessians(variant.network, self.restoring[0], seed=session.settings.seed)
        source = self._on_demand(variant, hessians)
        return self._structured(variant, source, base=self.base)

    def _on_demand(self, variant: Variant, hessians: Hessians) -> OnDemand:
        units = unit_layers(variant, self.session.space)
        return OnDemand(network=variant.network, units=units, hessians=hessians, seed=self.session.settings.seed)

    def _structured(self, variant: Variant, source: TensorSource, **known: Any) -> Structured:
        session = self.session
        return Structured(
            variant,
            session.space,
            session.target.profile.placement,
            source,
            restoring=self.restoring,
            calibration=session.calibration,
            **known,
        )

    @cached_property
    def _images(self) -> torch.Tensor:
        """All calibration inputs."""
        return torch.cat(list(self.session.calibration))

    # the steps

    def realise(self, candidate: Candidate) -> CompressedModel:
        """The candidate's tensors and quantizers, statistics re-estimated on the calibration images."""
        return self.structured(candidate).realise(candidate)

    def records(self, compressed: CompressedModel) -> dict[str, bytes]:
        """Coded tensors, symbols taken from where they were coded before."""
        finished = any(step.startswith("finish") for step in compressed.steps)
        candidate = compressed.candidate
        return artifact.records(compressed, None if finished else self.structured(candidate).records(candidate))

    def write(self, compressed: CompressedModel, path: Path) -> int:
        """Write the file; returns its size on disk."""
        session = self.session
        with storage_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            return artifact.save(path, session.workload, session.network, compressed, self.records(compressed))

    def simulated(self, compressed: CompressedModel) -> nn.Module:
        """A module that computes what the compressed network computes on the target."""
        form = self.structured(compressed.candidate)
        return simulated(form.network, compressed, form.placement.float_type)

    def _reference(self, split: Split) -> Scored:
        network, device = self.session.network, self.session.scoring
        return run_split(network.module if device == CPU else uncompressed(network).to(device), split, device)

    def scored(self, compressed: CompressedModel, split: Split) -> Scored:
        """Outputs of the simulated network on ``split``."""
        device = self.session.scoring
        return run_split(self.simulated(compressed).to(device), split, device)

    def quality(self, compressed: CompressedModel) -> Quality:
        """KL and metric of the simulated network on the search split."""
        workload = self.session.workload
        scored = self.scored(compressed, workload.search)
        return judge(scored, self.reference, workload.metric, classes=workload.classes)

    def test_quality(self, compressed: CompressedModel) -> Quality:
        """The same on the test split, with the metric's interval. For finalists, once."""
        workload = self.session.workload
        scored = self.scored(compressed, workload.test)
        return judge(scored, self.test_reference, workload.metric, classes=workload.classes, interval=True)

    def onnx(self, compressed: CompressedModel, batch_size: int | None = None) -> bytes:
        """The network as the target's engine is built from it."""
        form = self.structured(compressed.candidate)
        layers = set(form.executed_layers(compressed.candidate))
        return form.exporter.export(compressed, form.placement, layers, batch_size)

    def latency(
        self, compressed: CompressedModel, batch_size: int | None = None, *, fresh: bool = False
    ) -> tuple[Measurement, int | None] | None:
        """Latency and engine size; None where the network has no graph to export, or nothing is known of it.

        Args:
            compressed: the network.
            batch_size: default: the first of the settings.
            fresh: measure again even where the same structure was measured before.
        """
        form = self.structured(compressed.candidate)
        if form.network.graph is None:
            return None
        batch = batch_size or self.session.settings.batch_size[0]
        key = form.exporter.structure_key(compressed, form.placement, batch)
        return self._timed(key, lambda: self.onnx(compressed, batch), batch, fresh=fresh)

    def float32_latency(self) -> tuple[Measurement, int | None] | None:
        """The same of the uncompressed network, in float32 also where the target's float type is another."""
        if self.session.network.graph is None:
            return None
        batch = self.session.settings.batch_size[0]
        key = self.base.exporter.structure_key(self.base.uncompressed, FLOAT32, batch)
        return self._timed(key, lambda: self._float32_onnx(batch), batch)

    def _timed(
        self, key: str, model: Callable[[], bytes], batch: int, *, fresh: bool = False
    ) -> tuple[Measurement, int | None] | None:
        example: np.ndarray = self.session.workload.example(batch).numpy()
        return self.meter.measure(key, model, example, lambda: self._float32_onnx(batch), fresh=fresh)

    def _float32_onnx(self, batch: int) -> bytes:
        """What latencies are compared with."""
        return self.base.exporter.export(self.base.uncompressed, FLOAT32, set(), batch)

    def evaluate(self, candidate: Candidate, path: Path) -> Completed:
        """All of it; the file is left at ``path``."""
        return self.measure(candidate, path)[0]

    def measure(self, candidate: Candidate, path: Path) -> tuple[Completed, CompressedModel]:
        """:meth:`evaluate`, and the network itself."""
        seconds: dict[str, float] = {}
        with Stage("build", seconds):
            compressed = self.realise(candidate)
        with Stage("size", seconds):
            file_bytes = self.write(compressed, path)
        with Stage("quality", seconds):
            quality = self.quality(compressed)
        built = self.meter.builds
        with Stage("latency", seconds):
            timing = self.latency(compressed)
        done = Completed(
            file_bytes=file_bytes,
            kl=quality.loss,
            score=quality.score,
            latency=timing[0] if timing else None,
            engine_bytes=timing[1] if timing else None,
            seconds=seconds,
            cached=("latency",) if timing is not None and self.meter.builds == built else (),
            notes=(
                *self.execution_notes(compressed, timing[0] if timing else None),
                *disturbance_notes(timing[0] if timing else None),
            ),
        )
        return done, compressed

    def execution_notes(self, compressed: CompressedModel, timing: Measurement | None) -> tuple[str, ...]:
        """Layers that were asked to run in 8 bits and do not, in the export or in the built engine."""
        form = self.structured(compressed.candidate)
        asked = {name: step.precision for name, step in form.executed_layers(compressed.candidate).items()}
        if timing is None or not asked:
            return ()
        layers = form.network.layers
        exported = form.executes(compressed, set(asked))
        built = timing.conditions.get("layer_precisions", {})
        runs = {n: built.get(layers[n].weight, exported[n]) for n in asked}
        notes = []
        for precision in sorted(set(asked.values())):
            others = [n for n, found in runs.items() if asked[n] == precision != found]
            more = f" and {len(others) - 3} more" if len(others) > 3 else ""
            kinds = "/".join(sorted({runs[n] for n in others}))
            if others:
                notes.append(f"requested {precision}, runs {kinds}: {', '.join(others[:3])}{more}")
        return tuple(notes)

    def path_of(self, candidate: Candidate) -> Path:
        """Where an evaluated candidate's file lies until the front is known."""
        return self.session.run.cache / "candidates" / f"{candidate.id}.autocomp"

    def kept_path(self, candidate: Candidate) -> Path | None:
        """Where the file of a candidate evaluated earlier lies, or None where it was not kept."""
        places = (self.path_of(candidate), self.session.run.candidates / f"{candidate.id}.autocomp")
        return next((p for p in places if p.is_file()), None)

    def __call__(self, job: Job) -> Outcome:
        return self.evaluate(job.candidate, self.path_of(job.candidate))
