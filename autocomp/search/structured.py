"""One structure of the network: its layers and values, and what candidates of it are made from."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from functools import cached_property
from typing import Protocol

from torch import Tensor

from autocomp.core.candidate import Candidate
from autocomp.core.compressed import ActivationQuantizer, CompressedModel
from autocomp.core.encodings import Encoding
from autocomp.core.hardware import Placement
from autocomp.core.network import Network
from autocomp.core.space import SearchSpace
from autocomp.core.steps import FLOAT, Choice
from autocomp.core.variant import Variant
from autocomp.graph.placement import quantized_values
from autocomp.runtimes.export import OnnxExporter
from autocomp.transforms.calibrate import calibrate_activations
from autocomp.transforms.quantize import QuantizeActivations
from autocomp.transforms.statistics import FloatStatistics, restore_statistics
from autocomp.transforms.stitch import stitch


class TensorSource(Protocol):
    """Where tensors come from: the survey's database, or made on demand."""

    def lookup(self, unit: str, choice: Choice) -> Mapping[str, Encoding]:
        """State-dict key → encoding of a storage choice."""
        ...

    def records(self, unit: str, choice: Choice) -> Mapping[str, bytes]:
        """State-dict key → coded tensor of the same."""
        ...


def unit_layers(variant: Variant, space: SearchSpace) -> dict[str, tuple[str, ...]]:
    """Unit → the layers it has in a structure, in order of execution."""
    parts = variant.parts()
    return {u.name: tuple(p for n in u.layers for p in parts.get(n, ())) for u in space.units.values()}


class Structured:
    """A structure and its caches. Decides nothing.

    Args:
        variant: the network of this structure.
        space: names the units.
        placement: of the target's activation quantizers.
        source: tensors by (unit, storage choice).
        restoring: calibration batches that statistics are restored on.
        calibration: calibration batches that activation ranges come from.
        quantizers: ranges known already, by value key and precision.
        base: the unchanged network's; None: this is it.
    """

    def __init__(
        self,
        variant: Variant,
        space: SearchSpace,
        placement: Placement,
        source: TensorSource,
        *,
        restoring: Sequence[Tensor],
        calibration: Sequence[Tensor],
        quantizers: Mapping[tuple[str, str], ActivationQuantizer] | None = None,
        base: Structured | None = None,
    ) -> None:
        self.variant, self.space, self.placement, self.source = variant, space, placement, source
        self._restoring, self._calibration = restoring, calibration
        self._quantizers = dict(quantizers or {})
        self._base = base

    @property
    def network(self) -> Network:
        """Folded float32 network of this structure."""
        return self.variant.network

    @cached_property
    def layers(self) -> dict[str, tuple[str, ...]]:
        """Unit → the layers it has in this structure."""
        return unit_layers(self.variant, self.space)

    @cached_property
    def float_statistics(self) -> FloatStatistics:
        """What each layer should put out: the unchanged network's own statistics, for the channels that are left."""
        own = FloatStatistics.of(self.network, self._restoring)
        if self._base is None:
            return own
        targets = self._base.float_statistics
        mean, std = dict(own.mean), dict(own.std)
        for name, origin in self.variant.origins.items():
            if origin.inner or origin.layer not in targets.mean:
                continue
            kept = slice(None) if origin.outputs is None else origin.outputs
            mean[name], std[name] = targets.mean[origin.layer][kept], targets.std[origin.layer][kept]
        return FloatStatistics(mean=mean, std=std, images=own.images)

    @cached_property
    def exporter(self) -> OnnxExporter:
        """Skeleton exported once."""
        return OnnxExporter(self.network, like=None if self._base is None else self._base.exporter)

    @cached_property
    def uncompressed(self) -> CompressedModel:
        """The float32 network of this structure."""
        return stitch(self.network, Candidate({}), self.source.lookup).replace(edits=self.variant.edits)

    def executed_layers(self, candidate: Candidate) -> dict[str, QuantizeActivations]:
        """Layer → step for the layers that ``candidate`` asks to execute in 8 bits."""
        layers = {}
        for unit, names in self.layers.items():
            step = candidate[unit].get("activations")
            if isinstance(step, QuantizeActivations):
                layers.update(dict.fromkeys(names, step))
        return layers

    def activation_values(self, candidate: Candidate) -> dict[str, QuantizeActivations]:
        """Value → step for the values that ``candidate`` quantizes on this target."""
        if self.network.graph is None:
            return {}
        return quantized_values(self.network, self.executed_layers(candidate), self.placement)

    def quantizers(self, values: Mapping[str, QuantizeActivations]) -> dict[str, ActivationQuantizer]:
        """Value → quantizer, calibrated on the float network of this structure where not known yet."""
        missing = {k: step for k, step in values.items() if (k, step.precision) not in self._quantizers}
        if missing:
            made = calibrate_activations(self.network, missing, self._calibration, symmetric=self.placement.symmetric)
            self._quantizers.update({(k, q.precision): q for k, q in made.items()})
        return {k: self._quantizers[k, step.precision] for k, step in values.items()}

    def realise(self, candidate: Candidate) -> CompressedModel:
        """The candidate's tensors and quantizers, statistics re-estimated on the calibration images."""
        compressed = stitch(self.network, Candidate(self.by_unit(candidate)), self.source.lookup)
        compressed = compressed.replace(candidate=candidate, edits=self.variant.edits)
        compressed = restore_statistics(self.network, compressed, self._restoring, self.float_statistics)
        return compressed.replace(activations=self.quantizers(self.activation_values(candidate)))

    def by_unit(self, candidate: Candidate) -> dict[str, Choice]:
        """Unit → storage choice, for units that have one."""
        chosen = {u: candidate[u].storage() for u in self.space.units}
        return {u: c for u, c in chosen.items() if c != FLOAT}

    def by_layer(self, candidate: Candidate) -> Candidate:
        """The same choices by the layers of this structure."""
        return Candidate({name: candidate[unit] for unit, names in self.layers.items() for name in names})

    def records(self, candidate: Candidate) -> dict[str, bytes]:
        """Coded tensors that the candidate's own symbols can be taken from."""
        known: dict[str, bytes] = {}
        for unit, choice in self.by_unit(candidate).items():
            known.update(self.source.records(unit, choice))
        return known

    def executes(self, compressed: CompressedModel, asked: Collection[str]) -> dict[str, str]:
        """Layer → "int8", "float8", "int4" or the target's float type: how its weights reach the engine."""
        return self.exporter.executes(compressed, self.placement, asked)
