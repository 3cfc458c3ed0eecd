"""dgrad to an image: 1 to 4 channels on the big side, all phases in the columns of one GEMM.

Phase by phase, 3 output channels would fill 3 of the 16 columns of the narrowest tile, and every
phase would read the small side again. Here one program computes, for BLOCK_M positions t of the
small grid, the whole stride_h x stride_w block of output pixels at t * stride:

                              columns = (a, b, c): pixel of the block, channel
                            +---------+
     K = neighbours x S     | weights |  BLOCK_K x BLOCK_N, gathered, 0 where no tap connects
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
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

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
def dgrad_image_kernel(
    small_ptr,  # [N, OH, OW, S]
    weight_ptr,  # [S, KERNEL_H, KERNEL_W, CHANNELS]
    bias_ptr,  # [CHANNELS], or None
    big_ptr,  # [N, H, W, CHANNELS], written
    blocks,  # N * blocks_h * blocks_w
    blocks_h, blocks_w,  # ceil(H / STRIDE_H), ceil(W / STRIDE_W)
    H, W, OH, OW, S,  # sizes of the tensors above
    pad_h, pad_w,
    first_h, first_w,  # smallest neighbour offset d of each dimension
    negative_slope,  # of leaky_relu
    KERNEL_H: tl.constexpr, KERNEL_W: tl.constexpr, CHANNELS: tl.constexpr,
    STRIDE_H: tl.constexpr, STRIDE_W: tl.constexpr,
    NEIGHBOURS_H: tl.constexpr, NEIGHBOURS_W: tl.constexpr,
    S_VECTOR: tl.constexpr,  # power of two that divides S
    EVEN_S: tl.constexpr,  # BLOCK_K divides S
    ACTIVATION: tl.constexpr,
    PRECISION: tl.constexpr,
    WIDE: tl.constexpr,  # offsets need 64 bits
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    # Grid: one axis over tiles of blocks; column tiles (one, but for large strides) fastest.
    COLUMNS: tl.constexpr = STRIDE_H * STRIDE_W * CHANNELS
    column_tiles: tl.constexpr = (COLUMNS + BLOCK_N - 1) // BLOCK_N
    program = tl.program_id(0)
    first_block = program // column_tiles * BLOCK_M
    if WIDE:
        first_block = (program // column_tiles).to(tl.int64) * BLOCK_M
    S = S // S_VECTOR * S_VECTOR

    block = first_block + tl.arange(0, BLOCK_M)
    image = block // (blocks_h * blocks_w)
    th = (block // blocks_w) % blocks_h
    tw = block % blocks_w
    bottom = (th + first_h).to(tl.int32)
    right = (tw + first_w).to(tl.int32)
    origin = ((image * OH + bottom) * OW + right) * S
    # Masks: blocks past the last one start below the small side; columns past the last one and
    # neighbours without a tap get zero weights.
    bottom = tl.where(block < blocks, bottom, OH)
    column = program % column_tiles * BLOCK_N + tl.arange(0, BLOCK_N)
    a = column // (STRIDE_W * CHANNELS)
    b = column // CHANNELS % STRIDE_W
    c = column % CHANNELS

    k = tl.arange(0, BLOCK_K)
    small_ptrs = small_ptr + origin[:, None] + k[None, :]
    weight_ptrs = weight_ptr + (k * (KERNEL_H * KERNEL_W * CHANNELS))[:, None] + c[None, :]
    accumulator = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for step in range(NEIGHBOURS_H * NEIGHBOURS_W * tl.cdiv(S, BLOCK_K)):
        neighbour = step % (NEIGHBOURS_H * NEIGHBOURS_W)
        s = step // (NEIGHBOURS_H * NEIGHBOURS_W) * BLOCK_K
        dh = neighbour // NEIGHBOURS_W
        dw = neighbour % NEIGHBOURS_W
        inside = ((bottom + dh).to(tl.uint32) < OH) & ((right + dw).to(tl.uint32) < OW)
        small_mask = inside[:, None]
        if not EVEN_S:
            small_mask = small_mask & (s + k < S)[None, :]
        # Neighbours re-read the same pixels: keep them in L1.
        small = tl.load(
            small_ptrs + (s + (dh * OW + dw) * S),
            mask=small_mask,
            other=0.0,
            cache_modifier=".ca",
        )
        kh = a + pad_h - STRIDE_H * (dh + first_h)
        kw = b + pad_w - STRIDE_W * (dw + first_w)
        connected = (kh >= 0) & (kh < KERNEL_H) & (kw >= 0) & (kw < KERNEL_W) & (column < COLUMNS)
        offset = s * (KERNEL_H * KERNEL_W * CHANNELS) + (kh * KERNEL_W + kw) * CHANNELS
        weight_mask = connected[None, :] & (s + k < S)[:, None]
        weight = tl.load(weight_ptrs + offset[None, :], mask=weight_mask, other=0.0)
        accumulator = multiply_accumulate(small, weight, accumulator, PRECISION)

    big = epilogue(accumulator, bias_ptr, c, CHANNELS, negative_slope, ACTIVATION)
    row = th[:, None] * STRIDE_H + a[None, :]
    pixel = tw[:, None] * STRIDE_W + b[None, :]
    mask = (block < blocks)[:, None] & (column < COLUMNS)[None, :] & (row < H) & (pixel < W)
    big_ptrs = big_ptr + ((image[:, None] * H + row) * W + pixel) * CHANNELS + c[None, :]
    tl.store(big_ptrs, big.to(big_ptr.dtype.element_ty), mask=mask)


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
    blocks_h = triton.cdiv(g.big_h, g.stride_h)
    blocks_w = triton.cdiv(g.big_w, g.stride_w)
    blocks = g.batch * blocks_h * blocks_w
    columns = g.stride_h * g.stride_w * g.big_channels
    first_h, neighbours_h = neighbour_offsets(g.kernel_h, g.stride_h, g.pad_h)
    first_w, neighbours_w = neighbour_offsets(g.kernel_w, g.stride_w, g.pad_w)
    numerics = precision(small.dtype, allow_tf32)
    problem = Problem(
        family="dgrad_image",
        dtype=small.dtype,
        numerics=numerics,
        rows=(blocks,),
        columns=columns,
        depth=g.small_channels,
        taps=(neighbours_h * neighbours_w,),
    )

    def run(t: Configuration) -> None:
        grid = (triton.cdiv(blocks, t.rows) * triton.cdiv(columns, t.columns),)
        dgrad_image_kernel[grid](
            small, weight, bias, big, blocks, blocks_h, blocks_w,
            g.big_h, g.big_w, g.small_h, g.small_w, g.small_channels,
            g.pad_h, g.pad_w, first_h, first_w, negative_slope,
            KERNEL_H=g.kernel_h, KERNEL_W=g.kernel_w, CHANNELS=g.big_channels,
            STRIDE_H=g.stride_h, STRIDE_W=g.stride_w,
            NEIGHBOURS_H=neighbours_h, NEIGHBOURS_W=neighbours_w,
            S_VECTOR=vector(g.small_channels, small), EVEN_S=g.small_channels % t.depth == 0,
            ACTIVATION=activation, PRECISION=numerics, WIDE=wide_index(big, small),
            BLOCK_M=t.rows, BLOCK_N=t.columns, BLOCK_K=t.depth,
            num_warps=t.warps, num_stages=t.stages,
        )  # fmt: skip

    with device_guard(small):
        run(select(problem, small.device, run))
    return big
