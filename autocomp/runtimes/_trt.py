"""What TensorRT and TensorRT-RTX have in common: one build a child process, plans read back, engines on the GPU."""

from __future__ import annotations

import importlib.util
import json
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from autocomp import environment
from autocomp.core.hardware import Engine, HardwareProfile, Plan
from autocomp.errors import AutocompError, RetryableError, UnsupportedError
from autocomp.runtimes import _cuda
from autocomp.runtimes._trt_layers import Kernel, kernels_from_inspector, kernels_from_log, layer_precisions

if TYPE_CHECKING:
    import numpy as np

COMMON_OPTIONS: dict[str, str | tuple[Any, ...]] = {
    "builder_optimization_level": (0, 1, 2, 3, 4, 5),
    "timeout_s": "time",
    "workspace_bytes": "bytes",
    "tf32": (True, False),
    "cuda_graph": (True, False),
    "cuda_binding": _cuda.BINDINGS,
}
TIMEOUT_S = 600.0
"""Default limit of one build. Networks of a few million weights take seconds; a search does better without a candidate
that takes ten minutes, and a build that hangs has to end."""
_CANCEL_SHARE = 0.9
"""Part of the limit after which the builder is asked to stop by itself, which keeps its timing cache."""
_OUT_OF_MEMORY = re.compile(r"out of memory|OutOfMemory|cudaErrorMemoryAllocation", re.IGNORECASE)
_WEIGHTS = re.compile(r"Total Weights Memory: (\d+) bytes")
_MESSAGE_CHARACTERS = 300


@dataclass(frozen=True, kw_only=True)
class Product:
    """What sets the two apart.

    Attributes:
        name: of the runtime, and of the extra that installs it.
        title: for people.
        modules: names its Python module may have, the usual one first.
        distributions: names of the package that holds the module.
        needs_device: it builds on the GPU itself, and for that one.
    """

    name: str
    title: str
    modules: tuple[str, ...]
    distributions: tuple[str, ...]
    needs_device: bool


