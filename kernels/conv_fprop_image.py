"""Convolutions that read an image: 1 to 4 channels would fill a sliver of each K step.

The taps and the channels are therefore one flattened reduction, 4x4 taps x 3 channels = 48 of a
64-deep step:

                                 features
                               +---------+
     K = (kh, kw, c), dense    | weights |  BLOCK_K x BLOCK_N
                               +---------+
    +-------------------------++---------+
    | image, gathered         || output  |  BLOCK_M x BLOCK_N, float32 accumulator
    +-------------------------++---------+
    BLOCK_M x BLOCK_K
    rows: pixels (n, oh, ow) of the output, in memory order

Runs of kernel_w x channels elements of a row lie side by side in the image, so the gather is served
by L1; what remains is writing the output, which bounds the kernel.

Two directions come to this. fprop from an image on the big side is the convolution itself. dgrad
from an image on the small side (the input gradient of a layer that makes an image) at stride 1 is a
convolution of it with the taps in reverse, big[o] = sum over k' of small[o - (K - 1 - pad) + k']
weight[K - 1 - k']: FLIPPED reads the weights so. At larger strides dgrad goes by phases instead.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

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
def image_kernel(
    image_ptr,  # [N, H, W, CHANNELS]
    weight_ptr,  # [F, KERNEL_H, KERNEL_W, CHANNELS]; FLIPPED: [CHANNELS, KERNEL_H, KERNEL_W, F]
    bias_ptr,  # [F], or None
    output_ptr,  # [N, OH, OW, F], written
    pixels,  # N * OH * OW
    F,  # features
    stride_h, stride_w, pad_h, pad_w,
    negative_slope,  # of leaky_relu
    H: tl.constexpr, W: tl.constexpr, OH: tl.constexpr, OW: tl.constexpr,
    KERNEL_H: tl.constexpr, KERNEL_W: tl.constexpr, CHANNELS: tl.constexpr,
    FLIPPED: tl.constexpr,  # the taps in reverse, for dgrad
    F_VECTOR: tl.constexpr,  # power of two that divides F
    ACTIVATION: tl.constexpr,
    PRECISION: tl.constexpr,
    WIDE: tl.constexpr,  # offsets need 64 bits
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    # Grid: one axis, channel tiles fastest.
    program = tl.program_id(0)
    channel_tiles = tl.cdiv(F, BLOCK_N)
    first_pixel = program // channel_tiles * BLOCK_M
    if WIDE:
        first_pixel = (program // channel_tiles).to(tl.int64) * BLOCK_M
    F = F // F_VECTOR * F_VECTOR
    DEPTH: tl.constexpr = KERNEL_H * KERNEL_W * CHANNELS

    pixel = first_pixel + tl.arange(0, BLOCK_M)
    n = pixel // (OH * OW)
    top = ((pixel // OW) % OH * stride_h - pad_h).to(tl.int32)
    left = (pixel % OW * stride_w - pad_w).to(tl.int32)
    origin = ((n * H + top) * W + left) * CHANNELS
    # Masks: pixels past the last one start below the image, reductions past DEPTH are dropped.
    top = tl.where(pixel < pixels, top, H)
    f = program % channel_tiles * BLOCK_N + tl.arange(0, BLOCK_N)

    accumulator = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for first in range(0, DEPTH, BLOCK_K):
        k = first + tl.arange(0, BLOCK_K)
        kh = k // (KERNEL_W * CHANNELS)
        kw = k // CHANNELS % KERNEL_W
        inside = (top[:, None] + kh[None, :]).to(tl.uint32) < H
        inside = inside & ((left[:, None] + kw[None, :]).to(tl.uint32) < W)
        inside = inside & (k < DEPTH)[None, :]
        offset = kh * (W * CHANNELS) + k % (KERNEL_W * CHANNELS)
        image = tl.load(image_ptr + origin[:, None] + offset[None, :], mask=inside, other=0.0)
        if FLIPPED:
            tap = (KERNEL_H - 1 - kh) * KERNEL_W + KERNEL_W - 1 - kw
            row = (k % CHANNELS * (KERNEL_H * KERNEL_W) + tap) * F
            weight_ptrs = weight_ptr + row[:, None] + f[None, :]
        else:
            weight_ptrs = weight_ptr + k[:, None] + f[None, :] * DEPTH
        mask = (k < DEPTH)[:, None] & (f < F)[None, :]
        weight = tl.load(weight_ptrs, mask=mask, other=0.0)
        accumulator = multiply_accumulate(image, weight, accumulator, PRECISION)

    output = epilogue(accumulator, bias_ptr, f, F, negative_slope, ACTIVATION)
    output_ptrs = output_ptr + pixel[:, None] * F + f[None, :]
    mask = (pixel < pixels)[:, None] & (f < F)[None, :]
    tl.store(output_ptrs, output.to(output_ptr.dtype.element_ty), mask=mask)


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
    """Runs `image_kernel` over a whole batch, from the big side to the small side.

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
    settings = {"stride_h": g.stride_h, "stride_w": g.stride_w, "pad_h": g.pad_h, "pad_w": g.pad_w}
    settings |= {"ACTIVATION": activation, "negative_slope": negative_slope, "FLIPPED": False}
    _launch(big, weight, bias, small, precision(big.dtype, allow_tf32), settings)
    return small


