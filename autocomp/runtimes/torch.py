"""PyTorch, eager or compiled, on the CPU or a CUDA device: the reference that judges other engines.

It executes the same ONNX model as they do, in float32, or in float16 where the model has that: a Q/DQ pair is
simulated, no layer runs on 8 bits.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from autocomp import environment
from autocomp.core.hardware import Engine, HardwareProfile, Plan
from autocomp.errors import UnsupportedError
from autocomp.runtimes import _cpu, _nvml

if TYPE_CHECKING:
    import numpy as np
    import onnx
    from torch import Tensor

    from autocomp.runtimes._onnx_torch import OnnxProgram

# Settings a profile may give (schema: docs/hardware_profiles.md).
OPTIONS: dict[str, str | tuple[Any, ...]] = {
    "device": ("cpu", "cuda"),
    "mode": ("eager", "compiled"),
    "intra_op_num_threads": "threads",
}


class TorchEngine:
    """A program on its device with its fixed input there.

    Args:
        program: the network.
        profile: its ``options`` are :data:`OPTIONS`.
        example: [n, ...], the input that is timed; brought to the type of the model's input.
    """

    def __init__(self, program: OnnxProgram, profile: HardwareProfile, example: np.ndarray) -> None:
        self._program: OnnxProgram | None = program
        self._profile = profile
        self._compiled: dict[tuple[int, ...], Callable[[Tensor], Tensor]] = {}
        self._fixed: Tensor | None = self._placed(example)
        self._call(self._fixed)

    def run(self, inputs: np.ndarray) -> np.ndarray:
        """First output [n, ...] for inputs [n, ...]; :class:`UnsupportedError` where they do not fit."""
        import numpy as np

        return np.asarray(self._call(self._placed(inputs)).cpu().numpy())

    def time_once_s(self) -> float:
        """Seconds of one inference on the example, on the device's own clock where it is a CUDA device."""
        import torch

        self._open()
        assert self._fixed is not None
        function = self._function(self._fixed)
        with settings(self._profile):
            if self._fixed.is_cuda:
                event: Any = torch.cuda.Event
                begin, end = event(enable_timing=True), event(enable_timing=True)
                begin.record()
                function(self._fixed)
                end.record()
                end.synchronize()
                return float(begin.elapsed_time(end)) / 1e3
            start = time.perf_counter()
            function(self._fixed)
            return time.perf_counter() - start

    def energy_per_run_j(self, least_s: float) -> float | None:
        """See :class:`autocomp.core.hardware.CountsEnergy`; None on the CPU."""
        if self._fixed is None or not self._fixed.is_cuda:
            return None
        import torch

        uuid = f"GPU-{torch.cuda.get_device_properties(0).uuid}"
        return _nvml.energy_per_run_j(self.time_once_s, 1, least_s, uuid)

    def close(self) -> None:
        """Free the tensors. Twice is fine."""
        self._program = self._fixed = None
        self._compiled.clear()

    def _open(self) -> OnnxProgram:
        if self._program is None:
            raise UnsupportedError("torch: the engine is closed; build it again")
        return self._program

    def _placed(self, inputs: np.ndarray) -> Tensor:
        import numpy as np
        import torch

        program = self._open()
        program.check(inputs.shape)
        return torch.from_numpy(np.ascontiguousarray(inputs)).to(program.device, program.dtype)

    def _call(self, x: Tensor) -> Tensor:
        function = self._function(x)
        with settings(self._profile):
            return function(x)

    def _function(self, x: Tensor) -> Callable[[Tensor], Tensor]:
        """The program itself, or what ``torch.compile`` makes of it for inputs of this shape."""
        program = self._open()
        if self._profile.options.get("mode", "eager") == "eager":
            return program
        shape = tuple(x.shape)
        if shape not in self._compiled:
            import torch
            from torch.fx.experimental.proxy_tensor import make_fx

            with settings(self._profile):
                self._compiled[shape] = torch.compile(make_fx(program)(x), dynamic=False)
        return self._compiled[shape]


