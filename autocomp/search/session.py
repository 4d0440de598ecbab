"""Everything an evaluation needs, opened once a process: workload, network, target, space."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from autocomp.core.candidate import Candidate
from autocomp.core.hardware import Target
from autocomp.core.network import Network
from autocomp.core.progress import Progress, Silent
from autocomp.core.run_folder import RunFolder
from autocomp.core.settings import Settings
from autocomp.core.space import SearchSpace
from autocomp.core.workload import Workload
from autocomp.graph.placement import quantized_values
from autocomp.graph.trace import build_network
from autocomp.runtimes._profiles import load_target
from autocomp.survey.space_file import load_space
from autocomp.transforms.quantize import QuantizeActivations
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
        calibration: calibration inputs in batches [n, ...] float32.
    """

    settings: Settings
    run: RunFolder
    workload: Workload
    network: Network
    target: Target
    space: SearchSpace
    calibration: Sequence[torch.Tensor]

    def int8_layers(self, candidate: Candidate) -> dict[str, str]:
        """Layer → calibrator for the layers that ``candidate`` executes in int8."""
        layers = {}
        for unit in self.space.units.values():
            step = candidate[unit.name].get("activations")
            if isinstance(step, QuantizeActivations):
                layers.update(dict.fromkeys(unit.layers, step.calibrator))
        return layers

    def activation_values(self, candidate: Candidate) -> dict[str, str]:
        """Value → calibrator for the values that ``candidate`` quantizes on this target."""
        if self.network.graph is None:
            return {}
        return quantized_values(self.network, self.int8_layers(candidate), self.target.profile.placement)


def open_session(
    settings: Settings, run: RunFolder, *, workload: Workload | None = None, progress: Progress | None = None
) -> Session:
    """Load the workload (unless given), trace the network, open target and space."""
    target = load_target(settings.target)
    progress = progress or Silent()
    if workload is None:
        workload = load_workload(settings, progress)
    network = build_network(workload.model, workload.example())
    space = load_space(settings.space, network, target.profile)
    images = workload.calibration.head(settings.spend.calibration)
    calibration = [inputs for inputs, _ in images.batches(CALIBRATION_BATCH)]
    return Session(
        settings=settings,
        run=run,
        workload=workload,
        network=network,
        target=target,
        space=space,
        calibration=calibration,
    )
