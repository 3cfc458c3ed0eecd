"""Bias + activation, forward and backward: y = act(x + bias), the bias along the channels, NHWC.

One launch forward. Backward dx = dy·act'(x + bias) with the bias gradient as partial sums of dx,
which a second, small launch adds in a fixed order. Both move the tensor as often as they must and
no more: twice forward, three times backward.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import triton
import triton.language as tl

from fastgan.kernels.activation import activate, activation_backward
from fastgan.kernels.architecture import ARCHITECTURES, architecture_of
from fastgan.kernels.channel_sums import channel_sums
from fastgan.kernels.channels_last import Cut, Tile, cut, matrix_shape
from fastgan.kernels.compilation import KernelVariant

# By bytes of an element, the same on every architecture: 16 bytes a thread and access, and as many
# programs as keep every multiprocessor busy with four.
TILES: dict[int, Tile] = {2: Tile(64, 64, 4), 4: Tile(64, 32, 4)}
PROGRAMS: dict[str, int] = {name: 4 * chip.multiprocessors for name, chip in ARCHITECTURES.items()}


@triton.jit
def forward_kernel(
    x,
    bias,
    y,
    rows,
    columns,
    channels,
    rows_per_split,
    column_blocks,
    negative_slope,
    ACTIVATION: tl.constexpr,
    FOLD: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """One program: one range of rows, BLOCK_C columns wide, BLOCK_R rows at a time.

        bias [BLOCK_C] ──┐                BLOCK_C
                         ▼               ┌───────┐ ┐
        x tile ───────► add ─► act ─► y  │   ↓   │ │ BLOCK_R
                                         └───────┘ ┘
    Grid: (splits · column_blocks,), neighbours read neighbouring columns. Masks: rows beyond the
    range, columns beyond the tensor.

    Args:
        x, y: [rows, columns] (folded, see channels_last).
        bias: [channels] or None.
        FOLD: rows that count as one; columns = FOLD · channels.
    """
    program = tl.program_id(0)
    start = (program // column_blocks).to(tl.int64) * rows_per_split
    length = tl.minimum(rows - start, rows_per_split).to(tl.int32)
    column = (program % column_blocks) * BLOCK_C + tl.arange(0, BLOCK_C)
    row = tl.arange(0, BLOCK_R)
    within = row[:, None] * columns + column[None, :]
    shift = tl.zeros((BLOCK_C,), tl.float32)
    if bias is not None:
        channel = column % channels if FOLD > 1 else column
        shift = tl.load(bias + channel, mask=channel < channels, other=0.0).to(tl.float32)
    for first in range(0, length, BLOCK_R):
        inside = (first + row[:, None] < length) & (column[None, :] < columns)
        moved = (start + first) * columns
        z = tl.load(x + moved + within, mask=inside, other=0.0).to(tl.float32) + shift[None, :]
        z = activate(z, negative_slope, ACTIVATION)
        tl.store(y + moved + within, z.to(y.dtype.element_ty), mask=inside)


def forward(
    x: torch.Tensor, bias: torch.Tensor | None, *, activation: str, negative_slope: float
) -> torch.Tensor:
    """Adds a bias along dimension 1 and activates.

    Args:
        x: [N, C, ...] dense channels_last, float32, bfloat16 or float16.
        bias: [C] or None.
        activation: a name in `activation.ACTIVATIONS`.
        negative_slope: of leaky_relu.

    Returns:
        y, of x's shape, dtype and strides.
    """
    y = torch.empty_like(x)
    if x.numel() == 0:
        return y
    plan, channels = _cut(x)
    with torch.cuda.device_of(x):
        forward_kernel[(plan.programs,)](
            x, bias, y, plan.rows, plan.columns, channels, plan.rows_per_split,
            plan.column_blocks, float(negative_slope),
            ACTIVATION=activation, FOLD=plan.fold, BLOCK_R=plan.tile.rows,
            BLOCK_C=plan.tile.columns, num_warps=plan.tile.num_warps,
        )  # fmt: skip
    return y


@triton.jit
def backward_kernel(
    grad_y,
    x,
    bias,
    grad_x,
    partials,
    rows,
    columns,
    channels,
    rows_per_split,
    column_blocks,
    negative_slope,
    ACTIVATION: tl.constexpr,
    FOLD: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """One program: dx of one range of rows, BLOCK_C columns wide, and its sum over the range.

        x tile, dy tile ─► dx        BLOCK_C
                                    ┌───────┐ ┐
                                    │   ↓   │ │ BLOCK_R: each element of the tile adds up its
                                    └───────┘ ┘ own dx; at the end the tile's rows are added.
    Grid: (splits · column_blocks,). Masks: rows beyond the range, columns beyond the tensor.

    Args:
        grad_y, x, grad_x: [rows, columns] (folded, see channels_last).
        bias: [channels] or None.
        partials: [splits, columns] float32, written: Σ dx; None where there is no bias.
        FOLD: rows that count as one; columns = FOLD · channels.
    """
    program = tl.program_id(0)
    split = (program // column_blocks).to(tl.int64)
    start = split * rows_per_split
    length = tl.minimum(rows - start, rows_per_split).to(tl.int32)
    column = (program % column_blocks) * BLOCK_C + tl.arange(0, BLOCK_C)
    row = tl.arange(0, BLOCK_R)
    within = row[:, None] * columns + column[None, :]
    shift = tl.zeros((BLOCK_C,), tl.float32)
    if bias is not None:
        channel = column % channels if FOLD > 1 else column
        shift = tl.load(bias + channel, mask=channel < channels, other=0.0).to(tl.float32)
    total = tl.zeros((BLOCK_R, BLOCK_C), tl.float32)
    for first in range(0, length, BLOCK_R):
        inside = (first + row[:, None] < length) & (column[None, :] < columns)
        moved = (start + first) * columns
        z = tl.load(x + moved + within, mask=inside, other=0.0).to(tl.float32) + shift[None, :]
        grad = tl.load(grad_y + moved + within, mask=inside, other=0.0).to(tl.float32)
        grad = activation_backward(grad, z, negative_slope, ACTIVATION)
        tl.store(grad_x + moved + within, grad.to(grad_x.dtype.element_ty), mask=inside)
        total += grad
    if partials is not None:
        where = split * columns + column
        tl.store(partials + where, tl.sum(total, 0), mask=column < columns)


def backward(
    grad_y: torch.Tensor,
    x: torch.Tensor,
    bias: torch.Tensor | None,
    *,
    activation: str,
    negative_slope: float,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Gradients of bias + activation.

    Args:
        grad_y, x: [N, C, ...] dense channels_last, of one dtype.
        bias: [C] or None.
        activation, negative_slope: as in the forward.

    Returns:
        (grad_x of x's shape, dtype and strides, grad_bias[C] float32 or None without a bias).
    """
    grad_x = torch.empty_like(x)
    if x.numel() == 0:
        empty = torch.zeros(x.shape[1], dtype=torch.float32, device=x.device)
        return grad_x, None if bias is None else empty
    plan, channels = _cut(x)
    partials = None if bias is None else plan.partials(x, planes=1)
    with torch.cuda.device_of(x):
        backward_kernel[(plan.programs,)](
            grad_y, x, bias, grad_x, partials, plan.rows, plan.columns, channels,
            plan.rows_per_split, plan.column_blocks, float(negative_slope),
            ACTIVATION=activation, FOLD=plan.fold, BLOCK_R=plan.tile.rows,
            BLOCK_C=plan.tile.columns, num_warps=plan.tile.num_warps,
        )  # fmt: skip
    return grad_x, None if partials is None else channel_sums(partials, channels)


