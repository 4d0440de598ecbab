"""Everything an evaluation needs, opened once a process: workload, network, target, space."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path

import torch

from autocomp.core.hardware import Target
from autocomp.core.network import Network
from autocomp.core.progress import Progress, Silent
from autocomp.core.run_folder import RunFolder
from autocomp.core.settings import Settings
from autocomp.core.space import SearchSpace
from autocomp.core.workload import Workload
from autocomp.errors import UnsupportedError
from autocomp.evaluators.bench import Bench, LocalBench
from autocomp.evaluators.scoring_device import CPU, scoring_device
from autocomp.graph.capture import EXPORT_ERRORS, one_line
from autocomp.graph.coupling import Coupling
from autocomp.graph.simulate import uncompressed
from autocomp.graph.trace import build_network
from autocomp.runtimes._profiles import load_target
from autocomp.survey.coupling_file import stored_coupling
from autocomp.survey.order import Order
from autocomp.survey.space_file import load_space
from autocomp.workloads.load import load_workload

CALIBRATION_BATCH = 256


@dataclass(frozen=True, kw_only=True, eq=False)
class Session:
    """One search in one process. Values only; nothing here changes after it is made.

    Attributes:
        settings: the resolved settings.
        run: the run folder.
        workload: model, data, metric.
        network: the folded, traced network.
        target: hardware profile and runtime.
        space: units and legal choices.
        coupling: groups of channels that can only be removed together; found, or read
            from the cache, when first asked for.
        calibration: calibration inputs in batches [n, ...] float32.
        bench: where latencies are measured; None: on this machine, or predicted.
        scoring: where networks are run to score them.
    """

    settings: Settings
    run: RunFolder
    workload: Workload
    network: Network
    target: Target
    space: SearchSpace
    coupling: Callable[[], Coupling]
    calibration: Sequence[torch.Tensor]
    bench: Bench | None = None
    scoring: torch.device = CPU

    def cannot_measure(self) -> str | None:
        """Why latencies are predicted and not measured; None where they are measured."""
        return None if self.bench is not None else self.target.cannot_measure()

    def device(self) -> str | None:
        """What latencies are measured on, None where they are predicted: those of two devices are never pooled."""
        if self.cannot_measure() is not None:
            return None
        facts = (self.bench or LocalBench(self.target)).facts()
        return str(facts["versions"].get("device", facts["cpu"]["model"]))

    @property
    def shared_cache(self) -> Path:
        """Folder of what is named by its content (prices, coded tensors, measurements): other runs may use it too."""
        return self.settings.cache or self.run.cache

    def survey_order(self) -> Order:
        """What the survey prices, and where it writes."""
        return Order(
            workload=self.workload,
            network=self.network,
            space=self.space,
            profile=self.target.profile,
            calibration=self.calibration,
            sensitivity=self.settings.spend.sensitivity,
            cache=self.run.cache,
            shared=self.shared_cache,
            seed=self.settings.seed,
        )


def open_session(
    settings: Settings,
    run: RunFolder,
    *,
    workload: Workload | None = None,
    progress: Progress | None = None,
    bench: Bench | None = None,
    elsewhere: bool = False,
) -> Session:
    """Load the workload (unless given), trace the network, open target and space.

    Args:
        settings: the run's settings.
        run: the run folder.
        workload: given where the caller's own objects are searched.
        progress: receives notes.
        bench: where latencies are measured, see :class:`Session`.
        elsewhere: the device of the settings is another machine's: where there is none here, the CPU does.

    Raises:
        AutocompError: of whatever cannot be loaded or is not there.
    """
    progress = progress or Silent()
    scoring = _scoring(settings, progress, elsewhere)  # first: a device that is missing is said before models load
    target = load_target(settings.target)
    if workload is None:
        workload = load_workload(settings, progress)
    network = build_network(workload.model, workload.example())
    _check_runs(network, workload, scoring)
    coupling = cache(partial(stored_coupling, network, settings.cache or run.cache))
    space = load_space(settings.space, network, target.profile, coupling)
    images = workload.calibration.head(settings.spend.calibration)
    calibration = [inputs for inputs, _ in images.batches(CALIBRATION_BATCH)]
    return Session(
        settings=settings,
        run=run,
        workload=workload,
        network=network,
        target=target,
        space=space,
        coupling=coupling,
        calibration=calibration,
        bench=bench,
        scoring=scoring,
    )


def _check_runs(network: Network, workload: Workload, device: torch.device) -> None:
    """Refuse a network that does not run on ``device``: before the survey, and not once for each candidate.

    Raises:
        UnsupportedError: with what torch said.
    """
    if device == CPU:
        return
    try:
        with torch.inference_mode():
            uncompressed(network).to(device)(workload.example().to(device))
    except EXPORT_ERRORS as error:
        raise UnsupportedError(
            f"--device {device}: {workload.name} does not run there ({one_line(error)}); take --device cpu"
        ) from error


def _scoring(settings: Settings, progress: Progress, elsewhere: bool) -> torch.device:
    try:
        return scoring_device(settings.device)
    except UnsupportedError as error:
        if not elsewhere:
            raise
        progress.note(f"this program scores on the CPU: {error}")
        return CPU
