"""What a survey has to price, on what, and where its results lie: read by every process that takes part."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from autocomp.core.hardware import HardwareProfile
from autocomp.core.network import Network
from autocomp.core.space import SearchSpace
from autocomp.core.steps import Choice
from autocomp.core.workload import Workload
from autocomp.errors import DataError
from autocomp.survey.database import readable
from autocomp.survey.execution import executed_units
from autocomp.survey.keys import execution_key, settings_key, structure_key, unit_key
from autocomp.survey.structure import structure_choices


@dataclass(frozen=True, kw_only=True, eq=False)
class Order:
    """A survey to be made, or made in part.

    Attributes:
        workload: gives the number of classes and what the file's manifest says.
        network: folded and traced from the workload's model.
        space: what to price.
        profile: gives the placement of activation quantizers.
        calibration: inputs [n, ...] in batches, for Hessians, statistics and ranges.
        sensitivity: logit changes are measured on the first so many of them.
        cache: the run's folder; the index of the results goes there.
        shared: folder of the results, named by what they depend on: other runs may use it at the same time;
            default: ``cache``.
        seed: of the sketch and of sampled positions.

    Raises:
        DataError: no calibration images.
    """

    workload: Workload
    network: Network
    space: SearchSpace
    profile: HardwareProfile
    calibration: Sequence[Tensor]
    sensitivity: int
    cache: Path
    shared: Path | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if not sum(len(batch) for batch in self.calibration):
            raise DataError("no calibration images; give at least one")

    @cached_property
    def images(self) -> Tensor:
        """All calibration inputs."""
        return torch.cat(list(self.calibration))

    @property
    def few(self) -> Tensor:
        """Those that logit changes are measured on."""
        return self.images[: self.sensitivity]

    @property
    def folder(self) -> Path:
        """Of the results."""
        return (self.shared or self.cache) / "survey"

    @cached_property
    def _key(self) -> str:
        return settings_key(self.workload, self.network, self.images, len(self.few), self.seed)

    @cached_property
    def units(self) -> Mapping[str, Path]:
        """Unit → file of its tensors and prices."""
        units = self.space.units.values()
        return {u.name: self.folder / f"{unit_key(self._key, self.network, u)}.unit" for u in units}

    @cached_property
    def choices(self) -> Mapping[str, list[Choice]]:
        """Unit → the ways to store its weights."""
        return {unit.name: self.space.storage_choices(unit) for unit in self.space.units.values()}

    @cached_property
    def structural(self) -> Mapping[str, tuple[Choice, ...]]:
        """ "<unit>:<axis>" → choices of a structural decision."""
        return structure_choices(self.space)

    @cached_property
    def structures(self) -> Mapping[str, Path]:
        """ "<unit>:<axis>" → file of its prices."""
        return {
            n: self.folder / f"{structure_key(self._key, self.network, self.space, n)}.unit" for n in self.structural
        }

    @cached_property
    def execution(self) -> Path | None:
        """File of the prices of integer execution; None where the space has none."""
        if not executed_units(self.space):
            return None
        return self.folder / f"{execution_key(self._key, self.network, self.space, self.profile)}.unit"

    def missing_units(self) -> dict[str, list[Choice]]:
        """Unit → choices that are not priced yet; units without any are left out."""
        found = {name: _missing(self.units[name], choices) for name, choices in self.choices.items()}
        return {name: choices for name, choices in found.items() if choices}

    def missing_structures(self) -> list[str]:
        """Structural decisions that are not priced yet."""
        return [name for name, choices in self.structural.items() if _missing(self.structures[name], choices)]

    def missing_execution(self) -> bool:
        """Whether integer execution has to be priced."""
        return self.execution is not None and readable(self.execution) is None

    def total(self) -> int:
        """Prices in all."""
        return len(self.units) + len(self.structural) + (self.execution is not None)


def _missing(path: Path, choices: Sequence[Choice]) -> list[Choice]:
    """Choices that the file does not hold."""
    file = readable(path)
    return [c for c in choices if file is None or c.key() not in file]
