"""One TensorRT build: the program of a child process, which imports nothing of autocomp.

A build that fails late leaves the library in a state in which the next build differs, one that crashes takes
its process along, and one that hangs cannot be interrupted: so each build gets a process of its own.

    python -P _trt_build.py FOLDER

reads ``model.onnx`` and ``request.json`` there, writes ``plan.bin`` (none where the build failed) and
``result.json``; progress goes to standard output, a phase a line.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import threading
import time
from pathlib import Path
from typing import Any


def main(folder: Path) -> None:
    """Build what ``folder`` asks for."""
    request = json.loads((folder / "request.json").read_text(encoding="utf-8"))
    trt = importlib.import_module(request["module"])
    result: dict[str, Any] = {"version": str(trt.__version__), "errors": [], "node": "", "operator": ""}
    log = _logger(trt)
    start = time.perf_counter()
    plan = _build(trt, log, (folder / "model.onnx").read_bytes(), request, result)
    result["seconds"] = round(time.perf_counter() - start, 3)
    lines = list(log.lines)
    result["errors"] += [text for severity, text in lines if severity in ("ERROR", "INTERNAL_ERROR")]
    result["warnings"] = [text for severity, text in lines if severity == "WARNING"]
    result["weights"] = next((text for _, text in lines if text.startswith("Total Weights Memory")), "")
    result["layers"] = next((text for _, text in lines if text.startswith("Layers:")), "")
    if plan is not None:
        (folder / "plan.bin").write_bytes(plan)
        result["inspector"] = "" if result["layers"] else _inspected(trt, log, plan)
    (folder / "result.json").write_text(json.dumps(result), encoding="utf-8")


def _build(trt: Any, log: Any, model: bytes, request: dict[str, Any], result: dict[str, Any]) -> bytes | None:
    """The plan, or None with what was wrong in ``result``."""
    builder = trt.Builder(log)
    flags = 0
    if hasattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED"):  # required on 10.x, ignored on 11
        flags |= 1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
    network = builder.create_network(flags)
    parser = trt.OnnxParser(network, log)
    if not parser.parse(model):
        errors = [parser.get_error(i) for i in range(parser.num_errors)]
        result["errors"] = [str(e.desc()) for e in errors]
        if errors and hasattr(errors[0], "node_name"):
            result["node"], result["operator"] = str(errors[0].node_name()), str(errors[0].node_operator())
        return None
    if network.num_outputs == 0 or network.num_layers == 0:
        result["errors"] = ["the model was read as an empty network"]
        return None
    config = _config(trt, builder, request)
    cache = Path(request["timing_cache"]) if request.get("timing_cache") else None
    if cache is not None:
        config.set_timing_cache(config.create_timing_cache(cache.read_bytes() if cache.is_file() else b""), False)
    monitor = _monitor(trt, time.monotonic() + request["deadline_s"])
    if monitor is not None:
        config.progress_monitor = monitor
    plan = builder.build_serialized_network(network, config)
    if cache is not None:
        _keep(cache, bytes(config.get_timing_cache().serialize()))
    if plan is None and monitor is not None and monitor.cancelled:
        result["cancelled"] = True
    return None if plan is None else bytes(plan)


def _config(trt: Any, builder: Any, request: dict[str, Any]) -> Any:
    config = builder.create_builder_config()
    capability = request.get("compute_capability")
    if capability and hasattr(config, "set_compute_capability"):  # ahead of time, for a device that is not here
        config.num_compute_capabilities = 1
        config.set_compute_capability(getattr(trt.ComputeCapability, capability), 0)
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED  # or nobody can tell what runs in which precision
    if request.get("builder_optimization_level") is not None:
        config.builder_optimization_level = request["builder_optimization_level"]
    if hasattr(trt.BuilderFlag, "TF32"):
        (config.set_flag if request["tf32"] else config.clear_flag)(trt.BuilderFlag.TF32)
    if request.get("workspace_bytes"):
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, request["workspace_bytes"])
    return config


def _logger(trt: Any) -> Any:
    """A logger that keeps every line; builders may call it from several threads."""

    class Log(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.lines: list[tuple[str, str]] = []
            self._lock = threading.Lock()

        def log(self, severity: Any, msg: str) -> None:
            with self._lock:
                self.lines.append((severity.name, str(msg)))

    return Log()


def _monitor(trt: Any, deadline: float) -> Any:
    """Prints phases and cancels behind ``deadline`` (monotonic seconds); None where the library has no such thing."""
    if not hasattr(trt, "IProgressMonitor"):
        return None

    class Monitor(trt.IProgressMonitor):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.cancelled = False

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            print(phase_name, flush=True)

        def phase_finish(self, phase_name: str) -> None:
            pass

        def step_complete(self, phase_name: str, step: int) -> bool:
            self.cancelled = self.cancelled or time.monotonic() > deadline
            return not self.cancelled

    return Monitor()


def _inspected(trt: Any, log: Any, plan: bytes) -> str:
    """What the engine's inspector says, as JSON: for libraries whose log has no table. Needs the device."""
    engine = trt.Runtime(log).deserialize_cuda_engine(plan)
    if engine is None:
        return ""
    return str(engine.create_engine_inspector().get_engine_information(trt.LayerInformationFormat.JSON))


def _keep(path: Path, data: bytes) -> None:
    """Replace the timing cache at once: several builds may write it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_name(f"{path.name}.{os.getpid()}")
    fresh.write_bytes(data)
    fresh.replace(path)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
