"""Batch norm + activation, backward. With x̂ = (x − mean)·invstd and z = x̂·weight + bias,

    dz          = dy · act'(z)                        the mask is recomputed from x
    grad_bias   = Σ dz,   grad_weight = Σ dz·x̂        over all groups
    dx          = weight·invstd · (dz − (Σ dz + x̂ · Σ dz·x̂) / rows)   sums over the own group
    dx          = weight·invstd · dz                  where the statistics are constants (inference)

Two variants as in the forward: resident (a program keeps its slabs of x̂ and dz in registers; one
launch, three transfers) and two passes (channel sums, then dx with the merging of the sums in its
prologue; two launches, five transfers, x and dy of the second mostly from the L2 cache).
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from fastgan.kernels.activation import activation_backward
from fastgan.kernels.architecture import architecture_of
from fastgan.kernels.batch_norm_act_statistics import (
    BLOCK_S,
    TABLES,
    parameters,
    range_of,
    resident_tile,
    sum_group,
)
from fastgan.kernels.channel_sums import channel_sums
from fastgan.kernels.channels_last import cut, matrix_shape


@triton.jit
def backward_resident_kernel(
    grad_y,
    x,
    mean,
    invstd,
    weight,
    bias,
    grad_x,
    grad_weight,
    grad_bias,
    rows,
    channels,
    groups,
    negative_slope,
    ACTIVATION: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """One program: BLOCK_C channels of every group, one group's slabs at a time.

                BLOCK_C  BLOCK_C
               ┌──────┐ ┌──────┐
        rows   │  x̂   │ │  dz  │  read once, kept in registers:
        of a   │      │ │      │  two sums a channel, then
        group  │      │ │      │  dx written once
               └──────┘ └──────┘
    Grid: (blocks of channels,). Masks: rows beyond the group, channels beyond the tensor.

    Args:
        grad_y, x, grad_x: [groups·rows, channels].
        mean, invstd: [groups, channels] float32.
        weight, bias: [channels] or None.
        grad_weight, grad_bias: [channels] float32, written.
        rows: rows of a group, at most BLOCK_R.
    """
    channel = tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C)
    row = tl.arange(0, BLOCK_R)
    inside = (row[:, None] < rows) & (channel[None, :] < channels)
    within = row[:, None] * channels + channel[None, :]
    scale, shift = parameters(weight, bias, channel, channels)
    weight_sum = tl.zeros((BLOCK_C,), tl.float32)
    bias_sum = tl.zeros((BLOCK_C,), tl.float32)
    for group in range(groups):
        moved = tl.cast(group, tl.int64) * rows * channels
        value = tl.load(x + moved + within, mask=inside, other=0.0).to(tl.float32)
        grad = tl.load(grad_y + moved + within, mask=inside, other=0.0).to(tl.float32)
        statistic = tl.cast(group, tl.int64) * channels + channel
        centre = tl.load(mean + statistic, mask=channel < channels, other=0.0)
        inverse = tl.load(invstd + statistic, mask=channel < channels, other=0.0)
        normal = (value - centre[None, :]) * inverse[None, :]
        z = normal * scale[None, :] + shift[None, :]
        grad = activation_backward(grad, z, negative_slope, ACTIVATION)
        # Rows beyond the group have grad = 0 there, so that they add nothing.
        sum_grad = tl.sum(grad, 0)
        sum_grad_normal = tl.sum(grad * normal, 0)
        bias_sum += sum_grad
        weight_sum += sum_grad_normal
        average = (sum_grad / rows)[None, :] + normal * (sum_grad_normal / rows)[None, :]
        result = (inverse * scale)[None, :] * (grad - average)
        tl.store(grad_x + moved + within, result.to(grad_x.dtype.element_ty), mask=inside)
    tl.store(grad_weight + channel, weight_sum, mask=channel < channels)
    tl.store(grad_bias + channel, bias_sum, mask=channel < channels)


@triton.jit
def partial_gradients_kernel(
    grad_y,
    x,
    mean,
    invstd,
    weight,
    bias,
    partials,
    grad_x,
    rows,
    columns,
    channels,
    splits,
    rows_per_split,
    column_blocks,
    groups,
    negative_slope,
    ACTIVATION: tl.constexpr,
    FOLD: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """One program: Σ dz and Σ dz·x̂ of one range of rows of one group, BLOCK_C columns wide.

               BLOCK_C
              ┌───────┐ ┐
              │       │ │ BLOCK_R: each element of the tile adds up its own (dz, dz·x̂) over
              ├───────┤ ┘ the tiles of the range; at the end the tile's rows are added.
              │   ↓   │
              └───────┘
    Grid: (groups · splits · column_blocks,). Masks: rows beyond the range, columns beyond the
    tensor.

    Args:
        grad_y, x: [groups·rows, columns] (folded, see channels_last).
        mean, invstd: [groups, channels] float32.
        weight, bias: [channels] or None.
        partials: [2, groups, splits, columns] float32, written: Σ dz·x̂, then Σ dz.
        grad_x: [groups·rows, columns], written where the statistics are constants; None where
            dx needs the sums first.
    """
    program = tl.program_id(0)
    slot, group, start, length = range_of(program, rows, splits, rows_per_split, column_blocks)
    column = (program % column_blocks) * BLOCK_C + tl.arange(0, BLOCK_C)
    row = tl.arange(0, BLOCK_R)
    channel = column % channels if FOLD > 1 else column
    scale, shift = parameters(weight, bias, channel, channels)
    statistic = group * channels + channel
    centre = tl.load(mean + statistic, mask=channel < channels, other=0.0)
    inverse = tl.load(invstd + statistic, mask=channel < channels, other=0.0)

    offset = (group * rows + start) * columns
    within = row[:, None] * columns + column[None, :]
    weight_sum = tl.zeros((BLOCK_R, BLOCK_C), tl.float32)
    bias_sum = tl.zeros((BLOCK_R, BLOCK_C), tl.float32)
    for first in range(0, length, BLOCK_R):
        inside = (first + row[:, None] < length) & (column[None, :] < columns)
        moved = offset + tl.cast(first, tl.int64) * columns
        value = tl.load(x + moved + within, mask=inside, other=0.0, eviction_policy="evict_last")
        grad = tl.load(
            grad_y + moved + within, mask=inside, other=0.0, eviction_policy="evict_last"
        )
        normal = (value.to(tl.float32) - centre[None, :]) * inverse[None, :]
        z = normal * scale[None, :] + shift[None, :]
        grad = activation_backward(grad.to(tl.float32), z, negative_slope, ACTIVATION)
        bias_sum += grad
        weight_sum += grad * normal
        if grad_x is not None:
            result = (inverse * scale)[None, :] * grad
            tl.store(grad_x + moved + within, result.to(grad_x.dtype.element_ty), mask=inside)

    result = partials + slot.to(tl.int64) * columns + column
    tl.store(result, tl.sum(weight_sum, 0), mask=column < columns)
    plane = tl.cast(groups, tl.int64) * splits * columns
    tl.store(result + plane, tl.sum(bias_sum, 0), mask=column < columns)


@triton.jit
def input_gradient_kernel(
    grad_y,
    x,
    mean,
    invstd,
    weight,
    bias,
    partials,
    grad_x,
    grad_weight,
    grad_bias,
    rows,
    columns,
    channels,
    splits,
    rows_per_split,
    column_blocks,
    groups,
    negative_slope,
    ACTIVATION: tl.constexpr,
    FOLD: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_S: tl.constexpr,
):
    """One program: dx of one range of rows of one group, BLOCK_C columns wide.

        partials [splits·FOLD, BLOCK_C] ─add─► Σ dz, Σ dz·x̂       BLOCK_C
                                                  │              ┌───────┐ ┐
        x tile, dy tile ─► dz, x̂ ─────────────────┴─► dx         │   ↑   │ │ BLOCK_R
                                                                 └───────┘ ┘
    Grid: (groups · splits · column_blocks,), walked backwards, so that the rows read last by the
    first pass are read first. The program of the very first range writes grad_weight and
    grad_bias. Masks: rows beyond the range, columns beyond the tensor.

    Args:
        grad_y, x, grad_x: [groups·rows, columns] (folded).
        mean, invstd: [groups, channels] float32.
        weight, bias: [channels] or None.
        partials: [2, groups, splits, columns] float32 from partial_gradients_kernel.
        grad_weight, grad_bias: [channels] float32, written.
        BLOCK_S: partial results added at a time.
    """
    program = tl.num_programs(0) - 1 - tl.program_id(0)
    slot, group, start, length = range_of(program, rows, splits, rows_per_split, column_blocks)
    column = (program % column_blocks) * BLOCK_C + tl.arange(0, BLOCK_C)
    row = tl.arange(0, BLOCK_R)
    channel = column % channels if FOLD > 1 else column
    scale, shift = parameters(weight, bias, channel, channels)
    statistic = group * channels + channel
    centre = tl.load(mean + statistic, mask=channel < channels, other=0.0)
    inverse = tl.load(invstd + statistic, mask=channel < channels, other=0.0)

    biases = partials + tl.cast(groups, tl.int64) * splits * columns
    values = tl.cast(rows, tl.float32) * FOLD
    average_normal = sum_group(partials, group, splits, channel, channels, FOLD, BLOCK_S) / values
    average = sum_group(biases, group, splits, channel, channels, FOLD, BLOCK_S) / values
    if slot == 0:
        weight_sum = tl.zeros((BLOCK_C,), tl.float32)
        bias_sum = tl.zeros((BLOCK_C,), tl.float32)
        for each in range(groups):
            weight_sum += sum_group(partials, each, splits, channel, channels, FOLD, BLOCK_S)
            bias_sum += sum_group(biases, each, splits, channel, channels, FOLD, BLOCK_S)
        # Of FOLD equal copies of a channel the first writes.
        tl.store(grad_weight + column, weight_sum, mask=column < channels)
        tl.store(grad_bias + column, bias_sum, mask=column < channels)

    offset = (group * rows + start) * columns
    within = row[:, None] * columns + column[None, :]
    for first in range(0, length, BLOCK_R):
        inside = (first + row[:, None] < length) & (column[None, :] < columns)
        moved = offset + tl.cast(first, tl.int64) * columns
        value = tl.load(x + moved + within, mask=inside, other=0.0).to(tl.float32)
        grad = tl.load(grad_y + moved + within, mask=inside, other=0.0).to(tl.float32)
        normal = (value - centre[None, :]) * inverse[None, :]
        z = normal * scale[None, :] + shift[None, :]
        grad = activation_backward(grad, z, negative_slope, ACTIVATION)
        grad -= average[None, :] + normal * average_normal[None, :]
        result = (inverse * scale)[None, :] * grad
        tl.store(grad_x + moved + within, result.to(grad_x.dtype.element_ty), mask=inside)


def backward(
    grad_y: torch.Tensor,
    x: torch.Tensor,
    mean: torch.Tensor,
    invstd: torch.Tensor,
    weight: torch.Tensor | None,
    bias: torch.Tensor | None,
    *,
    activation: str,
    negative_slope: float,
    stat_groups: int,
    training: bool,
    variant: str | None = None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Gradients of batch norm + activation.

    Args:
        grad_y, x: [N, C, ...] dense channels_last, of one dtype.
        mean, invstd: [g, C] float32 as `forward_training` returned them; with training=False
            [1, C], of the running statistics, and constants in the derivative.
        weight, bias: [C] or None.
        activation, negative_slope, stat_groups: as in the forward.
        training: whether the forward took its statistics from x.
        variant: "resident" or "two_pass" instead of the table's choice.

    Returns:
        (grad_x of x's shape, dtype and strides, grad_weight[C] float32, grad_bias[C] float32).
    """
    groups = stat_groups if training else 1
    rows, channels = matrix_shape(x, groups)
    grad_x = torch.empty_like(x)
    grad_weight = torch.empty(channels, dtype=torch.float32, device=x.device)
    grad_bias = torch.empty_like(grad_weight)
    if x.numel() == 0:
        return grad_x, grad_weight.zero_(), grad_bias.zero_()
    table = TABLES[architecture_of(x.device)]
    tile = None  # with constant statistics the streaming kernel makes dx in its first pass
    if training:
        tile = resident_tile(table.resident_backward[x.element_size()], rows, variant)
    with torch.cuda.device_of(x):
        if tile is not None:
            backward_resident_kernel[(triton.cdiv(channels, tile.columns),)](
                grad_y, x, mean, invstd, weight, bias, grad_x, grad_weight, grad_bias,
                rows, channels, groups, float(negative_slope),
                ACTIVATION=activation, BLOCK_R=tile.rows, BLOCK_C=tile.columns,
                num_warps=tile.num_warps,
            )  # fmt: skip
            return grad_x, grad_weight, grad_bias
        plan = cut(table.streaming[x.element_size()], table.programs, rows, channels, groups)
        partials = plan.partials(x, planes=2)
        geometry = (plan.rows, plan.columns, channels, plan.splits, plan.rows_per_split,
                    plan.column_blocks, groups, float(negative_slope))  # fmt: skip
        partial_gradients_kernel[(plan.programs,)](
            grad_y, x, mean, invstd, weight, bias, partials, None if training else grad_x,
            *geometry, ACTIVATION=activation, FOLD=plan.fold,
            BLOCK_R=plan.tile.rows, BLOCK_C=plan.tile.columns, num_warps=plan.tile.num_warps,
        )  # fmt: skip
        if not training:
            return grad_x, channel_sums(partials[0], channels), channel_sums(partials[1], channels)
        input_gradient_kernel[(plan.programs,)](
            grad_y, x, mean, invstd, weight, bias, partials, grad_x, grad_weight, grad_bias,
            *geometry, ACTIVATION=activation, FOLD=plan.fold,
            BLOCK_R=plan.tile.rows, BLOCK_C=plan.tile.columns, BLOCK_S=BLOCK_S,
            num_warps=plan.tile.num_warps,
        )  # fmt: skip
    return grad_x, grad_weight, grad_bias