def launch_dgrad_from_image(
    small: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    geometry: Geometry,
    *,
    activation: str,
    negative_slope: float,
    allow_tf32: bool,
) -> torch.Tensor:
    """Runs `image_kernel` over a whole batch, from the small side to the big side at stride 1.

    Args:
        small: [N, S, OH, OW] with S at most 4, dense channels_last.
        weight: [S, B, kh, kw] of small's dtype, dense channels_last.
        bias: [B] or None.
        geometry: sizes and padding; both strides are 1.
        activation, negative_slope: the epilogue.
        allow_tf32: float32 operands may be rounded to TF32.

    Returns:
        [N, B, H, W] of small's dtype, dense channels_last.
    """
    g = geometry
    big = channels_last_empty(g.big_shape, small)
    pad_h, pad_w = g.kernel_h - 1 - g.pad_h, g.kernel_w - 1 - g.pad_w
    settings = {"stride_h": 1, "stride_w": 1, "pad_h": pad_h, "pad_w": pad_w}
    settings |= {"ACTIVATION": activation, "negative_slope": negative_slope, "FLIPPED": True}
    _launch(small, weight, bias, big, precision(small.dtype, allow_tf32), settings)
    return big


def _launch(
    image: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    output: torch.Tensor,
    numerics: str,
    settings: dict[str, Any],
) -> None:
    """Fills `output` [N, F, OH, OW] from `image` [N, C, H, W]."""
    if output.numel() == 0:
        return
    batch, channels, image_h, image_w = image.shape
    _, features, output_h, output_w = output.shape
    kernel_h, kernel_w = weight.shape[2:]
    pixels = batch * output_h * output_w
    problem = Problem(
        family="fprop_image",
        dtype=image.dtype,
        numerics=numerics,
        rows=(pixels,),
        columns=features,
        depth=kernel_h * kernel_w * channels,
        wide=wide_index(image, output),
    )

    def run(c: Configuration) -> None:
        grid = (triton.cdiv(pixels, c.rows) * triton.cdiv(features, c.columns),)
        image_kernel[grid](
            image, weight, bias, output, pixels, features,
            H=image_h, W=image_w, OH=output_h, OW=output_w,
            KERNEL_H=kernel_h, KERNEL_W=kernel_w, CHANNELS=channels,
            F_VECTOR=vector(features, image), PRECISION=numerics, WIDE=problem.wide,
            **c.options, **settings,
        )  # fmt: skip

    with device_guard(image):
        run(select(problem, image.device, run))


def variants(architecture: str) -> Iterator[KernelVariant]:
    """Every shipped tile on 3 channels: a discriminator's first layer, and a last layer's dgrad."""
    for flipped in (False, True):
        for arithmetic, tile in shipped(architecture, "fprop_image"):
            yield specialization(
                image_kernel,
                "dgrad_from_image" if flipped else "fprop_image",
                architecture,
                arithmetic,
                tile,
                pointers="image_ptr weight_ptr output_ptr",
                sizes="pixels F stride_h stride_w pad_h pad_w",
                vectors="F_VECTOR",
                bias=not flipped,
                activation="identity" if flipped else "leaky_relu",
                H=64,
                W=64,
                OH=64 if flipped else 32,
                OW=64 if flipped else 32,
                KERNEL_H=5 if flipped else 4,
                KERNEL_W=5 if flipped else 4,
                CHANNELS=3,
                FLIPPED=flipped,
            )
