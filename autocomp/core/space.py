"""The search space: units and their legal choices."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from autocomp.core.candidate import Candidate
from autocomp.core.steps import EXECUTION_AXES, FLOAT, STRUCTURE_AXES, Choice, StepConfig


@dataclass(frozen=True, kw_only=True)
class Unit:
    """The smallest thing the search decides on.

    Attributes:
        name: the layer's name (or the group's).
        layers: layers that change together.
        axes: axis name → legal options, None meaning "leave alone"; ordered so that neighbours in
            the list are neighbours in strength (the sampler sees an ordinal integer).
    """

    name: str
    layers: tuple[str, ...]
    axes: Mapping[str, tuple[StepConfig | None, ...]]

    def storage_axes(self) -> tuple[str, ...]:
        """Names of the axes that say how the weights are stored."""
        return tuple(a for a in self.axes if a not in STRUCTURE_AXES and a not in EXECUTION_AXES)

    def choices(self, *, axes: tuple[str, ...] | None = None) -> list[Choice]:
        """All combinations over ``axes`` (default: every axis), in order."""
        out = [FLOAT]
        for axis, options in self.axes.items():
            if axes is not None and axis not in axes:
                continue
            out = [Choice((*c.steps, o)) if o is not None else c for c in out for o in options]
        return list(dict.fromkeys(out))


def unit_and_axis(parameter: str) -> tuple[str, str]:
    """The two parts of a parameter's name "<unit>:<axis>"."""
    unit, _, axis = parameter.rpartition(":")
    return unit, axis


class Rules(Protocol):
    """What is legal together; decided from shapes, before anything is computed."""

    def reason(self, candidate: Candidate) -> str | None:
        """Why a candidate is illegal (one line), or None."""
        ...

    def legal(self, candidate: Candidate) -> Candidate:
        """The candidate without its illegal steps."""
        ...


@dataclass(frozen=True, kw_only=True)
class SearchSpace:
    """Units × legal choices, filtered by the hardware profile.

    Attributes:
        name: of the TOML file.
        units: by name, in order of execution.
        notes: what the profile ruled out, one line each.
        rules: what is legal together; None: everything that the options allow one by one.
    """

    name: str
    units: Mapping[str, Unit]
    notes: tuple[str, ...] = ()
    rules: Rules | None = None

    def storage_choices(self, unit: Unit) -> list[Choice]:
        """All legal ways to store a unit's weights, in order."""
        every = unit.choices(axes=unit.storage_axes())
        if self.rules is None:
            return every
        return [c for c in every if self.rules.reason(Candidate({unit.name: c})) is None]

    def parameters(self) -> dict[str, int]:
        """Optuna parameter name "<unit>:<axis>" → number of options; single options are left out."""
        return {
            f"{unit.name}:{axis}": len(options)
            for unit in self.units.values()
            for axis, options in unit.axes.items()
            if len(options) > 1
        }

    def decode(self, params: Mapping[str, int]) -> Candidate:
        """Parameters (option indices) → candidate; parameters not named take option 0.

        Steps that are illegal together with the others fall away, so several points may give one candidate.
        """
        choices = {}
        for unit, axes in self._axes.items():
            indices = tuple(int(params.get(name, 0)) for name, _ in axes)
            if (unit, indices) not in self._decoded:
                steps = (options[index] for index, (_, options) in zip(indices, axes, strict=True))
                self._decoded[unit, indices] = Choice(tuple(step for step in steps if step is not None))
            choices[unit] = self._decoded[unit, indices]
        candidate = Candidate(choices)
        return candidate if self.rules is None else self.rules.legal(candidate)

    def encode(self, candidate: Candidate) -> dict[str, int]:
        """Inverse of :meth:`decode`; ``ValueError`` where the candidate is outside the space."""
        params: dict[str, int] = {}
        for unit in self.units.values():
            choice = candidate[unit.name]
            known = (unit.name, choice.key())
            if known not in self._encoded:
                self._encoded[known] = self._indices(unit, choice)
            params |= self._encoded[known]
        return params

    def _indices(self, unit: Unit, choice: Choice) -> dict[str, int]:
        found = {}
        strange = {step.axis for step in choice.steps} - set(unit.axes)
        if strange:
            raise ValueError(f"{unit.name}: space {self.name} has no {min(strange)}")
        for axis, options in unit.axes.items():
            option = choice.get(axis)
            if option not in options:
                raise ValueError(f"{unit.name}: {axis} option not in space {self.name}")
            if len(options) > 1:
                found[f"{unit.name}:{axis}"] = options.index(option)
        return found

    # samplers ask the same few thousand times a suggestion

    @functools.cached_property
    def _axes(self) -> dict[str, list[tuple[str, tuple[StepConfig | None, ...]]]]:
        """Unit → its parameters' names and options."""
        return {u.name: [(f"{u.name}:{a}", o) for a, o in u.axes.items()] for u in self.units.values()}

    @functools.cached_property
    def _decoded(self) -> dict[tuple[str, tuple[int, ...]], Choice]:
        return {}

    @functools.cached_property
    def _encoded(self) -> dict[tuple[str, str], dict[str, int]]:
        return {}

    def __contains__(self, candidate: object) -> bool:
        if not isinstance(candidate, Candidate) or not set(candidate) <= set(self.units):
            return False
        try:
            self.encode(candidate)
        except ValueError:
            return False
        return self.rules is None or self.rules.reason(candidate) is None
