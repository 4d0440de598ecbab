"""Where the tiny workload lies; shared by the end-to-end tests."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).parent


@dataclass(frozen=True)
class Tiny:
    """Paths of the tiny workload.

    Attributes:
        model: model spec.
        weights: safetensors file.
        data: data spec.
    """

    model: str
    weights: Path
    data: str

    @property
    def arguments(self) -> list[str]:
        """What the command line needs to find it."""
        return [self.model, "--weights", str(self.weights), "--data", self.data, "--normalize", "none"]
