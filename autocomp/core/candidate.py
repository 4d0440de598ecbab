"""A candidate: one choice for each unit."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from functools import cache, cached_property
from typing import Any

from autocomp.core.steps import FLOAT, Choice

_quoted = cache(json.dumps)
"""Names of units, over and over."""


class Candidate(Mapping[str, Choice]):
    """Frozen map unit → choice. Units left in float are the same whether named or not.

    Args:
        choices: unit name to choice; float choices are dropped, so equal networks have equal ids.
    """

    def __init__(self, choices: Mapping[str, Choice]) -> None:
        self._choices = {u: c for u, c in sorted(choices.items()) if c != FLOAT}

    def __getitem__(self, unit: str) -> Choice:
        return self._choices.get(unit, FLOAT)

    def __contains__(self, unit: object) -> bool:
        return unit in self._choices

    def __iter__(self) -> Iterator[str]:
        return iter(self._choices)

    def __len__(self) -> int:
        return len(self._choices)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Candidate) and self._choices == other._choices

    def __hash__(self) -> int:
        return hash(self.id)

    def __repr__(self) -> str:
        return f"Candidate({self.id}: {', '.join(f'{u}={c.label()}' for u, c in self.items())})"

    @cached_property
    def id(self) -> str:
        """First 16 hex digits of SHA-256 of the canonical JSON."""
        text = "{" + ",".join(f"{_quoted(u)}:{c.key()}" for u, c in self._choices.items()) + "}"
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def replace(self, changes: Mapping[str, Choice]) -> Candidate:
        """A new candidate with some units decided otherwise."""
        return Candidate({**self._choices, **changes})

    def structure(self) -> Candidate:
        """The part that changes the network itself: candidates with equal parts share their layers."""
        return self._structure

    @cached_property
    def _structure(self) -> Candidate:
        return Candidate({u: c.structure() for u, c in self._choices.items()})

    def techniques(self) -> list[str]:
        """Names of the techniques really used, sorted."""
        return sorted({s.kind for c in self._choices.values() for s in c.steps})

    def to_json(self) -> dict[str, Any]:
        return {u: c.to_json() for u, c in self._choices.items()}

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> Candidate:
        return Candidate({u: Choice.from_json(c) for u, c in data.items()})
