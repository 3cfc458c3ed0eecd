"""wgrad: the weight gradient, a small product with a long reduction over pixels, split over K.

One program computes BLOCK_M channels of the small side x BLOCK_N (tap, channel) columns of the
big side, over one share of the pixels:

                             columns = (kh, kw, b), b contiguous
                           +----------------+
     K = pixels (n, oh,    | big, gathered  |  BLOCK_K x BLOCK_N
         ow) of one split  +----------------+
    +---------------------++----------------+
    | small, transposed   ||    weight      |  BLOCK_M x BLOCK_N, float32 accumulator
    +---------------------++----------------+
    BLOCK_M x BLOCK_K

    weight[s, kh, kw, b] = sum over n, oh, ow of small[n, oh, ow, s]
                           * big[n, oh*stride_h - pad_h + kh, ow*stride_w - pad_w + kw, b]

Columns may span several taps: 3 image channels x 16 taps fill 48 columns of one tile. Where the
small side has at most 16 channels, SWAP computes the transpose, so that the long side is the one
that fills the matrix unit's rows. Several splits write float32 partial sums, which a second kernel
adds in a fixed order: no atomics, the same bits on every run.
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
from fastgan.kernels.conv_tile import multiply_accumulate
from fastgan.kernels.conv_tuning import Configuration, Problem, chip_of, estimate, select

# Elements that one program of the reduction reads at once.
REDUCE_TILE = 4096


@triton.jit
def wgrad_kernel(
    big_ptr,  # [N, H, W, B]
    small_ptr,  # [N, OH, OW, S]
    weight_ptr,  # [splits, S, KERNEL_H, KERNEL_W, B], written
    pixels,  # N * OH * OW
    share,  # pixels of one split
    B, S,  # channels
    stride_h, stride_w, pad_h, pad_w,
    H: tl.constexpr, W: tl.constexpr, OH: tl.constexpr, OW: tl.constexpr,
    KERNEL_H: tl.constexpr, KERNEL_W: tl.constexpr,
    B_VECTOR: tl.constexpr, S_VECTOR: tl.constexpr,  # powers of two that divide B and S
    SWAP: tl.constexpr,  # columns are the rows of the tile
    PRECISION: tl.constexpr,
    WIDE: tl.constexpr,  # offsets need 64 bits
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    # Grid: (tiles, splits), channel tiles of the small side fastest: neighbours share the gather.
    B = B // B_VECTOR * B_VECTOR
    S = S // S_VECTOR * S_VECTOR
    columns = KERNEL_H * KERNEL_W * B
    BLOCK_S: tl.constexpr = BLOCK_N if SWAP else BLOCK_M
    BLOCK_C: tl.constexpr = BLOCK_M if SWAP else BLOCK_N
    channel_tiles = tl.cdiv(S, BLOCK_S)
    s = tl.program_id(0) % channel_tiles * BLOCK_S + tl.arange(0, BLOCK_S)
    column = tl.program_id(0) // channel_tiles * BLOCK_C + tl.arange(0, BLOCK_C)
    tap = column // B
    kh = tap // KERNEL_W
    kw = tap % KERNEL_W
    big_offset = (kh * W + kw) * B + column % B
    # B_VECTOR neighbouring columns belong to one tap and lie side by side.
    big_offset = tl.max_contiguous(tl.multiple_of(big_offset, B_VECTOR), B_VECTOR)
    # Masks: a column past the last one has a tap below every image.
    kh = tl.max_constancy(tl.where(column < columns, kh, H + pad_h), B_VECTOR)
    kw = tl.max_constancy(kw, B_VECTOR)

    begin = tl.program_id(1) * share
    if WIDE:
        begin = tl.program_id(1).to(tl.int64) * share
    end = tl.minimum(begin + share, pixels)
    pixel = begin + tl.arange(0, BLOCK_K)
    # Position of each pixel, divided out once and then carried forward by BLOCK_K pixels a step.
    ow = pixel % OW
    oh = (pixel // OW) % OH
    image = pixel // (OH * OW)

    accumulator = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for _ in range(tl.cdiv(end - begin, BLOCK_K)):
        top = (oh * stride_h - pad_h).to(tl.int32)
        left = (ow * stride_w - pad_w).to(tl.int32)
        origin = ((image * H + top) * W + left) * B
        inside = (top[:, None] + kh[None, :]).to(tl.uint32) < H
        inside = inside & ((left[:, None] + kw[None, :]).to(tl.uint32) < W)
        inside = inside & (pixel < end)[:, None]
        big = tl.load(big_ptr + origin[:, None] + big_offset[None, :], mask=inside, other=0.0)
        small_ptrs = small_ptr + pixel[:, None] * S + s[None, :]
        mask = (pixel < end)[:, None] & (s < S)[None, :]
        small = tl.load(small_ptrs, mask=mask, other=0.0)
        if SWAP:
            accumulator = multiply_accumulate(tl.trans(big), small, accumulator, PRECISION)
        else:
            accumulator = multiply_accumulate(tl.trans(small), big, accumulator, PRECISION)
        pixel += BLOCK_K
        ow += BLOCK_K % OW
        carry = (ow >= OW).to(tl.int32)
        ow -= carry * OW
        oh += (BLOCK_K // OW) % OH + carry
        carry = (oh >= OH).to(tl.int32)
        oh -= carry * OH
        image += BLOCK_K // (OW * OH) + carry

    split = tl.program_id(1).to(tl.int64) * S * columns
    if SWAP:
        offset = s[None, :].to(tl.int64) * columns + column[:, None]
        mask = (s < S)[None, :] & (column < columns)[:, None]
    else:
        offset = s[:, None].to(tl.int64) * columns + column[None, :]
        mask = (s < S)[:, None] & (column < columns)[None, :]
    value = accumulator.to(weight_ptr.dtype.element_ty)
    tl.store(weight_ptr + split + offset, value, mask=mask)


@triton.jit
def wgrad_reduce_kernel(
    partial_ptr,  # [splits, size], float32
    weight_ptr,  # [size], written
    size,
    splits,
    BLOCK_SPLITS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    # Grid: blocks of BLOCK elements; the last is masked. Small weights come from many splits, so
    # a program reads BLOCK_SPLITS of them at once; the order of the additions depends on nothing
    # but the shape.
    offset = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    split = tl.arange(0, BLOCK_SPLITS)
    partial_ptrs = partial_ptr + split.to(tl.int64)[:, None] * size + offset[None, :]
    total = tl.zeros((BLOCK_SPLITS, BLOCK), tl.float32)
    for first in range(0, splits, BLOCK_SPLITS):
        mask = (first + split < splits)[:, None] & (offset < size)[None, :]
        total += tl.load(partial_ptrs, mask=mask, other=0.0)
        partial_ptrs += tl.full((), BLOCK_SPLITS, tl.int64) * size
    weight = tl.sum(total, axis=0).to(weight_ptr.dtype.element_ty)
    tl.store(weight_ptr + offset, weight, mask=offset < size)


def reduce_block(splits: int) -> tuple[int, int]:
    """BLOCK_SPLITS and BLOCK: as many splits at once as there are, up to 32."""
    block_splits = min(32, triton.next_power_of_2(splits))
    return block_splits, REDUCE_TILE // block_splits


def launch_wgrad(
    big: torch.Tensor,
    small: torch.Tensor,
    geometry: Geometry,
    *,
    allow_tf32: bool,
    out_dtype: torch.dtype | None,
) -> torch.Tensor:
    """Runs `wgrad_kernel`, and `wgrad_reduce_kernel` where the reduction is split.

    Args:
        big: [N, B, H, W], dense channels_last.
        small: [N, S, OH, OW] of big's dtype, dense channels_last.
        geometry: sizes, stride and padding.
        allow_tf32: float32 operands may be rounded to TF32.
        out_dtype: of the result; None is big's.

    Returns:
        [S, B, kh, kw], dense channels_last; zeros for an empty batch.
    """
    g = geometry
    weight = channels_last_empty(g.weight_shape, big, out_dtype)
    pixels = g.batch * g.small_h * g.small_w
    if weight.numel() == 0:
        return weight
    if pixels == 0:
        return weight.zero_()
    columns = g.kernel_h * g.kernel_w * g.big_channels
    swap = g.small_channels <= 16
    image = min(g.small_channels, g.big_channels) <= 4
    vectors = vector(g.big_channels, big), vector(g.small_channels, big)
    numerics = precision(big.dtype, allow_tf32)
    problem = Problem(
        family="wgrad_image" if image else "wgrad",
        dtype=big.dtype,
        numerics=numerics,
        rows=(columns if swap else g.small_channels,),
        columns=g.small_channels if swap else columns,
        depth=pixels,
        wide=wide_index(big, small),
        # The channels of an image never are: its elements are gathered one by one in any case.
        aligned=(max(vectors) if image else min(vectors)) > 1,
        splittable=True,
    )

    def run(c: Configuration) -> None:
        splits = estimate(problem, c, chip_of(big.device))[1]
        share = triton.cdiv(triton.cdiv(pixels, splits), c.depth) * c.depth
        splits = triton.cdiv(pixels, share)
        target = weight
        if splits > 1:
            target = torch.empty((splits, weight.numel()), dtype=torch.float32, device=big.device)
        tiles = triton.cdiv(problem.rows[0], c.rows) * triton.cdiv(problem.columns, c.columns)
        wgrad_kernel[tiles, splits](
            big, small, target, pixels, share,
            g.big_channels, g.small_channels, g.stride_h, g.stride_w, g.pad_h, g.pad_w,
            **g.constants,
            B_VECTOR=vectors[0], S_VECTOR=vectors[1],
            SWAP=swap, PRECISION=numerics, WIDE=problem.wide,
            **c.options,
        )  # fmt: skip
        if splits > 1:
            block_splits, block = reduce_block(splits)
            wgrad_reduce_kernel[(triton.cdiv(weight.numel(), block),)](
                target, weight, weight.numel(), splits,
                BLOCK_SPLITS=block_splits, BLOCK=block, num_warps=4,
            )  # fmt: skip

    with device_guard(big):
        run(select(problem, big.device, run))
    return weight


def variants(architecture: str) -> Iterator[KernelVariant]:
    """Every shipped tile on a 4x4 kernel, and the reduction of the splits."""
    for family in ("wgrad", "wgrad_image"):
        variant = functools.partial(
            specialization,
            wgrad_kernel,
            family,
            architecture,
            pointers="big_ptr small_ptr weight_ptr",
            sizes="pixels share stride_h stride_w pad_h pad_w",
            channels="B S",
            vectors="B_VECTOR S_VECTOR",
            bias=None,
            activation=None,
            KERNEL_H=4,
            KERNEL_W=4,
            H=16,
            W=16,
            OH=8,
            OW=8,
        )
        tiles = list(shipped(architecture, family))
        for arithmetic, tile in tiles:
            # TF32 matrix instructions want the reduction contiguous: both operands are transposed
            # on their way to shared memory, 4 bytes at a time.
            width = 4 if arithmetic == "tf32" else 16
            swap = tile.columns < 32
            image = "" if family == "wgrad" else "S" if swap else "B"
            yield variant(arithmetic, tile, SWAP=swap, image=image, load_bytes=width)
    yield variant(*tiles[0], SWAP=False, image="B", half="fp16", wide=True)
    for result, splits in (("bf16", 4), ("fp32", 32)):
        block_splits, block = reduce_block(splits)
        yield KernelVariant(
            kernel=wgrad_reduce_kernel,
            name=f"wgrad_reduce[{splits} splits, {result}]",
            signature={
                "partial_ptr": "*fp32",
                "weight_ptr": f"*{result}",
                "size": "i32:16",
                "splits": "i32",
            },
            constants={"BLOCK_SPLITS": block_splits, "BLOCK": block},
            num_warps=4,
            num_stages=3,
            architectures=(architecture,),
            load_bytes=16,
        )
