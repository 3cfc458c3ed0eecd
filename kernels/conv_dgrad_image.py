"""dgrad to an image: 1 to 4 channels on the big side, all phases in the columns of one GEMM.

Phase by phase, 3 output channels would fill 3 of the 16 columns of the narrowest tile, and every
phase would read the small side again. Here one program computes, for BLOCK_M positions t of the
small grid, the whole stride_h x stride_w block of output pixels at t * stride:

                              columns = (a, b, c): pixel of the block, channel; each block row
                            +---------+               padded to a power of two
     K = neighbours x S     | weights |  BLOCK_K x BLOCK_N, 0 where no tap connects
                            +---------+
    +----------------------++---------+
    | small, shifted       ||   big   |  BLOCK_M x BLOCK_N, float32 accumulator
    +----------------------++---------+
    BLOCK_M x BLOCK_K
    rows: blocks (n, th, tw); block pixel (a, b) is big row th * stride_h + a, ...

The K loop runs over the union of the taps of all phases: neighbour i = t + d contributes to block
row a with kernel row kh = a + pad_h - stride_h * d. A 4x4 kernel of stride 2 onto 3 channels has
3x3 neighbours and 4 phases x 3 = 12 of 16 columns. Bias and tanh happen in registers, so the image
is written once.

The weights (3 KB for 64 channels) are first spread out to [neighbour, S, column] by a small kernel:
gathering them in the main loop would cost as many instructions as the pixels, each time anew.
"""

from __future__ import annotations

import math
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

PACK_BLOCK = 64


@triton.jit
def dgrad_image_pack_kernel(
    weight_ptr,  # [S, KERNEL_H, KERNEL_W, CHANNELS]
    packed_ptr,  # [NEIGHBOURS_H * NEIGHBOURS_W, S, PACKED], written
    S,
    pad_h, pad_w,
    first_h, first_w,  # smallest neighbour offset d of each dimension
    KERNEL_H: tl.constexpr, KERNEL_W: tl.constexpr, CHANNELS: tl.constexpr,
    STRIDE_H: tl.constexpr, STRIDE_W: tl.constexpr,
    NEIGHBOURS_W: tl.constexpr,
    ROW: tl.constexpr,  # columns of one block row: STRIDE_W * CHANNELS, up to a power of two
    PACKED: tl.constexpr,  # columns: STRIDE_H * ROW, up to a power of two
    BLOCK: tl.constexpr,
):  # fmt: skip
    # Grid: (blocks of S, neighbours). Zero where the neighbour has no tap to the column's pixel,
    # and in the columns that only pad.
    s = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    column = tl.arange(0, PACKED)
    neighbour = tl.program_id(1)
    j = column % ROW
    kh = column // ROW + pad_h - STRIDE_H * (neighbour // NEIGHBOURS_W + first_h)
    kw = j // CHANNELS + pad_w - STRIDE_W * (neighbour % NEIGHBOURS_W + first_w)
    connected = (kh >= 0) & (kh < KERNEL_H) & (kw >= 0) & (kw < KERNEL_W)
    connected = connected & (column < STRIDE_H * ROW) & (j < STRIDE_W * CHANNELS)
    source = (s[:, None] * KERNEL_H + kh[None, :]) * KERNEL_W + kw[None, :]
    source = source * CHANNELS + (j % CHANNELS)[None, :]
    inside = (s < S)[:, None]
    weight = tl.load(weight_ptr + source, mask=inside & connected[None, :], other=0.0)
    target = (neighbour * S + s)[:, None] * PACKED + column[None, :]
    tl.store(packed_ptr + target, weight, mask=inside)


