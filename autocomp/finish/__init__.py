"""Recovering a finalist: each module here is one value of ``--finish`` and has one function ``finish``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, cast

from autocomp.core import plugins
from autocomp.errors import UnsupportedError

if TYPE_CHECKING:
    from torch import Tensor

    from autocomp.core.compressed import CompressedModel
    from autocomp.core.network import Network
    from autocomp.core.progress import Progress
    from autocomp.transforms.statistics import FloatStatistics

_LATER = {"qat": "--finish qat comes in a later version; use ptq"}


@dataclass(frozen=True, kw_only=True)
class LayerFit:
    """How far a layer's output is from the float network's, on the calibration images.

    Attributes:
        layer: its name.
        before, after: mean squared error as a fraction of the output's variance, with the candidate's
            weight and with the finished one, each on the finished network's own inputs and with the best bias.
    """

    layer: str
    before: float
    after: float


@dataclass(frozen=True, kw_only=True, eq=False)
class Finished:
    """What a finisher made. Nobody promises that it is better: the caller scores both and keeps one.

    Attributes:
        compressed: the new model; its activation ranges are the candidate's, calibrate them again.
        layers: what was refitted, in order of execution.
        notes: one line each: layers left as they were and why, images left out for memory.
    """

    compressed: CompressedModel
    layers: tuple[LayerFit, ...] = ()
    notes: tuple[str, ...] = ()


class Finish(Protocol):
    """Signature of ``finish`` in each plugin."""

    def __call__(
        self,
        network: Network,
        compressed: CompressedModel,
        batches: Sequence[Tensor],
        *,
        float_statistics: FloatStatistics | None = None,
        progress: Progress | None = None,
        step_factor: float = 1.0,
        seed: int = 0,
    ) -> Finished:
        """Recover ``compressed`` on calibration inputs ``batches``.

        Args:
            network: folded float network.
            compressed: the finalist; untouched.
            batches: calibration inputs [n, ...].
            float_statistics: of the same images, measured here where None.
            progress: told of each layer.
            step_factor: widens the steps of step grids, for a file that came out over budget.
            seed: of what is random.
        """
        ...


def find_finish(name: str) -> Finish:
    """The finisher that ``--finish NAME`` means.

    Raises:
        UnsupportedError: one that comes later.
        UnknownNameError: one that nobody knows.
    """
    if name in _LATER and name not in plugins.names(__name__):
        raise UnsupportedError(_LATER[name])
    return cast(Finish, plugins.find(__name__, "finish", name).finish)
