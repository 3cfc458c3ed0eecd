"""dgrad: the transposed convolution from the small side to the big side, by phases.

Output row o is reached by the taps kh = (o + pad_h) mod stride_h + j * stride_h, so the output
splits into stride_h x stride_w interleaved phases, each a dense convolution of unit stride with
its own taps: no zeros are inserted and no multiply-add is wasted. A 4x4 kernel of stride 2 makes
four phases of 2x2 taps; other kernels make phases of different sizes and numbers of taps, down to
none (a stride longer than the kernel leaves pixels that only the bias reaches).

One program computes BLOCK_M output pixels of one phase x BLOCK_N output channels:

                         B, contiguous
                       +---------+
     K = taps x S      | weights |  BLOCK_K x BLOCK_N
                       +---------+
    +-----------------++---------+
    | small, gathered ||   big   |  BLOCK_M x BLOCK_N, float32 accumulator
    +-----------------++---------+
    BLOCK_M x BLOCK_K
    rows: pixels (n, th, tw) of the phase: big rows phase_h + th * stride_h

    big[n, o, ...] = act(bias + sum over taps j and s of
                         small[n, th + (phase_h + pad_h) // stride_h - j, ..., s]
                         * weight[s, (phase_h + pad_h) % stride_h + j * stride_h, ..., b])

(Phase-segregated transposed convolution; for each dimension i * stride = o + pad - k.)
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
def dgrad_kernel(
    small_ptr,  # [N, OH, OW, S]
    weight_ptr,  # [S, KERNEL_H, KERNEL_W, B]
    bias_ptr,  # [B], or None
    big_ptr,  # [N, H, W, B], written
    batch, B, S,  # images and channels
    pad_h, pad_w,
    negative_slope,  # of leaky_relu
    H: tl.constexpr, W: tl.constexpr, OH: tl.constexpr, OW: tl.constexpr,
    KERNEL_H: tl.constexpr, KERNEL_W: tl.constexpr,
    STRIDE_H: tl.constexpr, STRIDE_W: tl.constexpr,
    B_VECTOR: tl.constexpr, S_VECTOR: tl.constexpr,  # powers of two that divide B and S
    EVEN_B: tl.constexpr,  # BLOCK_N divides B
    EVEN_S: tl.constexpr,  # BLOCK_K divides S
    ACTIVATION: tl.constexpr,
    PRECISION: tl.constexpr,
    WIDE: tl.constexpr,  # offsets need 64 bits
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    # Grid: one axis; channel tiles fastest, then phases, then pixel tiles: the programs of one
    # wave read the same pixels of the small side. The count of pixel tiles is that of the largest
    # phase; programs past the end of a smaller one leave at once.
    program = tl.program_id(0)
    channel_tiles = tl.cdiv(B, BLOCK_N)
    phase = program // channel_tiles % (STRIDE_H * STRIDE_W)
    first_pixel = program // (channel_tiles * STRIDE_H * STRIDE_W) * BLOCK_M
    if WIDE:
        first_pixel = (program // (channel_tiles * STRIDE_H * STRIDE_W)).to(tl.int64) * BLOCK_M
    phase_h = phase // STRIDE_W
    phase_w = phase % STRIDE_W
    if H % STRIDE_H == 0 and W % STRIDE_W == 0:
        rows: tl.constexpr = H // STRIDE_H
        columns: tl.constexpr = W // STRIDE_W
    else:
        rows = (H - phase_h + STRIDE_H - 1) // STRIDE_H
        columns = (W - phase_w + STRIDE_W - 1) // STRIDE_W
    pixels = rows * columns * batch
    if WIDE:
        pixels = tl.full((), batch, tl.int64) * rows * columns
    if first_pixel >= pixels:
        return
    # Spelt so, the compiler sees that rows of channels start at aligned addresses.
    B = B // B_VECTOR * B_VECTOR
    S = S // S_VECTOR * S_VECTOR

    first_kh = (phase_h + pad_h) % STRIDE_H
    first_kw = (phase_w + pad_w) % STRIDE_W
    if KERNEL_H % STRIDE_H == 0 and KERNEL_W % STRIDE_W == 0:
        taps_w: tl.constexpr = KERNEL_W // STRIDE_W
        taps: tl.constexpr = KERNEL_H // STRIDE_H * taps_w
    else:
        taps_w = (KERNEL_W - first_kw + STRIDE_W - 1) // STRIDE_W
        taps = (KERNEL_H - first_kh + STRIDE_H - 1) // STRIDE_H * taps_w

    pixel = first_pixel + tl.arange(0, BLOCK_M)
    image = pixel // (rows * columns)
    th = (pixel // columns) % rows
    tw = pixel % columns
    bottom = (th + (phase_h + pad_h) // STRIDE_H).to(tl.int32)
    right = (tw + (phase_w + pad_w) // STRIDE_W).to(tl.int32)
    origin = ((image * OH + bottom) * OW + right) * S
    target = ((image * H + phase_h + th * STRIDE_H) * W + phase_w + tw * STRIDE_W) * B
    # Masks: a pixel past the last one lies before the image for every tap; the unsigned
    # comparisons then drop it together with the taps that reach outside the small side.
    bottom = tl.where(pixel < pixels, bottom, -1)

    k = tl.arange(0, BLOCK_K)
    b = program % channel_tiles * BLOCK_N + tl.arange(0, BLOCK_N)
    s_stride = KERNEL_H * KERNEL_W * B
    if WIDE:
        s_stride = tl.full((), KERNEL_H * KERNEL_W, tl.int64) * B
    small_ptrs = small_ptr + origin[:, None] + k[None, :]
    weight_ptrs = weight_ptr + (k * s_stride)[:, None] + b[None, :]

    accumulator = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for step in range(taps * tl.cdiv(S, BLOCK_K)):
        tap = step % taps
        s = step // taps * BLOCK_K
        jh = tap // taps_w
        jw = tap % taps_w
        kh = first_kh + jh * STRIDE_H
        kw = first_kw + jw * STRIDE_W
        inside = ((bottom - jh).to(tl.uint32) < OH) & ((right - jw).to(tl.uint32) < OW)
        small_mask = inside[:, None]
        weight_mask = (b < B)[None, :]
        if not EVEN_S:
            small_mask = small_mask & (s + k < S)[None, :]
            weight_mask = weight_mask & (s + k < S)[:, None]
        # Neighbouring taps re-read the same pixels: .ca keeps them in L1.
        small_ptr_step = small_ptrs + (s - (jh * OW + jw) * S)
        small = tl.load(small_ptr_step, mask=small_mask, other=0.0, cache_modifier=".ca")
        offset = s * s_stride + (kh * KERNEL_W + kw) * B
        if EVEN_B and EVEN_S:
            weight = tl.load(weight_ptrs + offset)
        else:
            weight = tl.load(weight_ptrs + offset, mask=weight_mask, other=0.0)
        accumulator = multiply_accumulate(small, weight, accumulator, PRECISION)

    big = epilogue(accumulator, bias_ptr, b, B, negative_slope, ACTIVATION)
    big_ptrs = big_ptr + target[:, None] + b[None, :]
    mask = (pixel < pixels)[:, None] & (b < B)[None, :]
    tl.store(big_ptrs, big.to(big_ptr.dtype.element_ty), mask=mask)


def phase_sizes(size: int, kernel: int, stride: int, pad: int) -> list[tuple[int, int]]:
    """Output positions and taps of each phase along one dimension.

    Args:
        size: of the big side. kernel, stride, pad: of the same dimension.

    Returns:
        For each phase 0 ... stride - 1: (positions o = phase (mod stride), taps that reach them).
    """
    return [
        (
            (size - phase + stride - 1) // stride,
            (kernel - (phase + pad) % stride + stride - 1) // stride,
        )
        for phase in range(stride)
    ]


def launch_dgrad(
    small: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    geometry: Geometry,
    *,
    activation: str,
    negative_slope: float,
    allow_tf32: bool,
) -> torch.Tensor:
    """Runs `dgrad_kernel` over a whole batch, all phases in one launch.

    Args:
        small: [N, S, OH, OW], dense channels_last.
        weight: [S, B, kh, kw] of small's dtype, dense channels_last.
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
    phases = [
        (g.batch * rows * columns, taps_h * taps_w)
        for rows, taps_h in phase_sizes(g.big_h, g.kernel_h, g.stride_h, g.pad_h)
        for columns, taps_w in phase_sizes(g.big_w, g.kernel_w, g.stride_w, g.pad_w)
    ]
    numerics = precision(small.dtype, allow_tf32)
    problem = Problem(
        family="dgrad",
        dtype=small.dtype,
        numerics=numerics,
        rows=tuple(rows for rows, _ in phases),
        columns=g.big_channels,
        depth=g.small_channels,
        taps=tuple(taps for _, taps in phases),
        reuse=g.reuse,
        wide=wide_index(big, weight, small),
        aligned=min(vector(g.big_channels, big), vector(g.small_channels, big)) > 1,
    )

    def run(c: Configuration) -> None:
        pixel_tiles = triton.cdiv(phases[0][0], c.rows)
        grid = (pixel_tiles * len(phases) * triton.cdiv(g.big_channels, c.columns),)
        dgrad_kernel[grid](
            small, weight, bias, big,
            g.batch, g.big_channels, g.small_channels,
            g.pad_h, g.pad_w, negative_slope,
            **g.constants, STRIDE_H=g.stride_h, STRIDE_W=g.stride_w,
            B_VECTOR=vector(g.big_channels, big), S_VECTOR=vector(g.small_channels, big),
            EVEN_B=g.big_channels % c.columns == 0, EVEN_S=g.small_channels % c.depth == 0,
            ACTIVATION=activation, PRECISION=numerics, WIDE=problem.wide,
            **c.options,
        )  # fmt: skip

    with device_guard(small):
        run(select(problem, small.device, run))
    return big


def variants(architecture: str) -> Iterator[KernelVariant]:
    """Every shipped tile on a 4x4 kernel of stride 2, and what other calls make of one of them."""
    variant = functools.partial(
        specialization,
        dgrad_kernel,
        "dgrad",
        architecture,
        pointers="small_ptr weight_ptr big_ptr",
        sizes="batch pad_h pad_w",
        channels="B S",
        vectors="B_VECTOR S_VECTOR",
        even="EVEN_B EVEN_S",
        STRIDE_H=2,
        STRIDE_W=2,
        OH=8,
        OW=8,
    )
    tiles = list(shipped(architecture, "dgrad"))
    layer = {"KERNEL_H": 4, "KERNEL_W": 4, "H": 16, "W": 16}
    for arithmetic, tile in tiles:
        yield variant(arithmetic, tile, **layer)
    yield variant(*tiles[0], half="fp16", bias=True, activation="relu", **layer)
    uneven = {"KERNEL_H": 5, "KERNEL_W": 5, "H": 15, "W": 15}
    yield variant(*tiles[0], bias=True, activation="tanh", **uneven)
    wide = next(tile for _, tile in tiles if tile.rows * tile.columns <= WIDE_AREA)
    yield variant("half", wide, wide=True, **layer)
