"""Walking the float and the compressed network side by side, layer by layer in order of execution."""

from __future__ import annotations

import math
from typing import Protocol

from torch import Tensor, fx, nn

from autocomp.core.compressed import CompressedModel
from autocomp.core.network import Layer, Network
from autocomp.graph import ops
from autocomp.graph.program import Environment, Program
from autocomp.transforms.observe import decoded_module

_HANDS_ON = frozenset({"dropout", "feature_dropout", "alias", "clone", "detach", "contiguous"})


class Walk(Protocol):
    """Layers must be visited in order of execution."""

    def at(self, layer: Layer) -> tuple[Tensor, Tensor]:
        """What the layer receives in the compressed network, and what it should put out, both [N, ...]."""
        ...

    def put(self, layer: Layer, tensors: dict[str, Tensor]) -> None:
        """Go on with these tensors (by state-dict key) in the compressed network."""
        ...


class GraphWalk:
    """Both networks once through the graph, all images at a time, only live values kept.

    The target of a layer whose output is added to a value that is already known also makes good that
    value's error: float output + (float value − compressed value). In a residual network the second
    convolution of a block so repairs what the skip connection carries.
    """

    def __init__(self, network: Network, compressed: CompressedModel, images: Tensor) -> None:
        assert network.graph is not None
        self._program = Program(network.graph)
        self._images = images
        self._tensors = {key: encoding.decode() for key, encoding in compressed.tensors.items()}
        nodes = {n.name: n for n in self._program.nodes}
        self._quantizers = {nodes[network.values[key].node]: q for key, q in compressed.activations.items()}
        self._calls: dict[str, fx.Node] = {}
        for node in self._program.nodes:
            weight = ops.weight_of(node)
            if weight is not None:
                self._calls.setdefault(str(weight.target), node)
        self._float: Environment = {}
        self._compressed: Environment = {}
        self._float_position = self._compressed_position = 0

    def at(self, layer: Layer) -> tuple[Tensor, Tensor]:
        node = self._calls[layer.weight]
        position = self._program.position[node]
        self._program.advance(
            self._compressed,
            self._compressed_position,
            position,
            inputs=self._images,
            tensors=self._tensors,
            quantizers=self._quantizers,
        )
        self._program.advance(self._float, self._float_position, position + 1, inputs=self._images)
        self._compressed_position, self._float_position = position, position + 1
        target: Tensor = self._float[node]
        other = self._added_to(node)
        if other is not None:
            target = target + (self._float[other] - self._compressed[other])
        return self._compressed[ops.data_of(node)], target

    def put(self, layer: Layer, tensors: dict[str, Tensor]) -> None:
        self._tensors.update(tensors)

    def _added_to(self, node: fx.Node) -> fx.Node | None:
        """The other operand of the addition that alone reads ``node``, where both networks know it already."""
        current = node
        while len(current.users) == 1:
            user = next(iter(current.users))
            if ops.op_name(user) in _HANDS_ON:
                current = user
                continue
            if ops.op_name(user) != "add" or user.kwargs.get("alpha", 1) != 1 or len(user.args) != 2:
                return None
            other = user.args[1] if user.args[0] is current else user.args[0]
            if not isinstance(other, fx.Node) or other not in self._float or other not in self._compressed:
                return None
            same = isinstance(self._float[other], Tensor) and self._float[other].shape == self._float[node].shape
            return other if same else None
        return None


class _ReachedError(Exception):
    """The layer that was asked for has been reached; the rest of the pass is not needed."""


class HookWalk:
    """Both networks run again up to each layer: for models without a graph. No skip connections are known."""

    def __init__(self, network: Network, compressed: CompressedModel, images: Tensor) -> None:
        self._float = decoded_module(network.module, {})
        self._compressed = decoded_module(network.module, {k: e.decode() for k, e in compressed.tensors.items()})
        self._images = images

    def at(self, layer: Layer) -> tuple[Tensor, Tensor]:
        received, _ = self._until(self._compressed, layer.name)
        _, target = self._until(self._float, layer.name)
        return received, target

    def put(self, layer: Layer, tensors: dict[str, Tensor]) -> None:
        for key, values in tensors.items():
            self._compressed.get_parameter(key).data = values

    def _until(self, module: nn.Module, name: str) -> tuple[Tensor, Tensor]:
        seen: list[Tensor] = []

        def stop(_module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
            seen.extend((args[0], output))
            raise _ReachedError

        handle = module.get_submodule(name).register_forward_hook(stop)
        try:
            module(self._images)
        except _ReachedError:
            pass
        finally:
            handle.remove()
        return seen[0], seen[1]


def live_bytes(network: Network, images: Tensor) -> int:
    """Bytes that one image needs at the worst moment of a walk (both networks); ``images`` [n ≥ 1, ...] to try."""
    if network.graph is None:
        sizes = [math.prod(la.input_shape) + math.prod(la.output_shape) for la in network.layers.values()]
        return 4 * 4 * max(sizes, default=1)
    program = Program(network.graph)
    environment: Environment = {}
    worst = 0
    for i in range(len(program.nodes)):
        program.advance(environment, i, i + 1, inputs=images)
        worst = max(worst, sum(v.nbytes for v in environment.values() if isinstance(v, Tensor)))
    return max(1, 2 * worst // len(images))