@triton.jit
def dgrad_image_kernel(
    small_ptr,  # [N, OH, OW, S]
    packed_ptr,  # [NEIGHBOURS_H * NEIGHBOURS_W, S, PACKED], by dgrad_image_pack_kernel
    bias_ptr,  # [CHANNELS], or None
    big_ptr,  # [N, H, W, CHANNELS], written
    blocks,  # N * ceil(H / STRIDE_H) * ceil(W / STRIDE_W)
    S,
    first_h, first_w,  # smallest neighbour offset d of each dimension
    negative_slope,  # of leaky_relu
    H: tl.constexpr, W: tl.constexpr, OH: tl.constexpr, OW: tl.constexpr,
    CHANNELS: tl.constexpr, STRIDE_H: tl.constexpr, STRIDE_W: tl.constexpr,
    NEIGHBOURS_H: tl.constexpr, NEIGHBOURS_W: tl.constexpr,
    ROW: tl.constexpr,  # columns of one block row: STRIDE_W * CHANNELS, up to a power of two
    PACKED: tl.constexpr,  # columns: STRIDE_H * ROW, up to a power of two
    RUN: tl.constexpr,  # power of two that divides STRIDE_W * CHANNELS and W * CHANNELS
    S_VECTOR: tl.constexpr,  # power of two that divides S
    EVEN_S: tl.constexpr,  # BLOCK_K divides S
    ACTIVATION: tl.constexpr,
    PRECISION: tl.constexpr,
    WIDE: tl.constexpr,  # offsets need 64 bits
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    # Grid: one axis over tiles of blocks; column tiles (one, but for large strides) fastest.
    column_tiles: tl.constexpr = PACKED // BLOCK_N
    program = tl.program_id(0)
    first_block = program // column_tiles * BLOCK_M
    if WIDE:
        first_block = (program // column_tiles).to(tl.int64) * BLOCK_M
    S = S // S_VECTOR * S_VECTOR
    blocks_h: tl.constexpr = (H + STRIDE_H - 1) // STRIDE_H
    blocks_w: tl.constexpr = (W + STRIDE_W - 1) // STRIDE_W

    block = first_block + tl.arange(0, BLOCK_M)
    image = block // (blocks_h * blocks_w)
    th = (block // blocks_w) % blocks_h
    tw = block % blocks_w
    bottom = (th + first_h).to(tl.int32)
    right = (tw + first_w).to(tl.int32)
    origin = ((image * OH + bottom) * OW + right) * S
    # Masks: blocks past the last one start below the small side; the packed weights are 0 where
    # nothing connects.
    bottom = tl.where(block < blocks, bottom, OH)
    column = program % column_tiles * BLOCK_N + tl.arange(0, BLOCK_N)
    k = tl.arange(0, BLOCK_K)
    small_ptrs = small_ptr + origin[:, None] + k[None, :]
    packed_ptrs = packed_ptr + (k * PACKED)[:, None] + column[None, :]

    accumulator = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for step in range(NEIGHBOURS_H * NEIGHBOURS_W * tl.cdiv(S, BLOCK_K)):
        neighbour = step % (NEIGHBOURS_H * NEIGHBOURS_W)
        s = step // (NEIGHBOURS_H * NEIGHBOURS_W) * BLOCK_K
        dh = neighbour // NEIGHBOURS_W
        dw = neighbour % NEIGHBOURS_W
        inside = ((bottom + dh).to(tl.uint32) < OH) & ((right + dw).to(tl.uint32) < OW)
        small_ptr_step = small_ptrs + (s + (dh * OW + dw) * S)
        packed_ptr_step = packed_ptrs + (neighbour * S + s) * PACKED
        # Neighbours re-read the same pixels: .ca keeps them in L1.
        if EVEN_S:
            small = tl.load(small_ptr_step, mask=inside[:, None], other=0.0, cache_modifier=".ca")
            weight = tl.load(packed_ptr_step)
        else:
            rest = s + k < S
            mask = inside[:, None] & rest[None, :]
            small = tl.load(small_ptr_step, mask=mask, other=0.0, cache_modifier=".ca")
            weight = tl.load(packed_ptr_step, mask=rest[:, None], other=0.0)
        accumulator = multiply_accumulate(small, weight, accumulator, PRECISION)

    a = column // ROW
    j = column % ROW
    big = epilogue(accumulator, bias_ptr, j % CHANNELS, CHANNELS, negative_slope, ACTIVATION)
    # A block row is STRIDE_W * CHANNELS neighbouring elements, written RUN at a time.
    left = tl.multiple_of(tw * (STRIDE_W * CHANNELS), RUN)
    target = (image * H + th * STRIDE_H) * (W * CHANNELS) + left
    target = tl.multiple_of(target, RUN)
    offset = tl.max_contiguous(tl.multiple_of(a * (W * CHANNELS) + j, RUN), RUN)
    mask = (block < blocks)[:, None] & ((a < STRIDE_H) & (j < STRIDE_W * CHANNELS))[None, :]
    if H % STRIDE_H != 0 or W % STRIDE_W != 0:
        mask = mask & ((th * STRIDE_H)[:, None] + a[None, :] < H)
        mask = mask & (left[:, None] + j[None, :] < W * CHANNELS)
    big_ptrs = big_ptr + target[:, None] + offset[None, :]
    tl.store(big_ptrs, big.to(big_ptr.dtype.element_ty), mask=mask)


def row_columns(stride_w: int, channels: int) -> int:
    """Columns that one row of an output block takes, up to a power of two."""
    return triton.next_power_of_2(stride_w * channels)


def neighbour_offsets(kernel: int, stride: int, pad: int) -> tuple[int, int]:
    """Which positions i = t + d of the small side reach the output block at t * stride.

    Args:
        kernel, stride, pad: of one dimension.

    Returns:
        The smallest d and the number of consecutive d: those with 0 <= a + pad - stride * d <
        kernel for some a in 0 ... stride - 1.
    """
    first = -((kernel - 1 - pad) // stride)
    last = (stride - 1 + pad) // stride
    return first, last - first + 1


def launch_dgrad_image(
    small: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    geometry: Geometry,
    *,
    activation: str,
    negative_slope: float,
    allow_tf32: bool,
) -> torch.Tensor:
    """Runs `dgrad_image_kernel` over a whole batch.

    Args:
        small: [N, S, OH, OW], dense channels_last.
        weight: [S, B, kh, kw] with B at most 4, of small's dtype, dense channels_last.
        bias: [B] or None.
        geometry: sizes, stride and padding.
        activation, negative_slope: the epilogue.
        allow_tf32: float32 operands may be rounded to TF32.

    Returns:
        [N, B, H, W] of small's dtype, dense channels_last.
    """
    g = geometry
    big = channels_last_empty(g.big_shape, small)
    if big.numel() == 0:
        return big
    blocks = g.batch * triton.cdiv(g.big_h, g.stride_h) * triton.cdiv(g.big_w, g.stride_w)
    row = row_columns(g.stride_w, g.big_channels)
    first_h, neighbours_h = neighbour_offsets(g.kernel_h, g.stride_h, g.pad_h)
    first_w, neighbours_w = neighbour_offsets(g.kernel_w, g.stride_w, g.pad_w)
    numerics = precision(small.dtype, allow_tf32)
    problem = Problem(
        family="dgrad_image",
        dtype=small.dtype,
        numerics=numerics,
        rows=(blocks,),
        columns=g.stride_h * row,
        depth=g.small_channels,
        taps=(neighbours_h * neighbours_w,),
        reuse=neighbours_h * neighbours_w,
        wide=wide_index(big, small),
        aligned=vector(g.small_channels, small) > 1,
    )

    run_length = math.gcd(8, g.stride_w * g.big_channels, g.big_w * g.big_channels)

    def run(t: Configuration) -> None:
        width = max(t.columns, triton.next_power_of_2(g.stride_h * row))
        packed = torch.empty(
            (neighbours_h * neighbours_w, g.small_channels, width),
            dtype=small.dtype,
            device=small.device,
        )
        shape = {"STRIDE_H": g.stride_h, "STRIDE_W": g.stride_w, "CHANNELS": g.big_channels}
        shape |= {"NEIGHBOURS_W": neighbours_w, "ROW": row, "PACKED": width}
        dgrad_image_pack_kernel[triton.cdiv(g.small_channels, PACK_BLOCK), packed.shape[0]](
            weight, packed, g.small_channels, g.pad_h, g.pad_w, first_h, first_w,
            KERNEL_H=g.kernel_h, KERNEL_W=g.kernel_w, BLOCK=PACK_BLOCK, num_warps=4, **shape,
        )  # fmt: skip
        grid = (triton.cdiv(blocks, t.rows) * (width // t.columns),)
        dgrad_image_kernel[grid](
            small, packed, bias, big, blocks, g.small_channels, first_h, first_w, negative_slope,
            H=g.big_h, W=g.big_w, OH=g.small_h, OW=g.small_w,
            NEIGHBOURS_H=neighbours_h, RUN=run_length,
            S_VECTOR=vector(g.small_channels, small), EVEN_S=g.small_channels % t.depth == 0,
            ACTIVATION=activation, PRECISION=numerics, WIDE=problem.wide,
            **t.options, **shape,
        )  # fmt: skip

    with device_guard(small):
        run(select(problem, small.device, run))
    return big


def variants(architecture: str) -> Iterator[KernelVariant]:
    """Every shipped tile on a 4x4 kernel of stride 2 to 3 channels, as a generator ends."""
    for arithmetic, tile in shipped(architecture, "dgrad_image"):
        yield specialization(
            dgrad_image_kernel,
            "dgrad_image",
            architecture,
            arithmetic,
            tile,
            pointers="small_ptr packed_ptr big_ptr",
            sizes="blocks first_h first_w",
            channels="S",
            vectors="S_VECTOR",
            even="EVEN_S",
            bias=True,
            activation="tanh",
            H=64,
            W=64,
            OH=32,
            OW=32,
            CHANNELS=3,
            STRIDE_H=2,
            STRIDE_W=2,
            NEIGHBOURS_H=3,
            NEIGHBOURS_W=3,
            ROW=8,
            PACKED=max(16, tile.columns),
            RUN=2,
        )
    yield KernelVariant(
        kernel=dgrad_image_pack_kernel,
        name="dgrad_image_pack[bf16]",
        signature={"weight_ptr": "*bf16", "packed_ptr": "*bf16", "S": "i32:16"}
        | dict.fromkeys(("pad_h", "pad_w", "first_h", "first_w"), "i32"),
        constants={
            "KERNEL_H": 4,
            "KERNEL_W": 4,
            "CHANNELS": 3,
            "STRIDE_H": 2,
            "STRIDE_W": 2,
            "NEIGHBOURS_W": 3,
            "ROW": 8,
            "PACKED": 16,
            "BLOCK": PACK_BLOCK,
        },
        num_warps=4,
        num_stages=1,
        architectures=(architecture,),
    )
