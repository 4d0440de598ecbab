"""Ranges of activations: what 8-bit grid each value gets, from what it is on the calibration images."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, fx

from autocomp.core.compressed import ActivationQuantizer, CompressedModel
from autocomp.core.encodings import E4M3_MAX, SCALE_BITS, round_e4m3
from autocomp.core.network import Network
from autocomp.errors import DataError, UnsupportedError
from autocomp.graph.program import Program
from autocomp.transforms.observe import image_chunks
from autocomp.transforms.quantize import QuantizeActivations

BINS = 2048
PERCENTILE = 99.99

_SAMPLED = 1 << 20  # elements of a value in one chunk that enter its histogram; the range sees all
_ENTROPY_STRIDE = 16  # bins between the thresholds tried

Range = tuple[float, float]


def calibrate_activations(
    network: Network,
    values: Mapping[str, QuantizeActivations],
    batches: Sequence[Tensor],
    *,
    symmetric: bool = False,
    compressed: CompressedModel | None = None,
) -> dict[str, ActivationQuantizer]:
    """Quantizers of ``values``, from one run on float activations.

    Grids: uint8 with zero point 0 for values that are never negative, uint8 with a free zero point for
    others; int8 with zero point 0 for all where ``symmetric``. Every range holds zero, so that padding and
    ReLU stay exact. float8 has one scale and no zero point everywhere.

    Args:
        network: folded network with a graph.
        values: value key → precision, and "minmax", "percentile" (99.99 %), "mse" or "entropy" (Migacz 2017).
        batches: calibration inputs [n, ...].
        symmetric: what the target wants.
        compressed: run with its weights (its own quantizers are not used); None: the float network's.

    Raises:
        UnsupportedError: the network has no graph.
        DataError: no images, or a value that is not finite (named).
    """
    if not values:
        return {}
    if network.graph is None:
        raise UnsupportedError(f"activations cannot be quantized without a graph ({network.no_graph})")
    program = Program(network.graph)
    nodes = {node.name: node for node in program.nodes}
    observers = {
        nodes[network.values[key].node]: ValueObserver(key, step, symmetric=symmetric) for key, step in values.items()
    }
    tensors = {} if compressed is None else {key: e.decode() for key, e in compressed.tensors.items()}
    chunks = image_chunks(network, batches)

    def look(method: Callable[[ValueObserver, Tensor], None], which: Mapping[fx.Node, ValueObserver]) -> None:
        hooks = {node: lambda _n, result, o=observer: method(o, result) for node, observer in which.items()}
        for chunk in chunks:
            program.watch(chunk, hooks, tensors=tensors)

    with torch.inference_mode():
        if len(chunks) == 1:
            look(ValueObserver.see_all, observers)
        else:
            look(ValueObserver.see_range, observers)
            look(ValueObserver.see_values, {n: o for n, o in observers.items() if o.needs_histogram})
        return {observer.key: observer.quantizer() for observer in observers.values()}


class ValueObserver:
    """Range and histogram of one value.

    Args:
        key: the value's name, for messages.
        step: precision and calibrator.
        symmetric: int8 with zero point 0 is wanted. Then, and for float8, the histogram is of magnitudes.
    """

    def __init__(self, key: str, step: QuantizeActivations, *, symmetric: bool) -> None:
        self.key, self._calibrator = key, step.calibrator
        self._float8 = step.precision == "float8"
        self._symmetric = symmetric or self._float8
        self._low = self._high = 0.0
        self._histogram = torch.zeros(BINS, dtype=torch.float64)

    @property
    def needs_histogram(self) -> bool:
        """Whether the range alone is not enough."""
        return self._calibrator != "minmax"

    def see_range(self, value: Tensor) -> None:
        """Widen the range by ``value`` (any shape)."""
        low, high = (float(v) for v in torch.aminmax(value))
        if not (math.isfinite(low) and math.isfinite(high)):
            raise DataError(f"value {self.key} is not finite on the calibration images; check data and weights")
        self._low, self._high = min(self._low, low), max(self._high, high)

    def see_values(self, value: Tensor) -> None:
        """Count ``value`` into the histogram; its range must have been seen."""
        low, high = self._span()
        if high <= low:
            return
        flat = value.flatten()
        stride = -(-flat.numel() // _SAMPLED) | 1  # odd: does not beat against powers of two
        flat = flat[::stride].float()
        self._histogram += torch.histc(flat.abs() if self._symmetric else flat, BINS, low, high).double()

    def see_all(self, value: Tensor) -> None:
        """Range and histogram of a value that comes in one piece."""
        self.see_range(value)
        if self.needs_histogram:
            self.see_values(value)

    def _span(self) -> Range:
        """What the histogram covers; it always holds zero."""
        return (0.0, max(-self._low, self._high)) if self._symmetric else (self._low, self._high)

    def quantizer(self) -> ActivationQuantizer:
        """The grid that the calibrator chooses."""
        low, high = self._span()
        if high > low and self.needs_histogram and float(self._histogram.sum()) > 0:
            mse = float8_range if self._float8 else mse_range
            choose = {"percentile": percentile_range, "mse": mse, "entropy": entropy_range}[self._calibrator]
            low, high = choose(self._histogram, low, high, 128 if self._symmetric else 256)
        if self._float8:
            return ActivationQuantizer.float8(_scale(max(-low, high) / E4M3_MAX))
        return quantizer_for(low, high, symmetric=self._symmetric)


def quantizer_for(low: float, high: float, *, symmetric: bool) -> ActivationQuantizer:
    """The 8-bit grid over [low, high] (widened to hold zero)."""
    low, high = min(low, 0.0), max(high, 0.0)
    if symmetric:
        return ActivationQuantizer(scale=_scale(max(-low, high) / 127), zero_point=0, low=-128, high=127)
    scale = _scale((high - low) / 255)
    zero_point = min(255, max(0, round(-low / scale)))
    return ActivationQuantizer(scale=scale, zero_point=zero_point, low=0, high=255)


def _scale(value: float) -> float:
    """``value`` with as many significant bits as scales of weights have, rounded up so that the range is covered.

    1 for a range that is empty (or too small to divide by).
    """
    if value <= 1e-30:
        return 1.0
    mantissa, exponent = math.frexp(value)
    return math.ldexp(math.ceil(mantissa * 2**SCALE_BITS), exponent - SCALE_BITS)


def percentile_range(histogram: Tensor, low: float, high: float, levels: int) -> Range:
    """The range that leaves out (100 − 99.99) % of the elements at each end that is not zero."""
    share = histogram.cumsum(0) / histogram.sum()
    width = (high - low) / BINS
    outside = 1 - PERCENTILE / 100
    top = low + width * (int(torch.searchsorted(share, 1 - outside)) + 1)
    bottom = low + width * int(torch.searchsorted(share, outside)) if low < 0 else 0.0
    return min(bottom, 0.0), min(max(top, 0.0), high)


def mse_range(histogram: Tensor, low: float, high: float, levels: int) -> Range:
    """The range with the least squared error of rounding and clipping; ``levels`` steps lie in it."""
    centres = low + (torch.arange(BINS, dtype=torch.float64) + 0.5) * (high - low) / BINS
    best, least = (low, high), math.inf

    def attempt(lows: Tensor, highs: Tensor) -> None:
        nonlocal best, least
        scale = ((highs - lows) / (levels - 1)).clamp_min(1e-300)[:, None]
        symbols = (centres / scale).round().clamp((lows[:, None] / scale).round(), (highs[:, None] / scale).round())
        errors = ((symbols * scale - centres).square() * histogram).sum(1)
        i = int(errors.argmin())
        if float(errors[i]) < least:
            best, least = (float(lows[i]), float(highs[i])), float(errors[i])

    ratios = torch.linspace(1, 0.05, 96, dtype=torch.float64)
    attempt(ratios * low, ratios * high)
    for _ in range(2 if low < 0 < high else 0):  # then each end by itself
        attempt(best[0] * torch.ones_like(ratios), ratios * high)
        attempt(ratios * low, best[1] * torch.ones_like(ratios))
    return best


def float8_range(histogram: Tensor, low: float, high: float, levels: int) -> Range:
    """The range [0, h] of magnitudes that E4M3 holds with the least squared error of rounding and clipping."""
    centres = (torch.arange(BINS, dtype=torch.float32) + 0.5) * (high / BINS)
    tops = high * torch.linspace(1, 0.05, 96)
    scales = (tops / E4M3_MAX).clamp_min(1e-30)[:, None]
    errors = ((round_e4m3(centres / scales) * scales - centres).square().double() * histogram).sum(1)
    return 0.0, float(tops[int(errors.argmin())])


def entropy_range(histogram: Tensor, low: float, high: float, levels: int) -> Range:
    """The range whose quantized distribution has the least KL divergence from the clipped one.

    Source: Migacz, "8-bit inference with TensorRT" (2017). Where zero lies inside the range both ends
    shrink by the same ratio.
    """
    counts = histogram.clone()
    zero = 0 if low >= 0 else min(BINS - 1, int(-low / (high - low) * BINS))
    # a value behind ReLU is zero more often than not; that bin is exact on every grid and says nothing
    counts[zero] = counts[zero + 1 if zero + 1 < BINS else zero - 1]
    if float(counts.sum()) == 0:
        return low, high
    best, least = (low, high), math.inf
    for size in range(levels, BINS + 1, _ENTROPY_STRIDE):
        ratio = size / BINS
        start = round((low * ratio - low) / (high - low) * BINS)
        divergence = _clipped_divergence(counts, start, min(start + size, BINS), levels)
        if divergence <= least:
            least, best = divergence, (low * ratio, high * ratio)
    return best


def _clipped_divergence(counts: Tensor, start: int, stop: int, levels: int) -> float:
    """KL(P ‖ Q) in nats: P is bins ``start`` to ``stop`` with the outliers added to the end bins, Q their
    inside merged into ``levels`` levels and spread out again over the bins that are not empty."""
    inside = counts[start:stop]
    reference = inside.clone()
    reference[0] += counts[:start].sum()
    reference[-1] += counts[stop:].sum()
    group = torch.arange(len(inside)) * levels // len(inside)
    filled = (inside > 0).double()
    mass = torch.zeros(levels, dtype=torch.float64).index_add_(0, group, inside)
    number = torch.zeros(levels, dtype=torch.float64).index_add_(0, group, filled)
    merged = (mass / number.clamp_min(1))[group] * filled
    if float(merged.sum()) == 0:
        return math.inf
    p = reference / reference.sum()
    q = (merged / merged.sum()).clamp_min(1e-9)
    return float((p * (p.clamp_min(1e-300) / q).log()).sum())
