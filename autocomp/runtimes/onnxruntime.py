"""ONNX Runtime on this machine's CPU.

Q/DQ models run as integer kernels where the graph optimiser recognises the pattern; which layers
did is read back from the optimised graph, never assumed.
"""

from __future__ import annotations

import json
import math
import re
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from autocomp.core.hardware import Engine, HardwareProfile, Plan
from autocomp.environment import not_installed
from autocomp.errors import UnsupportedError
from autocomp.runtimes import _cpu

if TYPE_CHECKING:
    import numpy as np

# Settings a profile may give (schema: docs/hardware_profiles.md); what it leaves out is ONNX Runtime's default.
OPTIONS: dict[str, str | tuple[Any, ...]] = {
    "intra_op_num_threads": "threads",
    "graph_optimization": ("all", "extended", "basic", "disabled"),
    "allow_spinning": (True, False),
}
_LEVELS = {
    "all": "ORT_ENABLE_ALL",
    "extended": "ORT_ENABLE_EXTENDED",
    "basic": "ORT_ENABLE_BASIC",
    "disabled": "ORT_DISABLE_ALL",
}
# It would turn the float32 weights of a layer between two quantized values into int8, per tensor:
# a layer that was asked to stay float would lose accuracy that no simulation has seen. The int32
# biases that it also makes, and that integer convolutions need, are written by ``_onnx_graph``.
_DISABLED_OPTIMIZERS = ["WeightBiasQuantization"]
_NUMPY_TYPES = {"tensor(float)": "float32", "tensor(int64)": "int64", "tensor(int32)": "int32"}
_LAYER_KERNELS = (
    "QLinearConv",
    "QGemm",
    "QLinearMatMul",
    "Conv",
    "FusedConv",
    "ConvTranspose",
    "Gemm",
    "FusedGemm",
    "MatMul",
    "FusedMatMul",
)
_PROFILED_RUNS = 100
_QUIET = 4  # fatal only: every error reaches us as an exception as well
_NODE = re.compile(r"""In Node, \("([^"]+)"|Name:'([^']+)'|[Nn]ode:? ?\(([^()]+)\)|Node \(([^()]+)\)""")


class OnnxRuntimeEngine:
    """A session with its fixed input bound once, so that timing copies nothing.

    Args:
        session: onnxruntime.InferenceSession with one input.
        example: [n, ...], the input that is timed; brought to the type of the model's input.
    """

    def __init__(self, session: Any, example: np.ndarray) -> None:
        import numpy as np
        import onnxruntime as ort

        self._session: Any = session
        self._input, self._output = session.get_inputs()[0].name, session.get_outputs()[0].name
        self._type = _NUMPY_TYPES.get(session.get_inputs()[0].type, "float32")
        fixed = np.ascontiguousarray(example, dtype=self._type)
        first = self.run(fixed)
        self._binding: Any = session.io_binding()
        self._binding.bind_ortvalue_input(self._input, ort.OrtValue.ortvalue_from_numpy(fixed))
        self._binding.bind_ortvalue_output(
            self._output, ort.OrtValue.ortvalue_from_shape_and_type(list(first.shape), first.dtype)
        )

    def run(self, inputs: np.ndarray) -> np.ndarray:
        """First output [n, ...] for inputs [n, ...]; :class:`UnsupportedError` where they do not fit."""
        import numpy as np

        if self._session is None:
            raise UnsupportedError("onnxruntime: the engine is closed; build it again")
        try:
            (output,) = self._session.run([self._output], {self._input: np.ascontiguousarray(inputs, self._type)})
        except raised() as error:
            raise UnsupportedError(_explain("cannot run the model", error)) from error
        return np.asarray(output)

    def time_once_s(self) -> float:
        """Seconds of one inference on the example; input and output stay where they are."""
        if self._session is None:
            raise UnsupportedError("onnxruntime: the engine is closed; build it again")
        run, binding = self._session.run_with_iobinding, self._binding
        start = time.perf_counter()
        run(binding)
        return time.perf_counter() - start

    def close(self) -> None:
        """Free the session. Twice is fine."""
        self._binding = None
        self._session = None


