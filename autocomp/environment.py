"""This machine: what a record of a measurement needs to say, and what is missing here.

Imports nothing heavy: versions are read from package metadata, devices by asking ``nvidia-smi``.
"""

from __future__ import annotations

import functools
import importlib.metadata
import importlib.util
import os
import platform
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import autocomp

# Vector and integer dot-product instructions: they decide which kernels a CPU runtime picks.
CPU_FLAGS = (
    *("avx", "avx2", "fma", "f16c", "avx512f", "avx512bw", "avx512vl"),
    *("avx_vnni", "avx512_vnni", "avx512_bf16", "avx512_fp16", "amx_bf16", "amx_int8"),
    *("asimd", "asimddp", "asimdhp", "i8mm", "bf16", "sve"),
)
# What decides results or speed, by distribution name.
PACKAGES = (
    *("torch", "numpy", "pandas", "optuna", "constriction", "onnx", "onnxscript", "onnxruntime", "scikit-learn"),
    *("safetensors", "pillow", "psutil", "openvino", "tensorrt", "tensorrt-rtx-cu13-bindings", "ray"),
    *("optuna-dashboard", "torchvision", "timm", "plotly", "matplotlib"),
)
_TIMEOUT_S = 10.0


@functools.cache
def cpu() -> dict[str, Any]:
    """``model`` (text), ``stepping`` (family/model/stepping), ``flags`` (of :data:`CPU_FLAGS`), usable ``cores``."""
    fields = _cpuinfo()
    present = set(fields.get("flags", fields.get("Features", "")).split())
    model = fields.get("model name") or _sysctl("machdep.cpu.brand_string") or platform.processor()
    numbers = [fields[k] for k in ("cpu family", "model", "stepping") if k in fields]
    return {
        "model": model or platform.machine(),
        "stepping": "/".join(numbers),
        "flags": frozenset(f for f in CPU_FLAGS if f in present),
        "cores": usable_cores(),
    }


def usable_cores() -> int:
    """Logical cores this process may run on (affinity respected where the system has it)."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _cpuinfo() -> dict[str, str]:
    """The first processor of /proc/cpuinfo; empty elsewhere."""
    try:
        first = Path("/proc/cpuinfo").read_text(encoding="utf-8").split("\n\n", 1)[0]
    except OSError:
        return {}
    pairs = (line.split(":", 1) for line in first.splitlines() if ":" in line)
    return {key.strip(): value.strip() for key, value in pairs}


def _sysctl(name: str) -> str:
    return _command(["sysctl", "-n", name]) or "" if sys.platform == "darwin" else ""


def _command(arguments: list[str], cwd: Path | None = None) -> str | None:
    """Standard output of a command, or None where there is none or it fails."""
    if shutil.which(arguments[0]) is None:
        return None
    try:
        done = subprocess.run(arguments, cwd=cwd, capture_output=True, text=True, timeout=_TIMEOUT_S, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def governor() -> str | None:
    """Frequency governor of the first core, None where the system does not tell (virtual machines)."""
    try:
        return Path("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor").read_text(encoding="ascii").strip()
    except OSError:
        return None


def load_average() -> float | None:
    """Runnable processes averaged over the last minute, None where the system does not tell."""
    try:
        return round(os.getloadavg()[0], 2)
    except OSError:
        return None


@functools.cache
def gpus() -> list[dict[str, str]]:
    """One entry a CUDA device: ``name``, ``uuid``, ``driver``, ``memory``, ``clock``; empty without nvidia-smi."""
    keys = {
        "name": "name",
        "uuid": "uuid",
        "driver": "driver_version",
        "memory": "memory.total",
        "clock": "clocks.max.sm",
    }
    text = _command(["nvidia-smi", f"--query-gpu={','.join(keys.values())}", "--format=csv,noheader"])
    rows = [re.split(r",\s*", line) for line in (text or "").splitlines() if line.strip()]
    return [dict(zip(keys, row, strict=True)) for row in rows if len(row) == len(keys)]


def version(distribution: str) -> str | None:
    """Installed version of a distribution, from its metadata."""
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def git_commit() -> str | None:
    """Commit of the checkout this package runs from ("…-dirty" with local changes), None elsewhere."""
    root = Path(__file__).resolve().parent.parent
    if not (root / ".git").exists():
        return None
    commit = _command(["git", "rev-parse", "HEAD"], cwd=root)
    if commit is None:
        return None
    changed = _command(["git", "status", "--porcelain", "--untracked-files=no"], cwd=root)
    return f"{commit}-dirty" if changed else commit


def environment() -> dict[str, Any]:
    """What a run's ``environment.json`` holds: plain values only, nothing that names the user."""
    import psutil

    return {
        "autocomp": autocomp.__version__,
        "commit": git_commit(),
        "machine": platform.machine(),
        "cpu": cpu()["model"],
        "cpu_flags": sorted(cpu()["flags"]),
        "cores": cpu()["cores"],
        "physical_cores": psutil.cpu_count(logical=False),
        "governor": governor(),
        "memory_bytes": int(psutil.virtual_memory().total),
        "os": platform.platform(),
        "python": platform.python_version(),
        "packages": {name: found for name in PACKAGES if (found := version(name)) is not None},
        "gpus": [dict(gpu) for gpu in gpus()],
    }


