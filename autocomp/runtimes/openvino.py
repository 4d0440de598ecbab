"""OpenVINO on this machine's CPU.

Q/DQ pairs become integer kernels where OpenVINO's low-precision passes can push the dequantization behind the
layer; which layers did is read from the graph that is executed, never assumed.
Source: OpenVINO documentation, "Low Precision Transformations" and "CPU Device".
"""

from __future__ import annotations

import io
import re
import time
from typing import TYPE_CHECKING, Any

from autocomp.core.hardware import Engine, HardwareProfile, Plan
from autocomp.environment import not_installed
from autocomp.errors import UnsupportedError
from autocomp.runtimes import _cpu

if TYPE_CHECKING:
    import numpy as np
    from onnx import ModelProto

# Settings a profile may give (schema: docs/hardware_profiles.md); what it leaves out is OpenVINO's default,
# except for the precision: left to itself OpenVINO runs float32 layers in bfloat16 where the CPU can.
OPTIONS: dict[str, str | tuple[Any, ...]] = {
    "inference_num_threads": "threads",
    "enable_cpu_pinning": (True, False),
    "inference_precision": ("float32", "bfloat16", "float16"),
}
_TYPES = {"float32": "f32", "bfloat16": "bf16", "float16": "f16"}
_PRECISIONS = {"u8": "int8", "i8": "int8", **{short: name for name, short in _TYPES.items()}}
_EXECUTED = ("Convolution", "Deconvolution", "FullyConnected", "MatMul")
_MOVES = ("Convert", "Reorder", "Reshape", "Transpose")
_NODE = re.compile(r"<Node\(\w+\): ([^>]+)>")
_NO_RULE = re.compile(r"No conversion rule found for operations: (\w+)-\d+")
_PREAMBLE = re.compile(r"^(Exception from |Check '.*' failed at |Summary:|-- Conversion is failed)")


class OpenVinoEngine:
    """A compiled model with its fixed input set once, so that timing copies nothing.

    Args:
        compiled: openvino.CompiledModel with one input.
        example: [n, ...], the input that is timed; brought to the type of the model's input.
    """

    def __init__(self, compiled: Any, example: np.ndarray) -> None:
        import numpy as np
        import openvino

        self._type = compiled.input(0).element_type.to_dtype()
        self._batch = int(compiled.input(0).shape[0])
        self._requests: tuple[Any, Any] | None = (compiled.create_infer_request(), compiled.create_infer_request())
        fixed = np.ascontiguousarray(example, dtype=self._type)
        self.run(fixed)
        try:
            self._requests[1].set_input_tensor(openvino.Tensor(fixed, shared_memory=True))
        except RuntimeError as error:
            raise UnsupportedError(_explain("cannot run the model", error)) from error
        self._fixed = fixed  # the tensor shares its memory

    def run(self, inputs: np.ndarray) -> np.ndarray:
        """First output [n, ...] for inputs [n, ...], run in batches of the size that was built, the last one padded.

        Raises:
            UnsupportedError: the inputs do not fit.
        """
        import numpy as np

        request, size = self._open()[0], self._batch
        padded = np.pad(inputs, [(0, -len(inputs) % size), *[(0, 0)] * (inputs.ndim - 1)]).astype(self._type)
        try:
            outputs = [np.array(request.infer([padded[i : i + size]])[0]) for i in range(0, len(padded), size)]
        except RuntimeError as error:
            raise UnsupportedError(_explain("cannot run the model", error)) from error
        return np.concatenate(outputs)[: len(inputs)]

    def time_once_s(self) -> float:
        """Seconds of one inference on the example; input and output stay where they are."""
        infer = self._open()[1].infer
        start = time.perf_counter()
        infer(share_outputs=True)
        return time.perf_counter() - start

    def close(self) -> None:
        """Free the requests and with them the model. Twice is fine."""
        self._requests = None

    def _open(self) -> tuple[Any, Any]:
        if self._requests is None:
            raise UnsupportedError("openvino: the engine is closed; build it again")
        return self._requests


