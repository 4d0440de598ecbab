"""Changes of a network's structure as plain values: what a file records, and what a loader replays.

An edit names a module of the folded network and says what it becomes; weights are not part of it.
Nothing in an edit is ever executed: attributes are integers, layers are of the kinds listed here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from autocomp.errors import CorruptFileError

Size = int | tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class Resize:
    """A module with channels, neurons or heads removed.

    Attributes:
        path: module path in the folded network ("layer1.0.conv1"; "" is the model itself).
        attributes: integer attributes of the module with their new values ("out_channels": 48).
        shapes: its own parameters and buffers (without a dot in the name) with their new shapes.
    """

    path: str
    attributes: Mapping[str, Size] = field(default_factory=dict)
    shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        return {
            "resize": self.path,
            "attributes": {k: list(v) if isinstance(v, tuple) else v for k, v in self.attributes.items()},
            "shapes": {k: list(v) for k, v in self.shapes.items()},
        }


@dataclass(frozen=True, kw_only=True)
class LayerSpec:
    """A convolution or linear layer without its weights.

    Attributes:
        kind: "conv1d", "conv2d", "conv3d" or "linear".
        inputs, outputs: channels or features.
        kernel, stride, padding, dilation: one number a spatial axis; empty for linear.
        groups: of a convolution.
        bias: whether it has one.
    """

    kind: str
    inputs: int
    outputs: int
    kernel: tuple[int, ...] = ()
    stride: tuple[int, ...] = ()
    padding: tuple[int, ...] = ()
    dilation: tuple[int, ...] = ()
    groups: int = 1
    bias: bool = True

    def to_json(self) -> list[Any]:
        spatial = [list(v) for v in (self.kernel, self.stride, self.padding, self.dilation)]
        return [self.kind, self.inputs, self.outputs, *spatial, self.groups, self.bias]

    @staticmethod
    def from_json(data: Sequence[Any]) -> LayerSpec:
        kind, inputs, outputs, kernel, stride, padding, dilation, groups, bias = data
        spatial = [tuple(int(n) for n in v) for v in (kernel, stride, padding, dilation)]
        return LayerSpec(
            kind=str(kind),
            inputs=int(inputs),
            outputs=int(outputs),
            kernel=spatial[0],
            stride=spatial[1],
            padding=spatial[2],
            dilation=spatial[3],
            groups=int(groups),
            bias=bool(bias),
        )


@dataclass(frozen=True, kw_only=True)
class Replace:
    """A layer replaced by a chain of layers (``nn.Sequential``: "conv" becomes "conv.0", "conv.1", ...).

    Attributes:
        path: module path in the folded network.
        layers: the chain, in order of execution.
    """

    path: str
    layers: tuple[LayerSpec, ...]

    def to_json(self) -> dict[str, Any]:
        return {"replace": self.path, "layers": [layer.to_json() for layer in self.layers]}


Edit = Resize | Replace


def edit_from_json(data: Mapping[str, Any]) -> Edit:
    """Inverse of ``to_json``; :class:`CorruptFileError` for anything else."""
    try:
        if "resize" in data:
            return Resize(
                path=str(data["resize"]),
                attributes={
                    str(k): tuple(int(n) for n in v) if isinstance(v, list) else int(v)
                    for k, v in data["attributes"].items()
                },
                shapes={str(k): tuple(int(n) for n in v) for k, v in data["shapes"].items()},
            )
        return Replace(path=str(data["replace"]), layers=tuple(LayerSpec.from_json(v) for v in data["layers"]))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise CorruptFileError(f"the file's structure is garbled ({error}); get the file again") from error