def cache_folder() -> Path:
    """The user's cache: ``AUTOCOMP_CACHE``, else ``XDG_CACHE_HOME``/autocomp, else ``~/.cache/autocomp``."""
    own = os.environ.get("AUTOCOMP_CACHE")
    if own:
        return Path(own).expanduser()
    shared = os.environ.get("XDG_CACHE_HOME")
    return (Path(shared) if shared else Path.home() / ".cache") / "autocomp"


# What autocomp uses: import name, distributions it may come from, what it is for, how to get it.
_PARTS = (
    ("torch", ("torch",), "networks", "pip install torch"),
    ("optuna", ("optuna",), "the search", "pip install optuna"),
    ("constriction", ("constriction",), "entropy coders", "pip install constriction"),
    ("onnx", ("onnx",), "export", "pip install onnx onnxscript"),
    ("onnxruntime", ("onnxruntime", "onnxruntime-gpu"), "target cpu-onnxruntime", "pip install onnxruntime"),
    ("openvino", ("openvino",), "OpenVINO targets", 'pip install "autocomp[openvino]"'),
    (
        "tensorrt",
        ("tensorrt", "tensorrt-cu13", "tensorrt-cu12"),
        "TensorRT targets",
        'pip install "autocomp[tensorrt]"',
    ),
    (
        "tensorrt_rtx_bindings",
        ("tensorrt-rtx-cu13-bindings", "tensorrt-rtx"),
        "TensorRT-RTX targets",
        'pip install "autocomp[tensorrt-rtx]"',
    ),
    ("cuda", ("cuda-bindings", "cuda-python"), "TensorRT targets: memory and timing", "pip install cuda-bindings"),
    ("pycuda", ("pycuda",), "TensorRT targets, where cuda-bindings is not installed", "pip install pycuda"),
    ("pynvml", ("nvidia-ml-py",), "clocks and other processes of a GPU while it is timed", "pip install nvidia-ml-py"),
    ("ray", ("ray",), "--cluster", 'pip install "autocomp[ray]"'),
    ("psycopg", ("psycopg",), "--storage postgresql://...", 'pip install "autocomp[postgres]"'),
    ("optuna_dashboard", ("optuna-dashboard",), "watching a study", 'pip install "autocomp[dashboard]"'),
    ("torchvision", ("torchvision",), "models torchvision:NAME", "pip install torchvision"),
    ("timm", ("timm",), "models timm:NAME", "pip install timm"),
)
_DRIVER = "on a machine with an NVIDIA GPU: sudo ubuntu-drivers install, or nvidia.com/drivers"
_PYTHON = ((3, 11), (3, 14))


def doctor() -> list[dict[str, str]]:
    """What is here and what is missing: ``what``, ``state`` ("ok" or "missing"), ``detail``, ``remedy`` ("" when ok).

    Imports none of the packages it looks for.
    """
    return [_check_python(), *(_check_package(*part) for part in _PARTS), _check_gpus(), _check_cache()]


def _row(what: str, ok: bool, detail: str, remedy: str) -> dict[str, str]:
    return {"what": what, "state": "ok" if ok else "missing", "detail": detail, "remedy": "" if ok else remedy}


def _check_python() -> dict[str, str]:
    low, high = (".".join(map(str, v)) for v in _PYTHON)
    ok = _PYTHON[0] <= sys.version_info[:2] < _PYTHON[1]
    return _row("python", ok, platform.python_version(), f"install Python {low} or later, below {high}")


def _check_package(module: str, distributions: tuple[str, ...], use: str, remedy: str) -> dict[str, str]:
    if importlib.util.find_spec(module) is None:
        return _row(module, False, f"not installed; needed for {use}", remedy)
    found = next((v for v in map(version, distributions) if v is not None), "version unknown")
    return _row(module, True, found, remedy)


def _check_gpus() -> dict[str, str]:
    devices = ", ".join(f"{gpu['name']} (driver {gpu['driver']})" for gpu in gpus())
    detail = devices or _no_gpu()
    return _row("CUDA device", bool(devices), detail, _DRIVER)


def _no_gpu() -> str:
    """Which half is missing: the card or its driver."""
    if Path("/proc/driver/nvidia/version").exists():
        return "an NVIDIA driver is loaded, but nvidia-smi shows no device"
    return "no NVIDIA driver is loaded; CPU targets do not need one, latencies of GPU targets are predicted"


def _check_cache() -> dict[str, str]:
    """The nearest existing folder decides whether the cache can be made; nothing is written."""
    folder = cache_folder()
    existing = next((p for p in (folder, *folder.parents) if p.exists()), folder)
    ok = existing.is_dir() and os.access(existing, os.W_OK | os.X_OK)
    detail = str(folder) if ok else f"{folder}: {existing} cannot be written"
    return _row("cache folder", ok, detail, "set AUTOCOMP_CACHE to a folder you can write")


def not_installed(*modules: str, remedy: str | None = None) -> str | None:
    """One line naming the modules that are missing and what installs them; None where all are here.

    Args:
        modules: top-level names.
        remedy: the command; default: pip install of what is missing.
    """
    missing = [name for name in modules if importlib.util.find_spec(name) is None]
    return f"{' and '.join(missing)} not installed; {remedy or 'pip install ' + ' '.join(missing)}" if missing else None
