"""The network as the search sees it: folded, traced, its layers and values named."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch
    from torch import fx, nn


@dataclass(frozen=True, kw_only=True)
class Layer:
    """A layer with a weight that can be compressed.

    Attributes:
        name: module path ("layer1.0.conv1"); the unit's name in step 1.
        kind: "conv1d", "conv2d", "conv3d", "conv_transpose2d", "linear", "embedding".
        weight, bias: state-dict keys in the folded module (bias None where there is none).
        weight_shape: shape of the weight.
        groups: convolution groups (1 for linear).
        input_shape, output_shape: of one call, without the batch axis.
        macs: multiply-accumulates of one sample, all calls together.
        parameters: elements of weight and bias.
        calls: how often the layer runs in one forward pass (a reused module: 2 or more).
        aliases: other module paths that hold the same weight tensor.
        input_value: key of the value the (first) call reads, None without a graph.
        output_value: key of the value behind the activation function that follows at once, where
            the layer's own output has no other reader (else of the layer's own output).
    """

    name: str
    kind: str
    weight: str
    bias: str | None
    weight_shape: tuple[int, ...]
    groups: int = 1
    input_shape: tuple[int, ...] = ()
    output_shape: tuple[int, ...] = ()
    macs: int = 0
    parameters: int = 0
    calls: int = 1
    aliases: tuple[str, ...] = ()
    input_value: str | None = None
    output_value: str | None = None

    @property
    def channel_axis(self) -> int:
        """The axis of the weight that counts output channels: 1 for transposed convolutions, else 0."""
        return 1 if self.kind.startswith("conv_transpose") else 0


@dataclass(frozen=True, kw_only=True)
class Value:
    """A tensor between operations: what activation quantization decides on.

    Attributes:
        key: stable name, "<module path>:<op>:<ordinal>" ("layer1.0.relu:relu:0"; the input is "input").
        op: the operation that makes it ("conv2d", "relu", "add", "input", ...).
        shape: without the batch axis.
        nonnegative: known to be ≥ 0 (behind ReLU and what keeps the sign).
        producers: keys of the values it is computed from.
        node: name of the fx node that makes it in :attr:`Network.graph`.
    """

    key: str
    op: str
    shape: tuple[int, ...]
    nonnegative: bool = False
    producers: tuple[str, ...] = ()
    node: str = ""


@dataclass(frozen=True, kw_only=True)
class Skipped:
    """A part that stays in float32, and why (one line)."""

    name: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class Fold:
    """A BatchNorm folded into the layer before it.

    Attributes:
        layer, norm: module paths.
        mean: [channels], what the folded layer's output should average to (the norm's beta).
        std: [channels], its standard deviation (the norm's |gamma|).
    """

    layer: str
    norm: str
    mean: torch.Tensor
    std: torch.Tensor


@dataclass(frozen=True, kw_only=True)
class Network:
    """A module with BatchNorm folded, its layers, and its graph where it could be traced.

    Attributes:
        module: the folded float32 network (eval mode); read only.
        layers: by name, in order of execution.
        folds: BatchNorms folded away, by layer name.
        skipped: what stays in float32 and why.
        graph: a GraphModule that computes the same (its parameters have the same names and are
            shared with ``module``), or None.
        values: by key, in order of execution; empty without a graph.
        no_graph: why there is no graph, "" where there is one.
        input_shape: without the batch axis.
        input_dtype: torch's name of the inputs' type ("float32"; "int64" for token ids).
    """

    module: nn.Module
    layers: dict[str, Layer]
    folds: dict[str, Fold] = field(default_factory=dict)
    skipped: tuple[Skipped, ...] = ()
    graph: fx.GraphModule | None = None
    values: dict[str, Value] = field(default_factory=dict)
    no_graph: str = ""
    input_shape: tuple[int, ...] = ()
    input_dtype: str = "float32"
