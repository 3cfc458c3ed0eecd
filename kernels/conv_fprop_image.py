"""fprop from an image: 1 to 4 channels on the big side would fill a sliver of each K step.

The taps and the channels are therefore one flattened reduction, 4x4 taps x 3 channels = 48 of a
64-deep step:

                                 S (weight rows)
                               +---------+
     K = (kh, kw, b), dense    | weights |  BLOCK_K x BLOCK_N, K contiguous
                               +---------+
    +-------------------------++---------+
    | image, gathered         ||  small  |  BLOCK_M x BLOCK_N, float32 accumulator
    +-------------------------++---------+
    BLOCK_M x BLOCK_K
    rows: pixels (n, oh, ow) of the small side, in memory order

Runs of kernel_w x B elements of a row lie side by side in the image, so the gather is served by
L1; what remains is writing the small side, which bounds the kernel.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import triton
import triton.language as tl

from fastgan.kernels.compilation import KernelVariant
from fastgan.kernels.conv_catalogue import shipped, specialization
from fastgan.kernels.conv_launch import (
    Geometry,
    channels_last_empty,
    device_guard,
    precision,
    vector,
    wide_index,
)
from fastgan.kernels.conv_tile import epilogue, multiply_accumulate
from fastgan.kernels.conv_tuning import Configuration, Problem, select


@triton.jit
def fprop_image_kernel(
    big_ptr,  # [N, H, W, CHANNELS]
    weight_ptr,  # [S, KERNEL_H, KERNEL_W, CHANNELS]
    bias_ptr,  # [S], or None
    small_ptr,  # [N, OH, OW, S], written
    pixels,  # N * OH * OW
    S,  # channels
    stride_h, stride_w, pad_h, pad_w,
    negative_slope,  # of leaky_relu
    H: tl.constexpr, W: tl.constexpr, OH: tl.constexpr, OW: tl.constexpr,
    KERNEL_H: tl.constexpr, KERNEL_W: tl.constexpr, CHANNELS: tl.constexpr,
    S_VECTOR: tl.constexpr,  # power of two that divides S
    ACTIVATION: tl.constexpr,
    PRECISION: tl.constexpr,
    WIDE: tl.constexpr,  # offsets need 64 bits
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    # Grid: one axis, channel tiles fastest.
    program = tl.program_id(0)
    channel_tiles = tl.cdiv(S, BLOCK_N)
    first_pixel = program // channel_tiles * BLOCK_M
    if WIDE:
        first_pixel = (program // channel_tiles).to(tl.int64) * BLOCK_M
    S = S // S_VECTOR * S_VECTOR
    DEPTH: tl.constexpr = KERNEL_H * KERNEL_W * CHANNELS

    pixel = first_pixel + tl.arange(0, BLOCK_M)
    image = pixel // (OH * OW)
    top = ((pixel // OW) % OH * stride_h - pad_h).to(tl.int32)
    left = (pixel % OW * stride_w - pad_w).to(tl.int32)
    origin = ((image * H + top) * W + left) * CHANNELS
    # Masks: pixels past the last one start below the image, reductions past DEPTH are dropped.
    top = tl.where(pixel < pixels, top, H)
    s = program % channel_tiles * BLOCK_N + tl.arange(0, BLOCK_N)

    accumulator = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for first in range(0, DEPTH, BLOCK_K):
        k = first + tl.arange(0, BLOCK_K)
        kh = k // (KERNEL_W * CHANNELS)
        kw = k // CHANNELS % KERNEL_W
        inside = (top[:, None] + kh[None, :]).to(tl.uint32) < H
        inside = inside & ((left[:, None] + kw[None, :]).to(tl.uint32) < W)
        inside = inside & (k < DEPTH)[None, :]
        offset = kh * (W * CHANNELS) + k % (KERNEL_W * CHANNELS)
        big = tl.load(big_ptr + origin[:, None] + offset[None, :], mask=inside, other=0.0)
        weight_ptrs = weight_ptr + s[None, :] * DEPTH + k[:, None]
        mask = (k < DEPTH)[:, None] & (s < S)[None, :]
        weight = tl.load(weight_ptrs, mask=mask, other=0.0)
        accumulator = multiply_accumulate(big, weight, accumulator, PRECISION)

    small = epilogue(accumulator, bias_ptr, s, S, negative_slope, ACTIVATION)
    small_ptrs = small_ptr + pixel[:, None] * S + s[None, :]
    mask = (pixel < pixels)[:, None] & (s < S)[None, :]
    tl.store(small_ptrs, small.to(small_ptr.dtype.element_ty), mask=mask)


def launch_fprop_image(
    big: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    geometry: Geometry,
    *,
    activation: str,
    negative_slope: float,
    allow_tf32: bool,
) -> torch.Tensor:
    """Runs `fprop_image_kernel` over a whole batch; arguments as in `launch_fprop`.

    Args:
        big: [N, B, H, W] with B at most 4, dense channels_last.
        weight: [S, B, kh, kw] of big's dtype, dense channels_last.
        bias: [S] or None.
        geometry: sizes, stride and padding.
        activation, negative_slope: the epilogue.
        allow_tf32: float32 operands may be rounded to TF32.

    Returns:
        [N, S, OH, OW] of big's dtype, dense channels_last.
    """
    g = geometry
    small = channels_last_empty(g.small_shape, big)
    if small.numel() == 0:
        return small
    pixels = g.batch * g.small_h * g.small_w
    numerics = precision(big.dtype, allow_tf32)
    problem = Problem(
        family="fprop_image",
        dtype=big.dtype,
        numerics=numerics,
        rows=(pixels,),
        columns=g.small_channels,
        depth=g.kernel_h * g.kernel_w * g.big_channels,
        wide=wide_index(big, small),
    )

    def run(c: Configuration) -> None:
        grid = (triton.cdiv(pixels, c.rows) * triton.cdiv(g.small_channels, c.columns),)
        fprop_image_kernel[grid](
            big, weight, bias, small, pixels,
            g.small_channels, g.stride_h, g.stride_w, g.pad_h, g.pad_w, negative_slope,
            H=g.big_h, W=g.big_w, OH=g.small_h, OW=g.small_w,
            KERNEL_H=g.kernel_h, KERNEL_W=g.kernel_w, CHANNELS=g.big_channels,
            S_VECTOR=vector(g.small_channels, big),
            ACTIVATION=activation, PRECISION=numerics, WIDE=problem.wide,
            BLOCK_M=c.rows, BLOCK_N=c.columns, BLOCK_K=c.depth,
            num_warps=c.warps, num_stages=c.stages,
        )  # fmt: skip

    with device_guard(big):
        run(select(problem, big.device, run))
    return small


def variants(architecture: str) -> Iterator[KernelVariant]:
    """Every shipped tile on a 4x4 kernel from 3 channels, as a discriminator begins."""
    for arithmetic, tile in shipped(architecture, "fprop_image"):
        yield specialization(
            fprop_image_kernel,
            "fprop_image",
            architecture,
            arithmetic,
            tile,
            pointers="big_ptr weight_ptr small_ptr",
            sizes="pixels S stride_h stride_w pad_h pad_w",
            vectors="S_VECTOR",
            bias=True,
            activation="leaky_relu",
            KERNEL_H=4,
            KERNEL_W=4,
            CHANNELS=3,
            H=64,
            W=64,
            OH=32,
            OW=32,
        )
