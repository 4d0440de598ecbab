"""TensorRT for NVIDIA's data-centre and embedded GPUs: builds on the device itself, timing kernels as it does."""

from __future__ import annotations

from autocomp.runtimes._trt import COMMON_OPTIONS, Product, TensorRT

PLAN_SUFFIX = ".plan"
# Settings a profile may give (schema: docs/hardware_profiles.md).
OPTIONS = {
    **COMMON_OPTIONS,
    "compute_capability": ("SM75", "SM80", "SM86", "SM87", "SM89", "SM90", "SM100", "SM103", "SM120", "SM121"),
}


def runtime() -> TensorRT:
    """The runtime of this module."""
    return TensorRT(
        Product(
            name="tensorrt",
            title="TensorRT",
            modules=("tensorrt",),
            distributions=("tensorrt", "tensorrt-cu13", "tensorrt-cu12"),
            needs_device=True,
        )
    )
