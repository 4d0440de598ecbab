"""Tensors of one structure's layers in any storage choice, made when they are first asked for."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from autocomp.coding.tensors import encode_tensor
from autocomp.core.encodings import Encoding
from autocomp.core.network import Network
from autocomp.core.steps import Choice
from autocomp.survey.database import Database
from autocomp.survey.kept import Kept
from autocomp.transforms.compensate import Hessian
from autocomp.transforms.problem import LayerProblem
from autocomp.transforms.weights import compress_layer, rounds_to_nearest


@dataclass(kw_only=True, eq=False)
class OnDemand:
    """Encodings by (unit, storage choice) of a network that was not surveyed.

    Attributes:
        network: of one structure.
        units: unit → its layers in ``network``.
        hessians: of the layers' inputs.
        seed: of sampled positions and of random initial values.
        kept: tensors made before.
    """

    network: Network
    units: Mapping[str, tuple[str, ...]]
    hessians: Callable[[str], Hessian | None]
    seed: int = 0
    kept: Kept = field(default_factory=lambda: Kept(1 << 28), repr=False)
    _records: dict[tuple[str, str], dict[str, bytes]] = field(default_factory=dict, init=False, repr=False)

    def lookup(self, unit: str, choice: Choice) -> dict[str, Encoding]:
        """State-dict key → encoding of the weights of all the unit's layers."""
        found = self.kept.get(unit, choice)
        if found is None:
            found = {}
            for name in self.units[unit]:
                hessian = None if rounds_to_nearest(choice) else self.hessians(name)
                problem = LayerProblem.of(self.network, name, hessian=hessian, seed=self.seed)
                found[self.network.layers[name].weight] = compress_layer(problem, [choice])[0]
            self.kept.put(unit, choice, found)
        return found

    def records(self, unit: str, choice: Choice) -> dict[str, bytes]:
        """State-dict key → coded tensor."""
        key = (unit, choice.key())
        if key not in self._records:
            self._records[key] = {name: encode_tensor(e) for name, e in self.lookup(unit, choice).items()}
        return self._records[key]


@dataclass(frozen=True, kw_only=True, eq=False)
class Surveyed:
    """The survey's tensors where a choice was priced, else made on demand (baselines).

    Attributes:
        database: what the survey made.
        rest: makes the others.
    """

    database: Database
    rest: OnDemand

    def lookup(self, unit: str, choice: Choice) -> dict[str, Encoding]:
        """State-dict key → encoding."""
        return (self.database if self.database.has(unit, choice) else self.rest).lookup(unit, choice)

    def records(self, unit: str, choice: Choice) -> dict[str, bytes]:
        """State-dict key → coded tensor."""
        return (self.database if self.database.has(unit, choice) else self.rest).records(unit, choice)
