"""Adds up partial sums of channels in a fixed order: the end of every reduction over pixels.

Kernels that reduce over a whole tensor leave [entries, channels] partial sums behind instead of
adding into one place with atomics, whose order changes from run to run.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from fastgan.kernels.compilation import KernelVariant

BLOCK_S, BLOCK_C, NUM_WARPS = 64, 32, 4


@triton.jit
def channel_sums_kernel(
    partials, sums, entries, channels, BLOCK_S: tl.constexpr, BLOCK_C: tl.constexpr
):
    """One program: the sums of BLOCK_C channels, BLOCK_S entries at a time.

    Grid: (blocks of channels,). Masks: entries and channels beyond the buffer.

    Args:
        partials: [entries, channels] float32.
        sums: [channels] float32, written.
    """
    channel = tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C)
    total = tl.zeros((BLOCK_C,), tl.float32)
    for first in range(0, entries, BLOCK_S):
        entry = first + tl.arange(0, BLOCK_S)[:, None]
        inside = (entry < entries) & (channel[None, :] < channels)
        where = entry * channels + channel[None, :]
        value = tl.load(partials + where, mask=inside, other=0.0)
        total += tl.sum(value, 0)
    tl.store(sums + channel, total, mask=channel < channels)


def channel_sums(partials: torch.Tensor, channels: int) -> torch.Tensor:
    """Sums the entries.

    Args:
        partials: dense float32, [entries, channels] in memory.
        channels: the inner size.

    Returns:
        [channels] float32.
    """
    sums = torch.empty(channels, dtype=torch.float32, device=partials.device)
    entries = partials.numel() // channels
    with torch.cuda.device_of(partials):
        channel_sums_kernel[(triton.cdiv(channels, BLOCK_C),)](
            partials, sums, entries, channels,
            BLOCK_S=BLOCK_S, BLOCK_C=BLOCK_C, num_warps=NUM_WARPS,
        )  # fmt: skip
    return sums


def variants(architecture: str) -> tuple[KernelVariant, ...]:
    """The one specialization."""
    return (
        KernelVariant(
            kernel=channel_sums_kernel,
            name="channel_sums",
            signature={
                "partials": "*fp32",
                "sums": "*fp32",
                "entries": "i32",
                "channels": "i32:16",
            },
            constants={"BLOCK_S": BLOCK_S, "BLOCK_C": BLOCK_C},
            num_warps=NUM_WARPS,
            num_stages=2,
            architectures=(architecture,),
            load_bytes=16,
        ),
    )
