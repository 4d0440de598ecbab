"""One candidate into one outcome: build, write, score, time."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
import torch

from autocomp.core.candidate import Candidate
from autocomp.core.compressed import CompressedModel
from autocomp.core.encodings import Encoding
from autocomp.core.executor import Job
from autocomp.core.outcome import Completed, Measurement, Outcome
from autocomp.core.run_folder import RunFolder, storage_errors
from autocomp.core.settings import Settings
from autocomp.core.steps import Choice
from autocomp.core.workload import Workload
from autocomp.evaluators import artifact
from autocomp.evaluators.latency import LatencyMeter
from autocomp.evaluators.quality import Quality, Scored, judge, run_split
from autocomp.graph.simulate import simulated
from autocomp.runtimes.export import OnnxExporter
from autocomp.search.job import Stage
from autocomp.search.session import Session, open_session
from autocomp.survey.survey import Survey, load_survey
from autocomp.transforms.quantize import QuantizeWeights, quantize_weight
from autocomp.transforms.statistics import FloatStatistics, restore_statistics
from autocomp.transforms.stitch import stitch


class Evaluator:
    """Evaluates candidates of one session. Makes no decision; holds caches only.

    Args:
        session: what is searched.
        survey: prices, coded tensors and activation quantizers.
    """

    def __init__(self, session: Session, survey: Survey) -> None:
        self.session = session
        self.survey = survey

    # what is measured against

    @cached_property
    def reference(self) -> Scored:
        """The float32 network on the search split."""
        return run_split(self.session.network.module, self.session.workload.search)

    @cached_property
    def test_reference(self) -> Scored:
        """The float32 network on the test split."""
        return run_split(self.session.network.module, self.session.workload.test)

    @cached_property
    def float_statistics(self) -> FloatStatistics:
        """Output statistics of the float32 network on the images that candidates are restored on."""
        return FloatStatistics.of(self.session.network, self.restoring)

    @property
    def restoring(self) -> Sequence[torch.Tensor]:
        """The first batch of the calibration images: statistics need fewer than Hessians, and every trial pays."""
        return self.session.calibration[:1]

    @cached_property
    def exporter(self) -> OnnxExporter:
        """Skeleton exported once."""
        return OnnxExporter(self.session.network)

    @cached_property
    def meter(self) -> LatencyMeter:
        return LatencyMeter(self.session.target, self.session.run.cache / "engines")

    @cached_property
    def uncompressed(self) -> CompressedModel:
        """The float32 network in the same form."""
        return stitch(self.session.network, Candidate({}), self._lookup)

    # the steps

    def _lookup(self, unit: str, choice: Choice) -> dict[str, Encoding]:
        """Encodings of a choice: the survey's where it was priced, else made here (baselines)."""
        storage = choice.without("activations")
        if self.survey.database.has(unit, storage):
            return self.survey.database.lookup(unit, storage)
        step = storage.get("weights")
        if not isinstance(step, QuantizeWeights):
            return {}
        made: dict[str, Encoding] = {}
        state = self.session.network.module.state_dict()
        for name in self.session.space.units[unit].layers:
            layer = self.session.network.layers[name]
            plain = dataclasses.replace(step, rounding="nearest")
            made[layer.weight] = quantize_weight(state[layer.weight], plain, axis=layer.channel_axis)
        return made

    def realise(self, candidate: Candidate) -> CompressedModel:
        """The candidate's tensors and quantizers, statistics re-estimated on the calibration images."""
        network = self.session.network
        compressed = stitch(network, candidate, self._lookup)
        compressed = restore_statistics(network, compressed, self.restoring, self.float_statistics)
        values = self.session.activation_values(candidate)
        return compressed.replace(activations={k: self.survey.quantizers[k] for k in values})

    def records(self, compressed: CompressedModel) -> dict[str, bytes]:
        """Coded tensors, symbols taken from the survey's where they are the same."""
        known: dict[str, bytes] = {}
        if not any(step.startswith("finish") for step in compressed.steps):
            for unit in self.session.space.units:
                storage = compressed.candidate[unit].without("activations")
                if self.survey.database.has(unit, storage):
                    known.update(self.survey.database.records(unit, storage))
        return artifact.records(compressed, known)

    def write(self, compressed: CompressedModel, path: Path) -> int:
        """Write the file; returns its size on disk."""
        session = self.session
        with storage_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            return artifact.save(path, session.workload, session.network, compressed, self.records(compressed))

    def quality(self, compressed: CompressedModel) -> Quality:
        """KL and metric of the simulated network on the search split."""
        workload = self.session.workload
        scored = run_split(simulated(self.session.network, compressed), workload.search)
        return judge(scored, self.reference, workload.metric, classes=workload.classes)

    def test_quality(self, compressed: CompressedModel) -> Quality:
        """The same on the test split, with the metric's interval. For finalists, once."""
        workload = self.session.workload
        scored = run_split(simulated(self.session.network, compressed), workload.test)
        return judge(scored, self.test_reference, workload.metric, classes=workload.classes, interval=True)

    def onnx(self, compressed: CompressedModel, batch_size: int | None = None) -> bytes:
        """The network as the target's engine is built from it."""
        layers = set(self.session.int8_layers(compressed.candidate))
        return self.exporter.export(compressed, self.session.target.profile.placement, layers, batch_size)

    def latency(
        self, compressed: CompressedModel, batch_size: int | None = None, *, fresh: bool = False
    ) -> tuple[Measurement, int] | None:
        """Measured latency and engine size; None where the network has no graph to export.

        Args:
            compressed: the network.
            batch_size: default: the first of the settings.
            fresh: measure again even where the same structure was measured before.
        """
        if self.session.network.graph is None:
            return None
        batch = batch_size or self.session.settings.batch_size[0]
        placement = self.session.target.profile.placement
        key = self.exporter.structure_key(compressed, placement, batch)
        example: np.ndarray = self.session.workload.example(batch).numpy()
        return self.meter.measure(
            key,
            lambda: self.onnx(compressed, batch),
            example,
            lambda: self.exporter.export(self.uncompressed, placement, set(), batch),
            fresh=fresh,
        )

    def evaluate(self, candidate: Candidate, path: Path) -> Completed:
        """All of it; the file is left at ``path``."""
        seconds: dict[str, float] = {}
        with Stage("build", seconds):
            compressed = self.realise(candidate)
        with Stage("size", seconds):
            file_bytes = self.write(compressed, path)
        with Stage("quality", seconds):
            quality = self.quality(compressed)
        with Stage("latency", seconds):
            timing = self.latency(compressed)
        return Completed(
            file_bytes=file_bytes,
            kl=quality.loss,
            score=quality.score,
            latency=timing[0] if timing else None,
            engine_bytes=timing[1] if timing else None,
            seconds=seconds,
            notes=self.execution_notes(compressed, timing[0] if timing else None),
        )

    def execution_notes(self, compressed: CompressedModel, timing: Measurement | None) -> tuple[str, ...]:
        """Layers that were asked to run in int8 and do not, in the export or in the built engine."""
        asked = self.session.int8_layers(compressed.candidate)
        if timing is None or not asked:
            return ()
        layers = self.session.network.layers
        exported = self.exporter.executes(compressed, set(asked))
        built = timing.conditions.get("layer_precisions", {})
        floats = [n for n in asked if exported[n] != "int8" or built.get(layers[n].weight, "int8") != "int8"]
        if not floats:
            return ()
        more = f" and {len(floats) - 3} more" if len(floats) > 3 else ""
        return (f"requested int8, runs float32: {', '.join(floats[:3])}{more}",)

    def path_of(self, candidate: Candidate) -> Path:
        """Where an evaluated candidate's file lies until the front is known."""
        return self.session.run.cache / "candidates" / f"{candidate.id}.autocomp"

    def kept_path(self, candidate: Candidate) -> Path | None:
        """Where the file of a candidate evaluated earlier lies, or None where it was not kept."""
        places = (self.path_of(candidate), self.session.run.candidates / f"{candidate.id}.autocomp")
        return next((p for p in places if p.is_file()), None)

    def __call__(self, job: Job) -> Outcome:
        return self.evaluate(job.candidate, self.path_of(job.candidate))


@dataclasses.dataclass(frozen=True)
class EvaluatorFactory:
    """Picklable recipe for an evaluator in a worker process.

    Attributes:
        settings: the run's settings.
        folder: the run folder; the survey is read from its cache.
        workload: given only where the caller's own objects are searched; else loaded by its spec.
    """

    settings: Settings
    folder: Path
    workload: Workload | None = None

    def __call__(self) -> Evaluator:
        run = RunFolder(self.folder)
        session = open_session(self.settings, run, workload=self.workload)
        return Evaluator(session, load_survey(session.network, session.space, run.cache))