class OnnxRuntime:
    """CPUExecutionProvider, sequential execution, threads from the profile."""

    name = "onnxruntime"

    def missing(self) -> str | None:
        """None when ONNX Runtime is installed."""
        return not_installed("onnxruntime", "onnx")

    def no_device(self, profile: HardwareProfile) -> str | None:
        """None where this CPU is the profile's device, or the profile names none."""
        return _cpu.no_device(profile)

    def versions(self) -> dict[str, str]:
        """Version, and the CPU with the instructions its integer kernels use."""
        import onnxruntime as ort

        return {"onnxruntime": ort.__version__, **_cpu.versions()}

    def build(self, onnx_model: bytes, profile: HardwareProfile, example: np.ndarray) -> Plan:
        """Optimise a model with one input, float32 or token ids, for this CPU.

        Args:
            onnx_model: serialised ONNX; int8 layers as explicit QuantizeLinear / DequantizeLinear.
            profile: its ``options`` are :data:`OPTIONS`.
            example: [n, ...], the input the engine is timed with.

        Returns:
            The optimised ONNX model, int8 weights as int8.

        Raises:
            UnsupportedError: ONNX Runtime refuses the model; with the node's name where it tells.
        """
        missing = self.missing()
        if missing is not None:
            raise UnsupportedError(missing)
        import onnxruntime as ort

        from autocomp.runtimes import _onnx_graph as graphs

        source = graphs.load(onnx_model)
        prepared = source.SerializeToString() if graphs.quantize_biases(source) else onnx_model
        with tempfile.TemporaryDirectory(prefix="autocomp-onnxruntime-") as folder:
            optimised = Path(folder) / "optimised.onnx"
            try:
                session = ort.InferenceSession(
                    prepared,
                    _session_options(profile, optimised=optimised),
                    providers=["CPUExecutionProvider"],
                    disabled_optimizers=_DISABLED_OPTIMIZERS,
                )
            except raised() as error:
                raise UnsupportedError(_explain("cannot build the model", error)) from error
            data = optimised.read_bytes()
        inputs = session.get_inputs()
        if len(inputs) != 1:
            names = ", ".join(i.name for i in inputs)
            raise UnsupportedError(f"onnxruntime: the model has {len(inputs)} inputs ({names}); engines take one")
        return Plan(data=data, layers=graphs.layer_precisions(source, graphs.load(data)))

    def load(self, plan: Plan, profile: HardwareProfile, example: np.ndarray) -> Engine:
        """A session on the optimised model, which is not optimised again."""
        import onnxruntime as ort

        try:
            session = ort.InferenceSession(
                plan.data, _session_options(profile, level="disabled"), providers=["CPUExecutionProvider"]
            )
        except raised() as error:
            raise UnsupportedError(_explain("cannot load the plan", error)) from error
        return OnnxRuntimeEngine(session, example)

    def layer_times_s(self, plan: Plan, profile: HardwareProfile, example: np.ndarray) -> dict[str, float]:
        """The fastest of :data:`_PROFILED_RUNS` runs of each layer's kernel, from ONNX Runtime's profile.

        Kernels and ``plan.layers`` stand in the same order; {} where their numbers or precisions differ.
        """
        import onnxruntime as ort

        with tempfile.TemporaryDirectory(prefix="autocomp-onnxruntime-") as folder:
            options = _session_options(profile, level="disabled")
            options.enable_profiling = True
            options.profile_file_prefix = str(Path(folder) / "profile")
            session = ort.InferenceSession(plan.data, options, providers=["CPUExecutionProvider"])
            info = session.get_inputs()[0]
            feed = {info.name: example.astype(_NUMPY_TYPES.get(info.type, "float32"))}
            for _ in range(_PROFILED_RUNS):
                session.run(None, feed)
            events = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
        kernels: dict[str, tuple[str, float]] = {}
        for event in events:
            kind = event.get("args", {}).get("op_name", "")
            if event["name"].endswith("_kernel_time") and kind in _LAYER_KERNELS:
                fastest = min(event["dur"] * 1e-6, kernels.get(event["name"], ("", math.inf))[1])
                kernels[event["name"]] = ("int8" if kind in _LAYER_KERNELS[:3] else "float32", fastest)
        if [precision for precision, _ in kernels.values()] != list(plan.layers.values()):
            return {}
        return dict(zip(plan.layers, (seconds for _, seconds in kernels.values()), strict=True))


def runtime() -> OnnxRuntime:
    """The runtime of this module."""
    return OnnxRuntime()


def _session_options(profile: HardwareProfile, level: str | None = None, optimised: Path | None = None) -> Any:
    import onnxruntime as ort

    ort.disable_telemetry_events()
    options = ort.SessionOptions()
    options.log_severity_level = _QUIET
    options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
    options.intra_op_num_threads = int(profile.options.get("intra_op_num_threads", 0))
    options.graph_optimization_level = getattr(
        ort.GraphOptimizationLevel, _LEVELS[level or profile.options.get("graph_optimization", "all")]
    )
    if "allow_spinning" in profile.options:
        options.add_session_config_entry("session.intra_op.allow_spinning", str(int(profile.options["allow_spinning"])))
    if optimised is not None:
        options.optimized_model_filepath = str(optimised)
    return options


def raised() -> tuple[type[Exception], ...]:
    """What ONNX Runtime raises: its exceptions have no common base of their own."""
    from onnxruntime.capi import onnxruntime_pybind11_state as state

    names = ("EPFail", "EngineError", "Fail", "InvalidArgument", "InvalidGraph", "InvalidProtobuf", "NoModel")
    own = [getattr(state, n) for n in (*names, "NoSuchFile", "NotImplemented", "RuntimeException") if hasattr(state, n)]
    return (*own, RuntimeError, ValueError)


def _explain(what: str, error: Exception) -> str:
    """One line: the node where ONNX Runtime names one, then what it says."""
    text = " ".join(str(error).split())
    text = re.sub(r"^\[ONNXRuntimeError\] : \d+ : ", "", text)
    found = _NODE.search(text)
    node = next((g for g in found.groups() if g), None) if found else None
    where = f" (node {node})" if node else ""
    return f"onnxruntime: {what}{where}: {text[:400]}"
