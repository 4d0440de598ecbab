"""Price tables of the shape that surveys give, from a random linear network."""

from __future__ import annotations

import numpy as np

from autocomp.core.prices import ManifestLine, Prices, PriceTable
from autocomp.core.space import SearchSpace, Unit
from autocomp.core.steps import FLOAT, Choice, StepConfig
from autocomp.transforms.quantize import QuantizeActivations, QuantizeWeights

STEPS = (0.1, 0.25, 0.5, 1.0, 1.8, 3.0)
OPTIONS: tuple[StepConfig | None, ...] = (
    None,
    QuantizeWeights(bits=16),
    QuantizeWeights(bits=8),
    *(QuantizeWeights(step=s) for s in STEPS),
)
BITS = np.array([32, 16, 7.06, 5.4, 4.05, 3.05, 2.1, 1.4, 0.7])


def make(units: int = 12, *, seed: int = 0, int8: bool = True) -> tuple[PriceTable, SearchSpace]:
    """A table and its space; sizes and sensitivities of the units differ by orders of magnitude."""
    rng = np.random.default_rng(seed)
    storage, execution, spaces = {}, {}, {}
    for u in range(units):
        name = f"layer{u:02d}"
        size = int(10 ** rng.uniform(3, 6))
        noise = np.array([0.0, 1e-4, 0.03, *STEPS]) * 10 ** rng.uniform(-1.3, -0.3)
        direction = rng.normal(size=(len(OPTIONS), 64)) + 0.3 * rng.normal(size=64)
        delta = (direction * noise[:, None] / 8).astype(np.float32)
        choices = tuple(Choice(()) if o is None else Choice((o,)) for o in OPTIONS)
        storage[name] = Prices(
            choices=choices,
            bytes=(BITS * size / 8).astype(np.int64) + 40,
            kl=0.5 * (delta.astype(np.float64) ** 2).sum(axis=1),
            delta=delta,
        )
        axes: dict[str, tuple[StepConfig | None, ...]] = {"weights": OPTIONS, "activations": (None,)}
        if int8:
            axes["activations"] = (None, QuantizeActivations())
            move = np.stack([np.zeros(64), rng.normal(size=64) * 0.003]).astype(np.float32)
            execution[name] = Prices(
                choices=(FLOAT, Choice((QuantizeActivations(),))),
                bytes=np.array([0, 17]),
                kl=0.5 * (move.astype(np.float64) ** 2).sum(axis=1),
                delta=move,
            )
        spaces[name] = Unit(name=name, layers=(name,), axes=axes)
    lines = tuple(ManifestLine(owners=(frozenset({f"{u}:int8"}),), bytes=17) for u in execution)
    prices = PriceTable(storage=storage, execution=execution, lines=lines, fixed_bytes=900)
    return prices, SearchSpace(name="t", units=spaces)
