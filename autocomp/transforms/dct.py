"""Kernels in the frequency domain: the DCT of each k x k kernel on a uniform grid."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from autocomp.core.encodings import MAX_KERNEL, DctTensor, cosine_basis
from autocomp.core.network import Layer
from autocomp.errors import UnsupportedError
from autocomp.transforms.compensate import Hessian, compensated
from autocomp.transforms.grids import step_grid
from autocomp.transforms.patches import by_rows, weight_from_rows, weight_rows
from autocomp.transforms.problem import LayerProblem
from autocomp.transforms.weight_step import WeightStep, checked


@dataclass(frozen=True, kw_only=True)
class DctKernels(WeightStep):
    """DCT coefficients of convolution kernels, rounded to a grid whose symbols the entropy coder prices.

    Sources: CNNpack (Wang et al. 2016), FreshNets (Chen et al. 2016). They cluster or hash coefficients; ours
    keeps one step for all frequencies and lets the coder's contexts find that high ones are small.

    Attributes:
        step: step size in standard deviations of the channel's (or tensor's) coefficients.
        granularity: one scale an output "channel", or one a "tensor".
        rounding: "nearest", or "compensated" on the layer's inputs, transformed likewise (Frantar et al. 2022).
    """

    kind: ClassVar[str] = "dct_kernels"

    step: float = 0.5
    granularity: str = "channel"
    rounding: str = "compensated"

    def __post_init__(self) -> None:
        self._within("step", 0.01, 8)
        self._one_of("granularity", "channel", "tensor")
        self._one_of("rounding", "nearest", "compensated")

    def label(self) -> str:
        text = f"f{self.step:g}" + ("" if self.granularity == "channel" else "t")
        return text + ("" if self.rounding == "compensated" else "n")

    def legal(self, layer: Layer) -> str | None:
        return _no_kernel(layer.weight_shape)

    def encode(self, problem: LayerProblem) -> DctTensor:
        problem = checked(problem, self)
        reason = _no_kernel(tuple(problem.weight.shape))
        if reason is not None:
            raise UnsupportedError(f"layer {problem.name}: dct_kernels: {reason}")
        shape, axis = problem.weight.shape, problem.axis
        basis = _kernel_basis(tuple(shape[2:]))
        changed = problem.replace(weight=(problem.weight.flatten(2) @ basis.t()).reshape(shape))
        channels = changed.channels()
        grid = step_grid(channels, self.step, per_tensor=self.granularity == "tensor", symmetric=True)
        hessian = None if self.rounding == "nearest" else _transformed(problem.hessian, basis)
        if hessian is None:
            symbols = changed.shaped(grid.nearest(channels))
        else:
            rows = weight_rows(changed.weight, hessian.groups, axis)
            by_row = by_rows(grid.scale, rows, axis)
            limit = torch.full((1, 1), float(grid.high))
            rounded = compensated(rows, hessian, by_row, torch.zeros(1, 1), -limit, limit)
            symbols = weight_from_rows(rounded, shape, axis)
        stored = grid.expanded(len(channels)) if problem.channel_scales else grid
        return DctTensor(symbols=symbols.to(torch.int16).contiguous(), scale=stored.scale, axis=axis)


def _no_kernel(shape: tuple[int, ...]) -> str | None:
    """Why weights of ``shape`` have no kernel to transform."""
    if not 3 <= len(shape) <= 5 or max(shape[2:]) < 2:
        return "the layer has no kernel of several positions"
    if max(shape[2:]) > MAX_KERNEL:
        return f"kernel sides of {max(shape[2:])}; at most {MAX_KERNEL}"
    return None


def _kernel_basis(kernel: tuple[int, ...]) -> Tensor:
    """Orthonormal [taps, taps]: row j is the j-th basis kernel, flattened."""
    full = torch.ones(1, 1)
    for size in kernel:
        full = torch.kron(full, torch.tensor(cosine_basis(size)))
    return full


def _transformed(hessian: Hessian | None, basis: Tensor) -> Hessian | None:
    """The second moment of inputs whose patches are transformed like the kernels; None where there is none.

    A column that only meets padding, or a block boundary inside a kernel, mixes with others under the transform;
    such layers are rounded to nearest.
    """
    if hessian is None or len(hessian.second) > 1 or len(hessian.columns) < hessian.width:
        return None
    taps = len(basis)
    groups, width = hessian.groups, hessian.width
    block = hessian.second[0].reshape(groups, width * width // taps, taps) @ basis.t()
    block = block.reshape(groups, width, width).transpose(1, 2).reshape(groups, width * width // taps, taps)
    block = (block @ basis.t()).reshape(groups, width, width)
    return replace(hessian, second=(block,))
