"""``--finish none``: finalists stay as the search made them."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from autocomp.core.compressed import CompressedModel
from autocomp.core.network import Network
from autocomp.core.progress import Progress
from autocomp.finish import Finished
from autocomp.transforms.statistics import FloatStatistics


def finish(
    network: Network,
    compressed: CompressedModel,
    batches: Sequence[Tensor],
    *,
    float_statistics: FloatStatistics | None = None,
    progress: Progress | None = None,
    step_factor: float = 1.0,
    seed: int = 0,
) -> Finished:
    """``compressed`` itself."""
    return Finished(compressed=compressed)