class OpenVino:
    """The CPU plugin, one stream (latency), threads from the profile."""

    name = "openvino"

    def missing(self) -> str | None:
        """None when OpenVINO is installed."""
        return not_installed("openvino", "onnx", remedy='pip install "autocomp[openvino]"')

    def no_device(self, profile: HardwareProfile) -> str | None:
        """None where this CPU is the profile's device, or the profile names none."""
        return _cpu.no_device(profile)

    def versions(self) -> dict[str, str]:
        """Version, and the CPU with the instructions its integer kernels use."""
        import openvino

        return {"openvino": openvino.get_version(), **_cpu.versions()}

    def build(self, onnx_model: bytes, profile: HardwareProfile, example: np.ndarray) -> Plan:
        """Compile a model with one input, float32 or token ids, for this CPU.

        Args:
            onnx_model: serialised ONNX; int8 layers as explicit QuantizeLinear / DequantizeLinear.
            profile: its ``options`` are :data:`OPTIONS`.
            example: [n, ...], the input the engine is timed with.

        Returns:
            The compiled model as OpenVINO exports it: its graph after all passes, int8 weights as int8. It loads
            with the same OpenVINO version on a CPU with the same instructions.

        Raises:
            UnsupportedError: OpenVINO refuses the model; with the node's name where it tells.
        """
        missing = self.missing()
        if missing is not None:
            raise UnsupportedError(missing)
        import openvino

        from autocomp.runtimes import _onnx_graph as graphs

        source = graphs.load(onnx_model)
        prepared = source.SerializeToString() if graphs.quantize_before_concat(source) else onnx_model
        core = openvino.Core()
        try:
            model = core.read_model(prepared, b"")
            names = [i.get_any_name() for i in model.inputs]
            if len(names) != 1:
                raise UnsupportedError(
                    f"openvino: the model has {len(names)} inputs ({', '.join(names)}); engines take one"
                )
            model.reshape(list(example.shape))  # with a free batch axis 2026.4 gives wrong results (convnext in int8)
            compiled = core.compile_model(model, "CPU", _config(profile))
            data = compiled.export_model().getvalue()
        except RuntimeError as error:
            raise UnsupportedError(_explain("cannot build the model", error, source)) from error
        executed = _executed(compiled)
        found = {
            weight: executed.get(weight) or executed.get(node.name) or [("float32", "unknown")]
            for node, weight in graphs.layer_calls(source)
        }
        return Plan(
            data=data,
            layers=graphs.joined((weight, precision) for weight, calls in found.items() for precision, _ in calls),
            details={"kernels": {weight: calls[0][1] for weight, calls in found.items()}},
        )

    def load(self, plan: Plan, profile: HardwareProfile, example: np.ndarray) -> Engine:
        """The compiled model, read back."""
        import openvino

        try:
            compiled = openvino.Core().import_model(io.BytesIO(plan.data), "CPU", _config(profile))
        except RuntimeError as error:
            raise UnsupportedError(_explain("cannot load the plan", error)) from error
        return OpenVinoEngine(compiled, example)


def runtime() -> OpenVino:
    """The runtime of this module."""
    return OpenVino()


def _config(profile: HardwareProfile) -> dict[str, Any]:
    config: dict[str, Any] = {
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_PRECISION_HINT": _TYPES[profile.options.get("inference_precision", "float32")],
        # else activations in front of int8 weights are quantized on the fly, as nobody asked
        "DYNAMIC_QUANTIZATION_GROUP_SIZE": "0",
    }
    if "inference_num_threads" in profile.options:
        config["INFERENCE_NUM_THREADS"] = int(profile.options["inference_num_threads"])
    if "enable_cpu_pinning" in profile.options:
        config["ENABLE_CPU_PINNING"] = profile.options["enable_cpu_pinning"]
    return config


def _executed(compiled: Any) -> dict[str, list[tuple[str, str]]]:
    """(precision, kernel) of the layers that are executed, by the names of their weights and of the nodes in them.

    Weights keep their names, except where they are reshaped (grouped convolutions); nodes keep theirs, except
    where they are fused with a bias. In a subgraph that holds several products each runs in its weight's precision.
    """
    found: dict[str, list[tuple[str, str]]] = {}
    for op in compiled.get_runtime_model().get_ordered_ops():
        kind, kernel = _told(op, "layerType"), _told(op, "primitiveType")
        if kind not in _EXECUTED and kind != "Subgraph":
            continue
        weights = [_constant(source.get_node()) for source in op.input_values()[1:]]
        own = [] if kind == "Subgraph" else [(op, _precision(op))]
        for part, precision in [(w, own[0][1] if own else _element(w)) for w in weights] + own:
            for name in _told(part, "originalLayersNames").split(","):
                found.setdefault(name.removesuffix("/WithoutBiases"), []).append((precision, kernel))
    return found


def _precision(op: Any) -> str:
    """What a product computes in: "int8" where both factors are. ``runtimePrecision`` says so of one alone, too."""
    factors = [_element(source.get_node(), source.get_index()) for source in op.input_values()[:2]]
    return next((p for p in factors if p != "int8"), "int8")


def _element(op: Any, output: int = 0) -> str:
    """Precision of an output."""
    told = _told(op, "outputPrecisions").split(",")
    short = told[min(output, len(told) - 1)]  # one for all, where it says one
    return _PRECISIONS.get(short, short)


def _constant(op: Any) -> Any:
    """What ``op`` is made from, if it only moves or unpacks one constant."""
    while _told(op, "layerType") in _MOVES:
        op = op.input_value(0).get_node()
    return op


def _told(op: Any, key: str) -> str:
    info = op.get_rt_info()
    return str(info[key].astype(str)) if key in info else ""


def _explain(what: str, error: Exception, model: ModelProto | None = None) -> str:
    """One line: the node where OpenVINO names one, then what it says."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    said = " ".join([line for line in lines if not _PREAMBLE.match(line)] or lines)
    named, no_rule = _NODE.search(said), _NO_RULE.search(said)
    node = named.group(1) if named else None
    if no_rule and model is not None:
        node = next((n.name or n.output[0] for n in model.graph.node if n.op_type == no_rule.group(1)), None)
    where = f" (node {node})" if node else ""
    return f"openvino: {what}{where}: {said[:400]}"
