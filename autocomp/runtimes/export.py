"""Candidates as ONNX models with explicit Q/DQ: what ONNX Runtime, OpenVINO and TensorRT build engines from.

The float network is exported once; a candidate replaces initializers and inserts Q/DQ pairs, which takes
milliseconds. A quantized value has one Q/DQ pair for all its readers, as in the simulation.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Mapping
from functools import cached_property
from typing import Any

import numpy as np
import torch

from autocomp.core.compressed import ActivationQuantizer, CompressedModel
from autocomp.core.encodings import Float8Tensor, QuantizedTensor
from autocomp.core.hardware import Placement
from autocomp.core.network import Layer, Network
from autocomp.errors import UnsupportedError
from autocomp.graph.integers import fits_int4, grids, kernel_layers, layer_reads
from autocomp.graph.placement import may_run_8bit
from autocomp.runtimes._adapt import adapted
from autocomp.runtimes._float16 import to_float16
from autocomp.runtimes._graft import Graft
from autocomp.runtimes._skeleton import Skeleton, computes, export_skeleton

SYMBOLS = ("int8", "float8", "int4")
"""Precisions of layers whose weights reach the engine as symbols and scales."""


class OnnxExporter:
    """Exports candidates of one network. Input "input", output "output", batch axis free or fixed.

    Args:
        network: with a graph.
        like: exporter of the network that this one was made from by removing channels and factorising layers:
            its skeleton, adapted, serves where that is shown to compute the same.
    """

    def __init__(self, network: Network, *, like: OnnxExporter | None = None) -> None:
        if network.graph is None:
            raise UnsupportedError(f"this model cannot be exported to ONNX: {network.no_graph}")
        self.network = network
        self._like = like

    @cached_property
    def skeleton(self) -> Skeleton:
        """The exported network, made when first needed (seconds)."""
        known = None if self._like is None else adapted(self._like.skeleton, self._like.network, self.network)
        if known is not None:
            state = self.network.module.state_dict()
            tensors = {k: self._tensor(k, state).detach().numpy() for k in set(known.tensors.values())}
            model = Graft(known, tensors, {}, {}).model(None)
            if computes(model.SerializeToString(), self.network):
                return known
        return export_skeleton(self.network)

    def executes(
        self, compressed: CompressedModel, placement: Placement, layers: Collection[str] | None = None
    ) -> dict[str, str]:
        """Layer → "int8", "float8", "int4" or the placement's ``float_type``: how its weights reach the engine.

        A layer asked for 8 bits runs in those of its inputs. It stays float where its weights do not fit (for int8:
        float16, a zero point, symbols beyond ±127; for float8: numbers that E4M3 has not), its inputs are not
        quantized, or the target leaves it out. "int4" is weight-only: the layer computes in ``float_type``.

        Args:
            compressed: the candidate.
            placement: of the target.
            layers: layers asked for 8 bits; None: those whose choice holds an activation step.
        """
        if layers is None:
            layers = _asked(compressed)
        able = kernel_layers(self.network, compressed, grids(self.network, compressed.activations))
        found = dict.fromkeys(self.network.layers, placement.float_type)
        for name, layer in self.network.layers.items():
            if name in able and name in layers and may_run_8bit(layer, placement):
                found[name] = able[name]
            elif self._block_size(layer, compressed, placement):
                found[name] = "int4"
        return found

    def _block_size(self, layer: Layer, compressed: CompressedModel, placement: Placement) -> int:
        """Inputs that share a scale where the layer's weights can be written in 4 bits; else 0."""
        shared = [other for other in self.network.layers.values() if other.weight == layer.weight]
        if layer.kind != "linear" or len(shared) > 1 or not fits_int4(compressed.tensors.get(layer.weight)):
            return 0
        inputs = layer.weight_shape[1]
        # one block only would be a scale a channel, which TensorRT dequantizes in a kernel of its own
        return next((size for size in placement.int4_blocks if inputs > size and inputs % size == 0), 0)

    def export(
        self,
        compressed: CompressedModel,
        placement: Placement,
        layers: Collection[str] | None = None,
        batch_size: int | None = None,
    ) -> bytes:
        """The candidate as a serialized ONNX model.

        Args:
            compressed: the candidate.
            placement: of the target, which decides how all is written; a symmetric one takes int8 quantizers with
                zero point 0 only.
            layers: layers that execute in 8 bits where they can (see :meth:`executes`); None: those
                whose choice holds an activation step.
            batch_size: None: any.

        Raises:
            UnsupportedError: an operation that ONNX has not, quantizers the target does not take, or weights that
                the target's ``float_type`` cannot hold.
        """
        _check_placement(compressed, placement)
        executes = self.executes(compressed, placement, layers)
        state = self.network.module.state_dict()
        symbols: dict[str, QuantizedTensor | Float8Tensor] = {}
        types: dict[str, str] = {}
        blocks: dict[str, int] = {}
        for name, precision in executes.items():
            layer = self.network.layers[name]
            encoding = compressed.tensors.get(layer.weight)
            if precision in SYMBOLS and isinstance(encoding, QuantizedTensor | Float8Tensor):
                symbols[layer.weight], types[layer.weight] = encoding, precision
            if precision == "int4":
                blocks[layer.weight] = self._block_size(layer, compressed, placement)
        tensors: dict[str, np.ndarray] = {}
        for key in set(self.skeleton.tensors.values()) - set(symbols):
            encoded = compressed.tensors.get(key)
            tensor = encoded.decode() if encoded is not None else self._tensor(key, state)
            tensors[key] = tensor.detach().numpy()
        quantizers = self._pairs(compressed, placement, executes)
        model = Graft(self.skeleton, tensors, symbols, quantizers, types, blocks).model(batch_size)
        if placement.float_type == "float16":
            model = to_float16(model)
        return bytes(model.SerializeToString())

    def _pairs(
        self, compressed: CompressedModel, placement: Placement, executes: Mapping[str, str]
    ) -> dict[str, ActivationQuantizer]:
        """Value → quantizer, for the values that get a Q/DQ pair of their own.

        A value that only moves elements of a quantized one lies on its grid already. ONNX Runtime wants a pair on
        both sides of every operation; else it gets one only where an 8-bit layer reads it, and none between
        padding and convolution, which become one kernel.
        """
        quantizers = grids(self.network, compressed.activations)
        if placement.elementwise:
            return quantizers
        reads = layer_reads(self.network)
        read = {key for name, precision in executes.items() if precision in ("int8", "float8") for key in reads[name]}
        read -= {key for key in read if self.network.values[key].op == "zero_pad"}
        return {key: q for key, q in quantizers.items() if key in compressed.activations or key in read}

    def structure_key(
        self,
        compressed: CompressedModel,
        placement: Placement,
        batch_size: int | None = None,
        layers: Collection[str] | None = None,
    ) -> str:
        """Hash of everything that decides how fast the engine is; weights and scales do not.

        Engines of one key differ in the numbers they hold only.
        """
        executes = self.executes(compressed, placement, layers)
        quantizers = self._pairs(compressed, placement, executes)
        content = {
            "graph": self._graph_text,
            "weights": {
                name: [precision, list(compressed.tensors[self.network.layers[name].weight].scale.shape)]  # type: ignore[union-attr]
                for name, precision in executes.items()
                if precision in SYMBOLS
            },
            "values": {key: [q.low, q.high, q.zero_point == q.low] for key, q in quantizers.items()},
            "float_type": placement.float_type,
            "batch_size": batch_size,
        }
        text = json.dumps(content, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()[:32]

    @cached_property
    def _operations(self) -> list[str]:
        """The graph's operations and arguments; sizes of tensors are not among them."""
        graph = self.network.graph
        assert graph is not None
        return [f"{n.name} {n.op} {n.target} {n.args} {dict(n.kwargs)}" for n in graph.graph.nodes]

    @cached_property
    def _graph_text(self) -> list[str]:
        """The graph's operations, arguments and shapes."""
        graph = self.network.graph
        assert graph is not None
        shapes = []
        for node in graph.graph.nodes:
            if node.op == "get_attr":
                found: Any = graph
                for part in str(node.target).split("."):
                    found = getattr(found, part)
                shapes.append(str(tuple(found.shape)) if isinstance(found, torch.Tensor) else "")
        return [f"input {self.network.input_shape}", *self._operations, *shapes]

    def _tensor(self, key: str, state: dict[str, torch.Tensor]) -> torch.Tensor:
        """A tensor that the candidate says nothing about: of the state dict, or a constant of the graph."""
        if key in state:
            return state[key]
        found: Any = self.network.graph
        for part in key.split("."):
            found = getattr(found, part)
        assert isinstance(found, torch.Tensor)
        return found


def _asked(compressed: CompressedModel) -> set[str]:
    return {unit for unit, choice in compressed.candidate.items() if choice.get("activations") is not None}


def _check_placement(compressed: CompressedModel, placement: Placement) -> None:
    for key, q in compressed.activations.items():
        if placement.symmetric and (q.zero_point != 0 or q.low >= 0):
            raise UnsupportedError(
                f"value {key!r} has zero point {q.zero_point} in [{q.low}, {q.high}]; this target takes int8 with "
                "zero point 0: calibrate with a symmetric placement"
            )