class TensorRT:
    """A :class:`~autocomp.core.hardware.Runtime`; this process imports the library only to run engines."""

    def __init__(self, product: Product) -> None:
        self.product = product
        self.name = product.name

    def missing(self) -> str | None:
        """None where plans can be built: the package, and the device where the product builds on it."""
        product = self.product
        extra = product.name.replace("_", "-")
        if self._module() is None:
            return f"{product.title} is not installed; pip install 'autocomp[{extra}]'"
        if importlib.util.find_spec("onnx") is None:
            return "onnx is not installed; pip install onnx"
        reason = _cuda.no_gpu() if product.needs_device else None
        return f"{product.title} builds on the GPU that it builds for: {reason}" if reason else None

    def no_device(self, profile: HardwareProfile) -> str | None:
        """None where the profile's plans run here; else driver, GPU or its capability, and what to do."""
        reason = _cuda.no_gpu()
        if reason is not None:
            return reason
        wanted, found = profile.options.get("compute_capability"), _cuda.gpu()
        if found is not None and wanted not in (None, f"SM{found.capability[0]}{found.capability[1]}"):
            return (
                f"the GPU here ({found.name}) is SM{found.capability[0]}{found.capability[1]}, {profile.name} is for "
                f"{wanted}: take the GPU's own profile, or copy this one and set compute_capability"
            )
        needed, driver = self._cuda_major(), _cuda.driver_cuda_version()
        if needed is not None and driver // 1000 < needed:
            return (
                f"the NVIDIA driver runs CUDA up to {driver // 1000}.{driver % 1000 // 10}, {self.product.title} here "
                f"needs CUDA {needed}: update the driver"
            )
        return None

    def versions(self) -> dict[str, str]:
        """Version of the library; the GPU and the CUDA of its driver where there is one."""
        found = {self.name: self._version() or "unknown"}
        gpu = _cuda.gpu()
        if gpu is not None:
            found |= {"device": f"{gpu.name} {gpu.uuid}", "driver_cuda": str(_cuda.driver_cuda_version())}
        return found

    def build(self, onnx_model: bytes, profile: HardwareProfile, example: np.ndarray) -> Plan:
        """Compile a model with one input in a child process.

        Args:
            onnx_model: serialised ONNX; what runs in which precision stands in it (strong typing).
            profile: its ``options`` are those of the runtime's module.
            example: [n, ...]; the plan is for batches of n.

        Returns:
            The plan; the same bytes for the same model, options, versions and (TensorRT) timing cache.

        Raises:
            UnsupportedError: the library refuses the model, crashes on it, or is not done in time.
            RetryableError: device memory ran out, or the system killed the build.
        """
        missing = self.missing()
        if missing is not None:
            raise UnsupportedError(missing)
        from autocomp.runtimes import _onnx_graph as graphs

        model = graphs.load(onnx_model)
        graphs.fix_batch(model, example.shape)
        graphs.name_nodes(model)
        nodes = graphs.layer_weights(model)
        with tempfile.TemporaryDirectory(prefix=f"autocomp-{self.name}-") as name:
            folder = Path(name)
            (folder / "model.onnx").write_bytes(model.SerializeToString(deterministic=True))
            (folder / "request.json").write_text(json.dumps(self._request(profile)), encoding="utf-8")
            self._run_child(folder, _timeout_s(profile))
            result = json.loads((folder / "result.json").read_text(encoding="utf-8"))
            plan = folder / "plan.bin"
            if not plan.is_file():
                raise self._refusal(result, [node.name for node in model.graph.node], _timeout_s(profile))
            return self._plan(plan.read_bytes(), result, nodes)

    def load(self, plan: Plan, profile: HardwareProfile, example: np.ndarray) -> Engine:
        """The plan on the GPU, with its own stream, buffers bound once and the work captured as a CUDA graph."""
        reason = self.missing() or self.no_device(profile)
        if reason is not None:
            raise UnsupportedError(f"{self.product.title} cannot run a plan here: {reason}")
        built, here = plan.details.get("version"), self._version()
        if built and here and built != here:
            raise UnsupportedError(
                f"the plan was built with {self.product.title} {built}, here is {here}: build it again"
            )
        from autocomp.runtimes._trt_engine import TensorRTEngine

        with ExitStack() as stack:
            device = _cuda.open_device(str(profile.options.get("cuda_binding", _cuda.BINDINGS[0])))
            stack.callback(device.close)
            module, graph = str(self._module()), bool(profile.options.get("cuda_graph", True))
            engine = TensorRTEngine(device, module, self.product.title, plan.data, example, graph=graph)
            stack.pop_all()
        return engine

    def _module(self) -> str | None:
        return next((name for name in self.product.modules if importlib.util.find_spec(name) is not None), None)

    def _version(self) -> str | None:
        return next((v for name in self.product.distributions if (v := environment.version(name)) is not None), None)

    def _cuda_major(self) -> int | None:
        """CUDA that the installed libraries are for, by their distribution's name."""
        for distribution in self.product.distributions:
            found = re.search(r"-cu(\d+)", distribution)
            if found and environment.version(distribution) is not None:
                return int(found[1])
        return None

    def _request(self, profile: HardwareProfile) -> dict[str, Any]:
        """What the child is told; see :mod:`._trt_build`."""
        options = profile.options
        cache = self._timing_cache() if self.product.needs_device else None
        return {
            "module": self._module(),
            "compute_capability": None if self.product.needs_device else options.get("compute_capability"),
            "builder_optimization_level": options.get("builder_optimization_level"),
            "workspace_bytes": options.get("workspace_bytes"),
            "tf32": bool(options.get("tf32", False)),
            "timing_cache": str(cache) if cache else None,
            "deadline_s": _CANCEL_SHARE * _timeout_s(profile),
        }

    def _timing_cache(self) -> Path | None:
        """One file a device and version: what kernels were timed at, so that builds repeat."""
        gpu = _cuda.gpu()
        folder = environment.cache_folder() / self.name
        return folder / f"timing-{self._version()}-{gpu.uuid}.cache" if gpu is not None else None

    def _run_child(self, folder: Path, timeout_s: float) -> None:
        """Run :mod:`._trt_build`; returns once ``result.json`` is there."""
        program = Path(__file__).with_name("_trt_build.py")
        output = folder / "output.txt"
        command = [sys.executable, "-P", str(program), str(folder)]  # -P: or this folder's tensorrt.py were taken
        with output.open("wb") as stream:
            child = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=stream, stderr=stream)
            try:
                code = child.wait(timeout_s)
            except subprocess.TimeoutExpired:
                raise self._timeout(timeout_s, _last_line(output)) from None
            finally:
                if child.poll() is None:
                    child.kill()
                    child.wait()
        if code < 0:
            raise self._died(code, _last_line(output))
        if not (folder / "result.json").is_file():
            raise UnsupportedError(
                f"{self.product.title}: the build ended with exit status {code}: {_last_line(output)}; "
                "check the installation with autocomp doctor",
                failure="died",
            )

    def _timeout(self, timeout_s: float, phase: str) -> UnsupportedError:
        return UnsupportedError(
            f"{self.product.title}: the build took over {timeout_s:g} s and was stopped"
            f"{f' (phase: {phase})' if phase else ''}; raise options.timeout_s of the profile",
            failure="timeout",
        )

    def _died(self, code: int, phase: str) -> AutocompError:
        """SIGKILL comes from outside (out of memory); any other signal from the library itself."""
        known = {s.value: s.name for s in signal.Signals}
        name = known.get(-code, f"signal {-code}")
        what = f"{self.product.title}: the build was ended by {name}{f' (last line: {phase})' if phase else ''}"
        if -code == getattr(signal, "SIGKILL", 9):
            return RetryableError(f"{what}: something killed it; free memory and try again", failure="died")
        return UnsupportedError(f"{what}: the library crashed on this model; take another target", failure="died")

    def _refusal(self, result: Mapping[str, Any], names: list[str], timeout_s: float) -> AutocompError:
        """Why there is no plan: one line with the node's name."""
        if result.get("cancelled"):
            return self._timeout(timeout_s, "")
        errors = [" ".join(str(e).split()) for e in result["errors"]] or ["the library gives no reason"]
        text = errors[0] if errors[0] != "false" else "the operation is not supported"  # how the parser says so
        node = str(result["node"]) or max((n for n in names if any(n in e for e in errors)), key=len, default="")
        operator = f", {result['operator']}" if result["operator"] else ""
        where = f" (node {node}{operator})" if node else ""
        if any(_OUT_OF_MEMORY.search(e) for e in errors):
            return RetryableError(
                f"{self.product.title}{where}: out of device memory: {text[:_MESSAGE_CHARACTERS]}; close other "
                "programs on the GPU or lower options.workspace_bytes",
                failure="oom",
            )
        return UnsupportedError(
            f"{self.product.title} cannot build the model{where}: {text[:_MESSAGE_CHARACTERS]}; {_remedy(errors)}"
        )

    def _plan(self, data: bytes, result: Mapping[str, Any], nodes: Mapping[str, str]) -> Plan:
        kernels: list[Kernel] = kernels_from_log(result["layers"]) or kernels_from_inspector(result["inspector"])
        layers = layer_precisions(kernels, nodes)
        silent = sorted(set(nodes.values()) - set(layers))
        warnings = [*dict.fromkeys(result["warnings"]), *(f"no kernel tells what {name} runs in" for name in silent)]
        weights = _WEIGHTS.search(result["weights"])
        return Plan(
            data=data,
            layers=layers,
            details={
                "version": result["version"],
                "build_s": result["seconds"],
                "weights_memory_bytes": int(weights[1]) if weights else None,
                "kernels": [kernel.to_json() for kernel in kernels],
                "warnings": warnings,
            },
        )


def _timeout_s(profile: HardwareProfile) -> float:
    return float(profile.options.get("timeout_s", TIMEOUT_S))


def _last_line(path: Path) -> str:
    lines = path.read_text(encoding="utf-8", errors="replace").split("\n")
    return next((" ".join(line.split())[:_MESSAGE_CHARACTERS] for line in reversed(lines) if line.strip()), "")


def _remedy(errors: list[str]) -> str:
    """What the user can do, by what the library complains of."""
    text = " ".join(errors)
    if "HW-specific datatypes" in text or "is not supported on" in text:
        return "this device has no such precision: take it out of the profile's placement and precisions"
    if "zero point" in text.lower() or "zeropoint" in text.lower() or "symmetric" in text.lower():
        return "only symmetric quantization is taken: use a profile with placement.symmetric = true"
    if "empty network" in text:
        return "export the model again"
    return "rewrite that part of the network, or take another target"
