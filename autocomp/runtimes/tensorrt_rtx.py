"""TensorRT-RTX for NVIDIA's RTX GPUs: plans are built ahead of time on any machine, kernels compiled on the device."""

from __future__ import annotations

from autocomp.runtimes._trt import COMMON_OPTIONS, Product, TensorRT

PLAN_SUFFIX = ".plan"
# Settings a profile may give (schema: docs/hardware_profiles.md). No Hopper here: that is TensorRT's.
OPTIONS = {**COMMON_OPTIONS, "compute_capability": ("SM75", "SM80", "SM86", "SM89", "SM120", "SM121")}


def runtime() -> TensorRT:
    """The runtime of this module."""
    return TensorRT(
        Product(
            name="tensorrt_rtx",
            title="TensorRT-RTX",
            modules=("tensorrt_rtx_bindings", "tensorrt_rtx"),
            distributions=("tensorrt-rtx-cu13-bindings", "tensorrt-rtx-cu12-bindings", "tensorrt-rtx"),
            needs_device=False,
        )
    )