def _cut(x: torch.Tensor) -> tuple[Cut, int]:
    """The cut of a tensor that is not empty, and its channels."""
    rows, channels = matrix_shape(x, 1)
    programs = PROGRAMS[architecture_of(x.device)]
    return cut(TILES[x.element_size()], programs, rows, channels, 1), channels


def variants(architecture: str) -> Iterator[KernelVariant]:
    """One specialization a kernel and width of an element, and one of a folded tensor."""
    sizes = {"rows": "i32", "columns": "i32:16", "channels": "i32", "rows_per_split": "i32:16"}
    sizes |= {"column_blocks": "i32", "negative_slope": "fp32"}
    for dtype, element_size in (("bf16", 2), ("fp32", 4)):
        for activation, fold in (("tanh", 32), ("leaky_relu", 1)):
            tile, data = TILES[element_size], f"*{dtype}"
            constants = {"ACTIVATION": activation, "FOLD": fold}
            constants |= {"BLOCK_R": tile.rows, "BLOCK_C": tile.columns}
            tensors = {"x": data, "bias": "*fp32", "y": data}
            gradients = {"grad_y": data, "x": data, "bias": "*fp32", "grad_x": data}
            gradients["partials"] = "*fp32"
            for kernel, pointers in ((forward_kernel, tensors), (backward_kernel, gradients)):
                yield KernelVariant(
                    kernel=kernel,
                    name=f"bias_act_{kernel.__name__}[{dtype}, {activation}, fold {fold}]",
                    signature=pointers | sizes,
                    constants=constants,
                    num_warps=tile.num_warps,
                    num_stages=2,
                    architectures=(architecture,),
                    load_bytes=16,
                )
