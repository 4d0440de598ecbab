"""ONNX graphs executed by torch, operator by operator: the plain reference that judges other engines.

Q/DQ pairs are computed as the ONNX operators define them, so the result is the simulation of an integer engine; what
the model has in float16 is computed in float16. Covers the operators that autocomp's exporter writes; another one is
refused by name.
Source: ONNX operator specification, opsets 17 to 23.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import onnx
import torch
from onnx import helper, numpy_helper
from torch import Tensor

from autocomp.errors import UnsupportedError
from autocomp.graph.capture import one_line
from autocomp.runtimes._torch_operators import OPERATORS

FAILS = (RuntimeError, IndexError, ValueError, TypeError, KeyError, NotImplementedError)
"""What torch raises for shapes and types that do not fit."""


class OnnxProgram:
    """One ONNX graph with one input and one output of interest, on a device.

    What depends on constants alone is computed once, when the program is made. int64 constants (shapes, axes,
    indices) stay in the CPU's memory, where reading them costs no synchronisation.

    Args:
        model: with one input; opset 17 or later.
        device: "cpu", "cuda", ...

    Raises:
        UnsupportedError: an operator that is not here, or inputs that nothing makes; with the node's name.
    """

    def __init__(self, model: onnx.ModelProto, device: str = "cpu") -> None:
        graph = model.graph
        self.device = device
        self._constants: dict[str, Tensor] = {t.name: self._placed(numpy_helper.to_array(t)) for t in graph.initializer}
        inputs = [i for i in graph.input if i.name not in self._constants]
        if len(inputs) != 1:
            names = ", ".join(i.name for i in inputs)
            raise UnsupportedError(f"torch: the model has {len(inputs)} inputs ({names}); engines take one")
        self.input, self.output = inputs[0].name, graph.output[0].name
        tensor = inputs[0].type.tensor_type
        self.dtype = torch.from_numpy(_empty(tensor.elem_type)).dtype
        self.shape = [d.dim_value if d.HasField("dim_value") else None for d in tensor.shape.dim]
        self._steps: list[_Step] = []
        made = {self.input, *self._constants}
        for node in graph.node:
            step = _Step(node)
            missing = [name for name in step.inputs if name and name not in made]
            if missing:
                raise UnsupportedError(
                    f"torch: cannot build the model (node {step.name}): nothing makes {missing[0]!r}"
                )
            made.update(step.outputs)
            if all(name in self._constants for name in step.inputs if name):
                self._constants.update(step.run(self._constants))
            else:
                self._steps.append(step)
        if self.output not in made:
            raise UnsupportedError(f"torch: cannot build the model: nothing makes its output {self.output!r}")
        read = {name for step in self._steps for name in step.inputs} | {self.output}
        self._constants = {name: tensor for name, tensor in self._constants.items() if name in read}

    def __call__(self, x: Tensor) -> Tensor:
        """x: [n, ...] on the program's device → the first output."""
        values = {**self._constants, self.input: x}
        for step in self._steps:
            values.update(step.run(values))
        return values[self.output]

    def check(self, shape: Sequence[int]) -> None:
        """:class:`UnsupportedError` where an input of ``shape`` is not what the model takes."""
        if len(shape) != len(self.shape) or any(
            d is not None and d != n for d, n in zip(self.shape, shape, strict=True)
        ):
            wanted = ", ".join("any" if d is None else str(d) for d in self.shape)
            raise UnsupportedError(f"torch: the input has shape {list(shape)}; the model takes [{wanted}]")

    def _placed(self, array: Any) -> Tensor:
        tensor = torch.from_numpy(array.copy())
        return tensor if tensor.dtype == torch.int64 else tensor.to(self.device)


class _Step:
    """One node: its operator with its attributes."""

    def __init__(self, node: onnx.NodeProto) -> None:
        self.name = node.name or node.output[0]
        self.inputs, self.outputs = list(node.input), list(node.output)
        self._attributes = {a.name: _plain(helper.get_attribute_value(a)) for a in node.attribute}
        self._operator: Callable[..., Any] | None = OPERATORS.get(node.op_type) if not node.domain else None
        if self._operator is None:
            known = f"{node.domain}.{node.op_type}" if node.domain else node.op_type
            raise UnsupportedError(f"torch: cannot build the model (node {self.name}): no operator {known} here")

    def run(self, values: dict[str, Tensor]) -> dict[str, Tensor]:
        """Output name → tensor."""
        assert self._operator is not None
        inputs = [values[name] if name else None for name in self.inputs]
        attributes = dict(self._attributes)
        if len(self.outputs) > 1:
            attributes["outputs"] = len(self.outputs)
        try:
            result = self._operator(*inputs, **attributes)
        except FAILS as error:
            raise UnsupportedError(f"torch: cannot run the model (node {self.name}): {one_line(error)}") from error
        return dict(zip(self.outputs, result if isinstance(result, tuple | list) else (result,), strict=False))


def _plain(value: Any) -> Any:
    """Attributes as Python values; tensors as torch's."""
    if isinstance(value, bytes):
        return value.decode()
    if isinstance(value, onnx.TensorProto):
        return torch.from_numpy(numpy_helper.to_array(value).copy())
    return list(value) if isinstance(value, list | tuple) else value


def _empty(element_type: int) -> Any:
    import numpy as np

    return np.empty(0, helper.tensor_dtype_to_np_dtype(element_type))
