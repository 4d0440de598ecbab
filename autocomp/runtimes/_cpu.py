"""What CPU runtimes say about the processor: one device, whichever of them times on it."""

from __future__ import annotations

from autocomp.core.hardware import HardwareProfile
from autocomp.environment import cpu


def versions() -> dict[str, str]:
    """``device``, and the instructions that integer kernels use on it."""
    return {
        "device": f"{cpu()['model']}, {cpu()['cores']} cores",
        "int8_instructions": int8_instructions(cpu()["flags"]),
    }


def no_device(profile: HardwareProfile) -> str | None:
    """None where this CPU is the profile's device, or the profile names none."""
    if profile.device in versions()["device"]:
        return None
    return (
        f"{profile.name} is {profile.device}, this CPU is {cpu()['model']}: run it there, or take cpu-{profile.runtime}"
    )


def int8_instructions(flags: frozenset[str]) -> str:
    """The fastest integer dot product a CPU has, and a warning where products can saturate.

    Without VNNI, uint8 × int8 pairs are summed in 16 bits and saturate: 255·127·2 > 32767. Weights
    within ±63 avoid it. Sources: ONNX Runtime documentation, "Quantize ONNX models", section
    "When and why do I need to try U8U8?"; oneDNN documentation, "Nuances of int8 Computations".
    """
    for flag, title in (
        ("amx_int8", "AMX"),
        ("avx512_vnni", "AVX-512 VNNI"),
        ("avx_vnni", "AVX VNNI"),
        ("i8mm", "Arm i8mm"),
        ("asimddp", "Arm dot product"),
    ):
        if flag in flags:
            return title
    if flags & {"avx2", "avx512bw", "avx"}:
        return "no VNNI: int8 sums may saturate at 16 bits, accuracy on this CPU can differ from the simulation"
    return "none known"
