"""The chips that kernels are tuned for, as data, and which of them a tensor lives on.

Every tuning table has one entry for each name in `ARCHITECTURES`; chips without an entry of their
own use that of the nearest older one.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Architecture:
    """What a chip offers.

    Attributes:
        name: the name used in tuning tables, such as "sm_90".
        backend, arch, warp_size: what `triton.backends.compiler.GPUTarget` takes.
        multiprocessors: multiprocessors (compute units) of the usual data-centre part.
        shared_memory: bytes of shared memory (LDS) that one program may use.
        registers: 32-bit registers that one thread may use.
        matrix_instruction: the chip's full-rate matrix instruction, by the name under which
            compile checks report it (newer chips still execute mma.sync, as the slow path).
    """

    name: str
    backend: str
    arch: int | str
    warp_size: int
    multiprocessors: int
    shared_memory: int
    registers: int
    matrix_instruction: str


ARCHITECTURES: dict[str, Architecture] = {
    record.name: record
    for record in (
        Architecture("sm_80", "cuda", 80, 32, 108, 163 * 1024, 255, "mma.sync"),
        Architecture("sm_90", "cuda", 90, 32, 132, 227 * 1024, 255, "wgmma"),
        Architecture("sm_100", "cuda", 100, 32, 148, 227 * 1024, 255, "tcgen05"),
        Architecture("gfx942", "hip", "gfx942", 64, 304, 64 * 1024, 512, "mfma"),
    )
}


@functools.cache
def architecture_of(device: torch.device) -> str:
    """The name in `ARCHITECTURES` whose tuning table serves a device.

    Args:
        device: where the kernel will run; a CPU (Triton's interpreter) takes sm_90's table.
    """
    if device.type != "cuda":
        return "sm_90"
    if torch.version.hip:
        return "gfx942"
    major = torch.cuda.get_device_capability(device)[0]
    # Consumer Blackwell (12.x) has neither wgmma nor tensor memory: it is tuned like sm_80.
    return {9: "sm_90", 10: "sm_100"}.get(major, "sm_80")