class Torch:
    """torch eager or ``torch.compile``, device and threads from the profile."""

    name = "torch"

    def missing(self) -> str | None:
        """None when torch and onnx are installed."""
        return environment.not_installed("torch", "onnx")

    def no_device(self, profile: HardwareProfile) -> str | None:
        """None where torch sees the profile's device and has a compiler for its mode."""
        if profile.options.get("device") == "cuda":
            reason = _no_cuda()
            if reason is not None:
                return reason
        compiler = os.environ.get("CXX", "g++")
        if profile.options.get("mode") == "compiled" and not (shutil.which(compiler) or shutil.which("clang++")):
            return f"torch.compile needs a C++ compiler and there is no {compiler}; install one"
        return None

    def versions(self) -> dict[str, str]:
        """torch, CUDA where it has it, and the device: the first CUDA device, else this CPU."""
        import torch

        found = {"torch": torch.__version__, **_cpu.versions()}
        if torch.cuda.is_available():
            found |= {"cuda": str(torch.version.cuda), "device": torch.cuda.get_device_name(0)}
        return found

    def build(self, onnx_model: bytes, profile: HardwareProfile, example: np.ndarray) -> Plan:
        """Check that torch can execute a model, by one run on this CPU.

        Args:
            onnx_model: serialised ONNX with one input, float32 or token ids.
            profile: its ``options`` are :data:`OPTIONS`.
            example: [n, ...], the input the engine is timed with.

        Returns:
            The ONNX model itself: torch has no file of its own for it. Every layer runs in the float type it has there.

        Raises:
            UnsupportedError: an operator that is not covered, or that fails; with the node's name.
        """
        missing = self.missing()
        if missing is not None:
            raise UnsupportedError(missing)
        from autocomp.runtimes import _onnx_graph as graphs

        eager = HardwareProfile(name=profile.name, title="", runtime=self.name, precisions={})
        source = graphs.load(onnx_model)
        TorchEngine(_program(onnx_model, "cpu"), eager, example).close()
        return Plan(data=onnx_model, layers=_float_types(source))

    def load(self, plan: Plan, profile: HardwareProfile, example: np.ndarray) -> Engine:
        """The model on the profile's device."""
        missing = self.no_device(profile)
        if missing is not None:
            raise UnsupportedError(f"torch: cannot load the plan: {missing}")
        return TorchEngine(_program(plan.data, profile.options.get("device", "cpu")), profile, example)


def _float_types(model: onnx.ModelProto) -> dict[str, str]:
    """Weight → "float16" where the layer's result has that type, else "float32"."""
    import onnx

    from autocomp.runtimes import _onnx_graph as graphs

    inferred = onnx.shape_inference.infer_shapes(model).graph
    infos = (*inferred.value_info, *inferred.output)
    halves = {i.name for i in infos if i.type.tensor_type.elem_type == onnx.TensorProto.FLOAT16}
    calls = graphs.layer_calls(model)
    return graphs.joined((weight, "float16" if node.output[0] in halves else "float32") for node, weight in calls)


def _no_cuda() -> str | None:
    """None where torch computes on a GPU here; torch is imported only where that can be."""
    version = environment.version("torch") or ""
    if version.endswith("+cpu"):
        return f"torch {version} is a build without CUDA; install a CUDA build"
    if not environment.gpus():
        return f"torch {version} finds no CUDA device: nvidia-smi lists none"
    import torch

    if torch.cuda.is_available():
        return None
    why = "finds no CUDA device" if torch.version.cuda else "is a build without CUDA; install a CUDA build"
    return f"torch {version} {why}"


def runtime() -> Torch:
    """The runtime of this module."""
    return Torch()


def _program(data: bytes, device: str) -> OnnxProgram:
    from autocomp.runtimes import _onnx_graph as graphs
    from autocomp.runtimes._onnx_torch import OnnxProgram

    return OnnxProgram(graphs.load(data), device)


@contextmanager
def settings(profile: HardwareProfile) -> Iterator[None]:
    """Threads of the profile, no gradients, float32 that is float32: torch's own are put back."""
    import torch

    convolutions, products = torch.backends.cudnn, torch.backends.cuda.matmul
    before = torch.get_num_threads(), convolutions.allow_tf32, products.allow_tf32
    torch.set_num_threads(int(profile.options.get("intra_op_num_threads", before[0])))
    convolutions.allow_tf32 = products.allow_tf32 = False
    try:
        with torch.no_grad():
            yield
    finally:
        torch.set_num_threads(before[0])
        convolutions.allow_tf32, products.allow_tf32 = before[1:]
