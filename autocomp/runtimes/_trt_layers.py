"""Which precision each layer of a TensorRT plan really runs in: read from what the builder says of its kernels.

What was asked for proves nothing: an int8 weight in front of a float activation, or a scale on the wrong axis,
builds without a word and computes in float. The table comes from the log ("Layers:", TensorRT-RTX, which says it
without a device) or from the engine inspector's JSON (10.x: "Format/Datatype"; 11.x: "Datatype").
Source: NVIDIA TensorRT documentation, "Engine Inspector" and "Migrating IEngineInspector Usage from 10.x to 11.x".
"""

from __future__ import annotations

import dataclasses
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

_TYPES = (  # in this order: "Int8" stands in descriptions that name a float type as well
    ("int8", r"\bint8\b"),
    ("int4", r"\bint4\b"),
    ("float8", r"\bfp8\b|\bfloat8\b"),
    ("bfloat16", r"\bbf16\b|\bbfloat16\b|\bbfloat\b"),
    ("float16", r"\bfp16\b|\bhalf\b|\bfloat16\b"),
    ("float32", r"\bfp32\b|\bfloat\b|\bfloat32\b"),
)
_NODE = re.compile(r"\[ONNX Layer: ([^\]]*)\]")
_GENERATED = "kgen"
"""Kernels that TensorRT writes itself: element by element, or products with a single row."""


@dataclass(frozen=True, kw_only=True)
class Tensor:
    """Type ("int8", "float16", ...; "" where it is another) and shape of what a kernel reads or writes."""

    type: str
    shape: tuple[int, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Kernel:
    """One layer of the plan.

    Attributes:
        name, kind: as the builder calls them ("correlation", "gemm", "CaskConvolution", ...).
        nodes: ONNX nodes that it has a part in.
        inputs, constants, outputs: its tensors; the weight is the largest constant.
    """

    name: str
    kind: str
    nodes: tuple[str, ...]
    inputs: tuple[Tensor, ...]
    constants: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    @property
    def weight(self) -> Tensor | None:
        """The largest constant."""
        return max(self.constants, key=lambda t: math.prod(t.shape), default=None)


def kernels_from_log(text: str) -> list[Kernel]:
    """The kernels of a "Layers:" message, in order of execution."""
    found = []
    for line in text.splitlines():
        if not line.startswith("Name: "):
            continue
        head, _, metadata = line.partition(", Metadata: ")
        sections = dict(_sections(head))
        found.append(
            Kernel(
                name=head[len("Name: ") :].split(", LayerType: ", 1)[0],
                kind=(re.search(r", LayerType: ([^,]+)", head) or ["", ""])[1],
                nodes=tuple(dict.fromkeys(_NODE.findall(metadata))),
                inputs=_log_tensors(sections.get("Inputs", "")),
                constants=_log_tensors(sections.get("Constants", "")),
                outputs=_log_tensors(sections.get("Outputs", "")),
            )
        )
    return found


def _sections(head: str) -> list[tuple[str, str]]:
    """("Inputs", what stands between it and the next section), ..."""
    parts = re.split(r", (Inputs|Constants|Outputs|TacticName): ", head)
    return list(zip(parts[1::2], parts[2::2], strict=True))


def _log_tensors(text: str) -> tuple[Tensor, ...]:
    pairs = re.findall(r"Dimensions: \[([\d,\- ]*)\].*?Datatype: (\w+)", text)
    return tuple(Tensor(type=_type(kind), shape=_shape(dims.split(","))) for dims, kind in pairs)


def kernels_from_inspector(text: str) -> list[Kernel]:
    """The kernels of an engine inspector's JSON; none where it holds names only."""
    layers = json.loads(text).get("Layers", []) if text else []
    found = []
    for layer in layers:
        if not isinstance(layer, Mapping):  # built without detailed verbosity
            continue
        constants = [*_json_tensors(layer.get("Constants", ()))]
        weights = layer.get("Weights")
        if isinstance(weights, Mapping):
            constants.append(Tensor(type=_type(str(weights.get("Type"))), shape=(int(weights.get("Count", 0)),)))
        found.append(
            Kernel(
                name=str(layer.get("Name", "")),
                kind=str(layer.get("LayerType", "")),
                nodes=tuple(dict.fromkeys(_NODE.findall(str(layer.get("Metadata", ""))))),
                inputs=_json_tensors(layer.get("Inputs", ())),
                constants=tuple(constants),
                outputs=_json_tensors(layer.get("Outputs", ())),
            )
        )
    return found


def _json_tensors(items: Sequence[Any]) -> tuple[Tensor, ...]:
    return tuple(
        Tensor(
            type=_type(str(item.get("Datatype") or item.get("Format/Datatype") or "")),
            shape=_shape(item.get("Dimensions", ())),
        )
        for item in items
        if isinstance(item, Mapping)
    )


def _shape(dims: Sequence[Any]) -> tuple[int, ...]:
    return tuple(int(d) for d in dims if str(d).strip())


def _type(text: str) -> str:
    return next((name for name, pattern in _TYPES if re.search(pattern, text, re.IGNORECASE)), "")


def layer_precisions(kernels: Sequence[Kernel], nodes: Mapping[str, str]) -> dict[str, str]:
    """Weight name → precision that the layer runs in.

    Args:
        kernels: of the plan.
        nodes: ONNX layer node → name of its weight; a weight of several nodes counts as what all of them run in,
            else as the widest.

    Returns:
        "int8" and "float8" where weight and activation have that type; "int4" where the kernel itself reads 4-bit
        weights (the arithmetic is float); else the activation's float type, whatever type the weight is stored in.
        Layers of which no kernel tells are left out.
    """
    found: dict[str, str] = {}
    for node, weight in nodes.items():
        kernel = _computing(kernels, node)
        if kernel is not None:
            precision = _precision(kernel)
            found[weight] = max(found.get(weight, precision), precision, key=_WIDTH.index)
    return found


_WIDTH = ("int4", "int8", "float8", "float16", "bfloat16", "float32", "")


def _computing(kernels: Sequence[Kernel], node: str) -> Kernel | None:
    """Of all kernels that have a part in ``node`` (padding, quantizing, adding a bias), the one that multiplies."""
    parts = [k for k in kernels if node in k.nodes]
    products = [k for k in parts if k.kind != _GENERATED] or parts
    sizes = [math.prod(k.weight.shape) if k.weight is not None else 0 for k in products]
    return products[sizes.index(max(sizes))] if products else None


def _precision(kernel: Kernel) -> str:
    activation = next((t.type for t in kernel.inputs if t.type), "")
    stored = kernel.weight.type if kernel.weight is not None else ""
    if stored == "int4" or (stored == activation and activation in ("int8", "float8")):
        return stored
    if kernel.kind == _GENERATED and stored.startswith("float"):  # its input may come before a cast of its own
        return stored
    if activation in ("int8", "float8"):  # the weight comes from another kernel
        others = {t.type for t in kernel.inputs}
        return activation if others == {activation} and len(kernel.inputs) > 1 else "float32"
    return activation
