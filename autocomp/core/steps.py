"""Settings of one compression step for one unit, as frozen values with a canonical form."""

from __future__ import annotations

import dataclasses
import functools
import importlib
import json
import pkgutil
from typing import Any, ClassVar

from autocomp.errors import UnknownNameError


@dataclasses.dataclass(frozen=True, kw_only=True)
class StepConfig:
    """One legal setting of one technique. Subclasses live beside the transform that applies them.

    Class attributes:
        kind: name of the technique and its JSON tag ("quantize_weights").
        axis: the decision it answers ("weights", "activations", later "prune", "rank", ...);
            a choice holds at most one step an axis.
        order: place in the legal recipe order (prune 10, factorise 20, sparsify 30, quantise or
            share 40, activations 50).
    """

    kind: ClassVar[str] = ""
    axis: ClassVar[str] = ""
    order: ClassVar[int] = 0
    registry: ClassVar[dict[str, type[StepConfig]]] = {}

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if cls.kind:
            StepConfig.registry[cls.kind] = cls

    def label(self) -> str:
        """Short text for tables, unique within its axis ("4b", "k0.5", "int8")."""
        return self.kind

    def to_json(self) -> dict[str, Any]:
        """Canonical JSON object: ``kind`` and the fields that differ from their defaults."""
        out: dict[str, Any] = {"kind": self.kind}
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if value != field.default:
                out[field.name] = value
        return out

    @staticmethod
    def from_json(data: dict[str, Any]) -> StepConfig:
        """Inverse of :meth:`to_json`; unknown kinds raise :class:`UnknownNameError`."""
        _import_transforms()
        kind = str(data.get("kind"))
        cls = StepConfig.registry.get(kind)
        if cls is None:
            raise UnknownNameError("compression step", kind, StepConfig.registry)
        return cls(**{k: v for k, v in data.items() if k != "kind"})


def steps_on(axis: str) -> dict[str, type[StepConfig]]:
    """Kind → step type, for every technique that decides on ``axis``."""
    _import_transforms()
    return {kind: cls for kind, cls in sorted(StepConfig.registry.items()) if cls.axis == axis}


def _import_transforms() -> None:
    """Register every step kind: one file in ``autocomp/transforms`` is one plugin."""
    package = importlib.import_module("autocomp.transforms")
    for module in pkgutil.iter_modules(package.__path__):
        importlib.import_module(f"autocomp.transforms.{module.name}")


STRUCTURE_AXES = ("prune", "rank")
"""Axes that change the network itself: which channels there are, which layers."""

EXECUTION_AXES = ("activations",)
"""Axes that say how a layer is computed. All others say how its weights are stored."""


@dataclasses.dataclass(frozen=True)
class Choice:
    """One legal setting for a unit: its steps in recipe order. No step at all means float32."""

    steps: tuple[StepConfig, ...] = ()

    def __post_init__(self) -> None:
        ordered = tuple(sorted(self.steps, key=lambda s: (s.order, s.axis)))
        axes = [s.axis for s in ordered]
        if len(set(axes)) != len(axes):
            raise ValueError(f"two steps on one axis: {axes}")
        object.__setattr__(self, "steps", ordered)

    def get(self, axis: str) -> StepConfig | None:
        """The step on ``axis``, or None where the unit is left alone on it."""
        return next((s for s in self.steps if s.axis == axis), None)

    def only(self, *axes: str) -> Choice:
        """The part of this choice that lies on ``axes``."""
        return self._kept(tuple(s for s in self.steps if s.axis in axes))

    def without(self, *axes: str) -> Choice:
        """The part of this choice that does not lie on ``axes``."""
        return self._kept(tuple(s for s in self.steps if s.axis not in axes))

    def _kept(self, steps: tuple[StepConfig, ...]) -> Choice:
        return self if len(steps) == len(self.steps) else Choice(steps)

    def structure(self) -> Choice:
        """The part that changes the network itself."""
        return self.only(*STRUCTURE_AXES)

    def storage(self) -> Choice:
        """The part that says how the weights are stored."""
        return self.without(*STRUCTURE_AXES, *EXECUTION_AXES)

    def execution(self) -> Choice:
        """The part that says how the layer is computed."""
        return self.only(*EXECUTION_AXES)

    @property
    def precision(self) -> str | None:
        """What the layer executes in besides the target's float type: "int8" or "float8"; None: that alone."""
        return getattr(self.get("activations"), "precision", None)

    @property
    def kernels(self) -> tuple[str, ...]:
        """8-bit precisions whose kernels take the stored weights as they are."""
        found: tuple[str, ...] = getattr(self.get("weights"), "kernels", ())
        return found

    def label(self) -> str:
        """Text for tables: labels joined by '+', 'float' when empty."""
        return "+".join(s.label() for s in self.steps) or "float"

    def to_json(self) -> list[dict[str, Any]]:
        return [s.to_json() for s in self.steps]

    @staticmethod
    def from_json(data: list[dict[str, Any]]) -> Choice:
        return Choice(tuple(StepConfig.from_json(d) for d in data))

    def key(self) -> str:
        """Canonical text: equal choices have equal keys, on every machine."""
        return self._key

    @functools.cached_property
    def _key(self) -> str:
        return json.dumps(self.to_json(), sort_keys=True, separators=(",", ":"))


FLOAT = Choice()
