"""Candidates as ONNX models with explicit Q/DQ: what ONNX Runtime, OpenVINO and TensorRT build engines from.

The float network is exported once; a candidate replaces initializers and inserts Q/DQ pairs, which takes
milliseconds. A quantized value has one Q/DQ pair for all its readers, as in the simulation.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection
from functools import cached_property
from typing import Any

import numpy as np
import torch

from autocomp.core.compressed import CompressedModel
from autocomp.core.encodings import QuantizedTensor
from autocomp.core.hardware import Placement
from autocomp.core.network import Network
from autocomp.errors import UnsupportedError
from autocomp.graph.integers import grids, integer_layers
from autocomp.runtimes._adapt import adapted
from autocomp.runtimes._graft import Graft
from autocomp.runtimes._skeleton import Skeleton, computes, export_skeleton


class OnnxExporter:
    """Exports candidates of one network. Input "input", output "output", batch axis free or fixed.

    Args:
        network: with a graph.
        int32_bias: write biases of int8 layers as int32 with scale = input scale · weight scale, which
            ONNX Runtime's integer kernels need; TensorRT refuses it and takes float32 biases.
        like: exporter of the network that this one was made from by removing channels and factorising layers:
            its skeleton, adapted, serves where that is shown to compute the same.
    """

    def __init__(self, network: Network, *, int32_bias: bool = True, like: OnnxExporter | None = None) -> None:
        if network.graph is None:
            raise UnsupportedError(f"this model cannot be exported to ONNX: {network.no_graph}")
        self.network = network
        self.int32_bias = int32_bias
        self._like = like

    @cached_property
    def skeleton(self) -> Skeleton:
        """The exported network, made when first needed (seconds)."""
        known = None if self._like is None else adapted(self._like.skeleton, self._like.network, self.network)
        if known is not None:
            state = self.network.module.state_dict()
            tensors = {k: self._tensor(k, state).detach().numpy() for k in set(known.tensors.values())}
            model = Graft(known, tensors, {}, {}, int32_bias=False).model(None)
            if computes(model.SerializeToString(), self.network):
                return known
        return export_skeleton(self.network)

    def executes(self, compressed: CompressedModel, int8_layers: Collection[str] | None = None) -> dict[str, str]:
        """Layer → "int8" or "float32": how its weights reach the engine.

        A layer asked for int8 still runs in float32 where its weights are no symmetric int8 grid (float16,
        a zero point, symbols beyond ±127) or its inputs are not quantized.

        Args:
            compressed: the candidate.
            int8_layers: layers asked for; None: those whose choice holds an activation step.
        """
        if int8_layers is None:
            int8_layers = _asked(compressed)
        able = integer_layers(self.network, compressed, grids(self.network, compressed.activations))
        return {name: "int8" if name in int8_layers and name in able else "float32" for name in self.network.layers}

    def export(
        self,
        compressed: CompressedModel,
        placement: Placement,
        int8_layers: Collection[str] | None = None,
        batch_size: int | None = None,
    ) -> bytes:
        """The candidate as a serialized ONNX model.

        Args:
            compressed: the candidate.
            placement: of the target; a symmetric one takes int8 quantizers with zero point 0 only.
            int8_layers: layers that execute in int8 where they can (see :meth:`executes`); None: those
                whose choice holds an activation step.
            batch_size: None: any.

        Raises:
            UnsupportedError: an operation that ONNX has not, or quantizers the target does not take.
        """
        _check_placement(compressed, placement)
        executes = self.executes(compressed, int8_layers)
        state = self.network.module.state_dict()
        integers: dict[str, QuantizedTensor] = {}
        for name, precision in executes.items():
            encoding = compressed.tensors.get(self.network.layers[name].weight)
            if precision == "int8" and isinstance(encoding, QuantizedTensor):
                integers[self.network.layers[name].weight] = encoding
        tensors: dict[str, np.ndarray] = {}
        for key in set(self.skeleton.tensors.values()) - set(integers):
            encoded = compressed.tensors.get(key)
            tensor = encoded.decode() if encoded is not None else self._tensor(key, state)
            tensors[key] = tensor.detach().numpy()
        quantizers = grids(self.network, compressed.activations)
        graft = Graft(self.skeleton, tensors, integers, quantizers, int32_bias=self.int32_bias)
        return bytes(graft.model(batch_size).SerializeToString())

    def structure_key(
        self,
        compressed: CompressedModel,
        placement: Placement,
        batch_size: int | None = None,
        int8_layers: Collection[str] | None = None,
    ) -> str:
        """Hash of everything that decides how fast the engine is; weights and scales do not.

        Engines of one key differ in the numbers they hold only.
        """
        executes = self.executes(compressed, int8_layers)
        quantizers = grids(self.network, compressed.activations)
        content = {
            "graph": self._graph_text,
            "weights": {
                name: list(compressed.tensors[self.network.layers[name].weight].scale.shape)  # type: ignore[union-attr]
                for name, precision in executes.items()
                if precision == "int8"
            },
            "values": {key: [q.low, q.high, q.zero_point == q.low] for key, q in quantizers.items()},
            "symmetric": placement.symmetric,
            "int32_bias": self.int32_bias,
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
