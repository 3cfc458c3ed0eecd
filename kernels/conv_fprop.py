"""fprop: the strided convolution from the big side to the small side, as an implicit GEMM.

One program computes BLOCK_M output pixels x BLOCK_N output channels:

                       S (weight rows)
                     +---------+
     K = taps x B    | weights |  BLOCK_K x BLOCK_N, K contiguous
                     +---------+
    +---------------++---------+
    | big, gathered ||  small  |  BLOCK_M x BLOCK_N, float32 accumulator
    +---------------++---------+
    BLOCK_M x BLOCK_K
    rows: pixels (n, oh, ow) of the small side, in memory order

    small[n, oh, ow, s] = act(bias[s] + sum over kh, kw, b of
                              big[n, oh*stride_h - pad_h + kh, ow*stride_w - pad_w + kw, b]
                              * weight[s, kh, kw, b])

The K loop runs over the taps inside and over blocks of channels outside: consecutive steps read
shifted windows of the same pixels, which are still in the caches.
"""

from __future__ import annotations

import functools
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
from fastgan.kernels.conv_tuning import WIDE_AREA, Configuration, Problem, select


@triton.jit
def fprop_kernel(
    big_ptr,  # [N, H, W, B]
    weight_ptr,  # [S, KERNEL_H, KERNEL_W, B]
    bias_ptr,  # [S], or None
    small_ptr,  # [N, OH, OW, S], written
    pixels,  # N * OH * OW
    B, S,  # channels
    stride_h, stride_w, pad_h, pad_w,
    negative_slope,  # of leaky_relu
    H: tl.constexpr, W: tl.constexpr, OH: tl.constexpr, OW: tl.constexpr,
    KERNEL_H: tl.constexpr, KERNEL_W: tl.constexpr,
    B_VECTOR: tl.constexpr, S_VECTOR: tl.constexpr,  # powers of two that divide B and S
    EVEN_B: tl.constexpr,  # BLOCK_K divides B
    EVEN_S: tl.constexpr,  # BLOCK_N divides S
    ACTIVATION: tl.constexpr,
    PRECISION: tl.constexpr,
    WIDE: tl.constexpr,  # offsets need 64 bits
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    # Grid: one axis, channel tiles fastest, so that the programs of one wave share their pixels
    # (the weights, at most a few MB, stay in L2 anyway).
    program = tl.program_id(0)
    channel_tiles = tl.cdiv(S, BLOCK_N)
    first_pixel = program // channel_tiles * BLOCK_M
    first_channel = program % channel_tiles * BLOCK_N
    if WIDE:
        first_pixel = (program // channel_tiles).to(tl.int64) * BLOCK_M
    # Spelt so, the compiler sees that rows of channels start at aligned addresses.
    B = B // B_VECTOR * B_VECTOR
    S = S // S_VECTOR * S_VECTOR

    pixel = first_pixel + tl.arange(0, BLOCK_M)
    image = pixel // (OH * OW)
    oh = (pixel // OW) % OH
    ow = pixel % OW
    top = (oh * stride_h - pad_h).to(tl.int32)
    left = (ow * stride_w - pad_w).to(tl.int32)
    origin = ((image * H + top) * W + left) * B
    # Masks: a pixel past the last one starts below the image; the unsigned comparisons then drop
    # it together with the taps that fall on padding.
    top = tl.where(pixel < pixels, top, H)

    k = tl.arange(0, BLOCK_K)
    s = first_channel + tl.arange(0, BLOCK_N)
    s_stride = KERNEL_H * KERNEL_W * B
    if WIDE:
        s_stride = tl.full((), KERNEL_H * KERNEL_W, tl.int64) * B
    big_ptrs = big_ptr + origin[:, None] + k[None, :]
    weight_ptrs = weight_ptr + (s * s_stride)[None, :] + k[:, None]

    accumulator = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for step in range(KERNEL_H * KERNEL_W * tl.cdiv(B, BLOCK_K)):
        tap = step % (KERNEL_H * KERNEL_W)
        b = step // (KERNEL_H * KERNEL_W) * BLOCK_K
        kh = tap // KERNEL_W
        kw = tap % KERNEL_W
        inside = ((top + kh).to(tl.uint32) < H) & ((left + kw).to(tl.uint32) < W)
        big_mask = inside[:, None]
        weight_mask = (s < S)[None, :]
        if not EVEN_B:
            big_mask = big_mask & (b + k < B)[None, :]
            weight_mask = weight_mask & (b + k < B)[:, None]
        # Neighbouring taps re-read the same pixels: .ca keeps them in L1.
        big_ptr_step = big_ptrs + ((kh * W + kw) * B + b)
        big = tl.load(big_ptr_step, mask=big_mask, other=0.0, cache_modifier=".ca")
        if EVEN_B and EVEN_S:
            weight = tl.load(weight_ptrs + (tap * B + b))
        else:
            weight = tl.load(weight_ptrs + (tap * B + b), mask=weight_mask, other=0.0)
        accumulator = multiply_accumulate(big, weight, accumulator, PRECISION)

    small = epilogue(accumulator, bias_ptr, s, S, negative_slope, ACTIVATION)
    small_ptrs = small_ptr + pixel[:, None] * S + s[None, :]
    mask = (pixel < pixels)[:, None] & (s < S)[None, :]
    tl.store(small_ptrs, small.to(small_ptr.dtype.element_ty), mask=mask)


def launch_fprop(
    big: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    geometry: Geometry,
    *,
    activation: str,
    negative_slope: float,
    allow_tf32: bool,
) -> torch.Tensor:
    """Runs `fprop_kernel` over a whole batch.

    Args:
        big: [N, B, H, W], dense channels_last.
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
        family="fprop",
        dtype=big.dtype,
        numerics=numerics,
        rows=(pixels,),
        columns=g.small_channels,
        depth=g.big_channels,
        taps=(g.kernel_h * g.kernel_w,),
        reuse=g.reuse,
        wide=wide_index(big, weight, small),
        aligned=vector(g.big_channels, big) > 1,
    )

    def run(c: Configuration) -> None:
        grid = (triton.cdiv(pixels, c.rows) * triton.cdiv(g.small_channels, c.columns),)
        fprop_kernel[grid](
            big, weight, bias, small, pixels,
            g.big_channels, g.small_channels,
            g.stride_h, g.stride_w, g.pad_h, g.pad_w, negative_slope,
            **g.constants,
            B_VECTOR=vector(g.big_channels, big), S_VECTOR=vector(g.small_channels, big),
            EVEN_B=g.big_channels % c.depth == 0, EVEN_S=g.small_channels % c.columns == 0,
            ACTIVATION=activation, PRECISION=numerics,
            WIDE=problem.wide,
            **c.options,
        )  # fmt: skip

    with device_guard(big):
        run(select(problem, big.device, run))
    return small


def variants(architecture: str) -> Iterator[KernelVariant]:
    """Every shipped tile on a 4x4 kernel, and the specializations that other calls make of one."""
    variant = functools.partial(
        specialization,
        fprop_kernel,
        "fprop",
        architecture,
        pointers="big_ptr weight_ptr small_ptr",
        sizes="pixels stride_h stride_w pad_h pad_w",
        channels="B S",
        vectors="B_VECTOR S_VECTOR",
        even="EVEN_B EVEN_S",
        OH=8,
        OW=8,
    )
    tiles = list(shipped(architecture, "fprop"))
    layer = {"KERNEL_H": 4, "KERNEL_W": 4, "H": 16, "W": 16}
    for arithmetic, tile in tiles:
        yield variant(arithmetic, tile, **layer)
    yield variant(*tiles[0], half="fp16", bias=True, activation="leaky_relu", **layer)
    odd = {"KERNEL_H": 5, "KERNEL_W": 5, "H": 15, "W": 15}
    yield variant(*tiles[0], bias=True, activation="tanh", **odd)
    wide = next(tile for _, tile in tiles if tile.rows * tile.columns <= WIDE_AREA)
    yield variant("half", wide, wide=True, **layer)
