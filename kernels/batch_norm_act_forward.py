"""Batch norm + activation, forward: y = act((x − mean)·invstd·weight + bias), NHWC.

Training takes the statistics from x, group by group. Two variants, chosen by the height of a group:

- resident: a program keeps its whole slab [rows of the group, BLOCK_C channels] in registers and
  reads x once: one launch, two transfers of the tensor;
- two passes: partial statistics, then normalisation, with the merging of the partial statistics
  folded into the second pass: two launches, three transfers, of which the second reading of x
  finds in the L2 cache whatever fits there, because it walks backwards.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from fastgan.kernels.activation import activate
from fastgan.kernels.architecture import architecture_of
from fastgan.kernels.batch_norm_act_statistics import (
    BLOCK_S,
    TABLES,
    merge_group,
    merge_rows,
    origin_of,
    parameters,
    range_of,
    resident_tile,
)
from fastgan.kernels.channels_last import Cut, cut, matrix_shape


@triton.jit
def _advance(running, fresh, channel, channels, momentum):
    """running ← (1 − momentum)·running + momentum·fresh, for a block of channels."""
    old = tl.load(running + channel, mask=channel < channels, other=0.0).to(tl.float32)
    new = old * (1.0 - momentum) + fresh * momentum
    tl.store(running + channel, new.to(running.dtype.element_ty), mask=channel < channels)


@triton.jit
def forward_resident_kernel(
    x,
    y,
    mean,
    invstd,
    running_mean,
    running_var,
    weight,
    bias,
    rows,
    channels,
    groups,
    momentum,
    eps,
    negative_slope,
    ACTIVATION: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """One program: BLOCK_C channels of every group, one group's slab at a time.

                BLOCK_C
               ┌──────┐
        rows   │ slab │  read once, kept in registers:
        of a   │      │  mean, then deviations, then
        group  │      │  y = act(...) written once
               └──────┘
    Grid: (blocks of channels,). The groups come one after another because the running statistics
    advance in their order. Masks: rows beyond the group, channels beyond the tensor.

    Args:
        x, y: [groups·rows, channels]; y has x's dtype.
        mean, invstd: [groups, channels] float32, written.
        running_mean, running_var: [channels] or None, advanced once a group.
        weight, bias: [channels] or None.
        rows: rows of a group, at most BLOCK_R.
        momentum, eps, negative_slope: float32.
    """
    channel = tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C)
    row = tl.arange(0, BLOCK_R)
    inside = (row[:, None] < rows) & (channel[None, :] < channels)
    within = row[:, None] * channels + channel[None, :]
    scale, shift = parameters(weight, bias, channel, channels)
    for group in range(groups):
        moved = tl.cast(group, tl.int64) * rows * channels
        slab = tl.load(x + moved + within, mask=inside, other=0.0).to(tl.float32)

        rough = tl.sum(slab, 0) / rows
        away = tl.where(inside, slab - rough[None, :], 0.0)
        # The mean of the deviations is what rounding took from the first sum; both are put right
        # by it (the corrected two-pass algorithm of Chan, Golub and LeVeque 1983).
        lost = tl.sum(away, 0) / rows
        m2 = tl.sum(away * away, 0) - lost * lost * rows
        centre = rough + lost
        inverse = 1.0 / tl.sqrt(m2 / rows + eps)

        z = (away - lost[None, :]) * (inverse * scale)[None, :] + shift[None, :]
        z = activate(z, negative_slope, ACTIVATION)
        tl.store(y + moved + within, z.to(y.dtype.element_ty), mask=inside)

        statistic = tl.cast(group, tl.int64) * channels + channel
        tl.store(mean + statistic, centre, mask=channel < channels)
        tl.store(invstd + statistic, inverse, mask=channel < channels)
        if running_mean is not None:
            _advance(running_mean, centre, channel, channels, momentum)
        if running_var is not None:
            _advance(running_var, m2 / (rows - 1.0), channel, channels, momentum)


@triton.jit
def partial_statistics_kernel(
    x,
    partials,
    rows,
    columns,
    channels,
    splits,
    rows_per_split,
    column_blocks,
    groups,
    FOLD: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """One program: the statistics of one range of rows of one group, BLOCK_C columns wide.

               BLOCK_C
              ┌───────┐ ┐
              │       │ │ BLOCK_R: each element of the tile keeps a (mean, M2) of its own
              ├───────┤ ┘ over the tiles of the range (Welford); at the end the tile's rows
              │   ↓   │   are merged into one.
              └───────┘
    Grid: (groups · splits · column_blocks,), neighbours read neighbouring columns. Masks: rows
    beyond the range, columns beyond the tensor. Everything is relative to the group's first value
    of the channel, so that a mean that is large against the spread costs no digits.

    Args:
        x: [groups·rows, columns] (folded, see channels_last).
        partials: [2, groups, splits, columns] float32, written: means of x − origin, then M2.
        rows, rows_per_split: (folded) rows of a group and of a range.
    """
    program = tl.program_id(0)
    slot, group, start, length = range_of(program, rows, splits, rows_per_split, column_blocks)
    column = (program % column_blocks) * BLOCK_C + tl.arange(0, BLOCK_C)
    row = tl.arange(0, BLOCK_R)
    offset = (group * rows + start) * columns
    within = row[:, None] * columns + column[None, :]

    channel = column % channels if FOLD > 1 else column
    origin = origin_of(x, group, rows, columns, channel, channels)
    mean = tl.zeros((BLOCK_R, BLOCK_C), tl.float32)
    m2 = tl.zeros((BLOCK_R, BLOCK_C), tl.float32)
    seen = 0.0
    for first in range(0, length, BLOCK_R):
        inside = (first + row[:, None] < length) & (column[None, :] < columns)
        tile = x + (offset + tl.cast(first, tl.int64) * columns) + within
        value = tl.load(tile, mask=inside, other=0.0, eviction_policy="evict_last")
        seen += 1.0
        share = 1.0 / seen
        away = tl.where(inside, value.to(tl.float32) - origin[None, :] - mean, 0.0)
        mean += away * share
        m2 += away * away * (1.0 - share)

    # Rows of the tile that the last, incomplete tile did not reach have seen one value less.
    values = tl.maximum((length - row + BLOCK_R - 1) // BLOCK_R, 0).to(tl.float32)
    _, mean, m2 = merge_rows(values[:, None], mean, m2)
    result = partials + slot.to(tl.int64) * columns + column
    tl.store(result, mean, mask=column < columns)
    plane = tl.cast(groups, tl.int64) * splits * columns
    tl.store(result + plane, m2, mask=column < columns)


@triton.jit
def normalise_kernel(
    x,
    y,
    partials,
    mean,
    invstd,
    running_mean,
    running_var,
    weight,
    bias,
    rows,
    columns,
    channels,
    splits,
    rows_per_split,
    column_blocks,
    groups,
    momentum,
    eps,
    negative_slope,
    ACTIVATION: tl.constexpr,
    TRAINING: tl.constexpr,
    FOLD: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_S: tl.constexpr,
):
    """One program: normalises and activates one range of rows of one group, BLOCK_C columns wide.

        partials [splits·FOLD, BLOCK_C] ─merge─► mean, invstd          BLOCK_C
                                                    │                ┌───────┐ ┐
        x tile ─► (x − mean)·invstd·weight + bias ◄─┘ ─► act ─► y    │   ↑   │ │ BLOCK_R
                                                                     └───────┘ ┘
    Grid: (groups · splits · column_blocks,), walked backwards, so that the rows read last by the
    first pass are read first. The program of a group's first range writes its statistics; that of
    the very first range advances the running statistics by every group in order. Masks: rows
    beyond the range, columns beyond the tensor.

    Args:
        x, y: [groups·rows, columns] (folded); y has x's dtype.
        partials: [2, groups, splits, columns] float32 from partial_statistics_kernel; None in
            inference.
        mean, invstd: [groups, channels] float32, written; None in inference.
        running_mean, running_var: [channels]; in training advanced or None, in inference read.
        weight, bias: [channels] or None.
        TRAINING: statistics come from partials, else from running_mean and running_var.
        FOLD: rows that count as one; columns = FOLD · channels.
        BLOCK_S: partial results merged at a time.
    """
    program = tl.num_programs(0) - 1 - tl.program_id(0)
    slot, group, start, length = range_of(program, rows, splits, rows_per_split, column_blocks)
    column = (program % column_blocks) * BLOCK_C + tl.arange(0, BLOCK_C)
    row = tl.arange(0, BLOCK_R)
    channel = column % channels if FOLD > 1 else column
    scale, shift = parameters(weight, bias, channel, channels)
    if TRAINING:
        count, centre, m2 = merge_group(
            partials, group, groups, splits, rows, rows_per_split, channel, channels, FOLD, BLOCK_S
        )
        centre += origin_of(x, group, rows, columns, channel, channels)
        inverse = 1.0 / tl.sqrt(m2 / count + eps)
        if slot % splits == 0:
            # Of FOLD equal copies of a channel the first writes.
            statistic = group * channels + column
            tl.store(mean + statistic, centre, mask=column < channels)
            tl.store(invstd + statistic, inverse, mask=column < channels)
        if slot == 0:
            for each in range(groups):
                count, fresh, m2 = merge_group(
                    partials, each, groups, splits, rows, rows_per_split, channel, channels,
                    FOLD, BLOCK_S,
                )  # fmt: skip
                fresh += origin_of(x, each, rows, columns, column, channels)
                if running_mean is not None:
                    _advance(running_mean, fresh, column, channels, momentum)
                if running_var is not None:
                    _advance(running_var, m2 / (count - 1.0), column, channels, momentum)
    else:
        known = channel < channels
        centre = tl.load(running_mean + channel, mask=known, other=0.0).to(tl.float32)
        variance = tl.load(running_var + channel, mask=known, other=1.0).to(tl.float32)
        inverse = 1.0 / tl.sqrt(variance + eps)

    scale = inverse * scale
    offset = (group * rows + start) * columns
    within = row[:, None] * columns + column[None, :]
    for first in range(0, length, BLOCK_R):
        inside = (first + row[:, None] < length) & (column[None, :] < columns)
        moved = offset + tl.cast(first, tl.int64) * columns
        value = tl.load(x + moved + within, mask=inside, other=0.0).to(tl.float32)
        z = (value - centre[None, :]) * scale[None, :] + shift[None, :]
        z = activate(z, negative_slope, ACTIVATION)
        tl.store(y + moved + within, z.to(y.dtype.element_ty), mask=inside)


def forward_training(
    x: torch.Tensor,
    running_mean: torch.Tensor | None,
    running_var: torch.Tensor | None,
    weight: torch.Tensor | None,
    bias: torch.Tensor | None,
    *,
    momentum: float,
    eps: float,
    activation: str,
    negative_slope: float,
    stat_groups: int,
    variant: str | None = None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Normalises by the statistics of each group of the batch, then activates.

    Args:
        x: [N, C, ...] dense channels_last, float32, bfloat16 or float16; N is a multiple of
            stat_groups.
        running_mean, running_var: [C] or None; advanced in place once a group, in order, the
            latter by the unbiased variance. An empty batch leaves them alone.
        weight, bias: [C] or None.
        momentum: share of the fresh statistics in the running ones.
        eps: added to the variance.
        activation: a name in `activation.ACTIVATIONS`.
        negative_slope: of leaky_relu.
        stat_groups: equal contiguous slices of the batch with statistics of their own.
        variant: "resident" or "two_pass" instead of the table's choice; resident needs a group
            that fits the tallest tile of the table.

    Returns:
        (y of x's shape, dtype and strides, mean[g, C] float32, invstd[g, C] float32); an empty
        batch gives zero statistics.
    """
    rows, channels = matrix_shape(x, stat_groups)
    y = torch.empty_like(x)
    mean = torch.empty((stat_groups, channels), dtype=torch.float32, device=x.device)
    invstd = torch.empty_like(mean)
    if x.numel() == 0:
        return y, mean.zero_(), invstd.zero_()
    table = TABLES[architecture_of(x.device)]
    tile = resident_tile(table.resident_forward[x.element_size()], rows, variant)
    with torch.cuda.device_of(x):
        if tile is not None:
            forward_resident_kernel[(triton.cdiv(channels, tile.columns),)](
                x, y, mean, invstd, running_mean, running_var, weight, bias,
                rows, channels, stat_groups, float(momentum), float(eps), float(negative_slope),
                ACTIVATION=activation, BLOCK_R=tile.rows, BLOCK_C=tile.columns,
                num_warps=tile.num_warps,
            )  # fmt: skip
            return y, mean, invstd
        plan = cut(table.streaming[x.element_size()], table.programs, rows, channels, stat_groups)
        partials = plan.partials(x, planes=2)
        partial_statistics_kernel[(plan.programs,)](
            x, partials, plan.rows, plan.columns, channels, plan.splits, plan.rows_per_split,
            plan.column_blocks, stat_groups,
            FOLD=plan.fold, BLOCK_R=plan.tile.rows, BLOCK_C=plan.tile.columns,
            num_warps=plan.tile.num_warps,
        )  # fmt: skip
        _normalise(
            plan, x, y, partials, mean, invstd, running_mean, running_var, weight, bias, channels,
            momentum, eps, activation, negative_slope,
        )  # fmt: skip
    return y, mean, invstd


def forward_inference(
    x: torch.Tensor,
    running_mean: torch.Tensor,
    running_var: torch.Tensor,
    weight: torch.Tensor | None,
    bias: torch.Tensor | None,
    *,
    eps: float,
    activation: str,
    negative_slope: float,
) -> torch.Tensor:
    """Normalises by the running statistics, then activates.

    Args:
        x: [N, C, ...] dense channels_last, float32, bfloat16 or float16.
        running_mean, running_var: [C].
        weight, bias: [C] or None.
        eps, activation, negative_slope: as `forward_training`.

    Returns:
        y, of x's shape, dtype and strides.
    """
    rows, channels = matrix_shape(x, 1)
    y = torch.empty_like(x)
    if x.numel() == 0:
        return y
    table = TABLES[architecture_of(x.device)]
    # Nothing is merged here, so more and shorter programs cost nothing.
    plan = cut(table.streaming[x.element_size()], 4 * table.programs, rows, channels, 1)
    with torch.cuda.device_of(x):
        _normalise(
            plan, x, y, None, None, None, running_mean, running_var, weight, bias, channels,
            0.0, eps, activation, negative_slope,
        )  # fmt: skip
    return y


def _normalise(
    plan: Cut,
    x: torch.Tensor,
    y: torch.Tensor,
    partials: torch.Tensor | None,
    mean: torch.Tensor | None,
    invstd: torch.Tensor | None,
    running_mean: torch.Tensor | None,
    running_var: torch.Tensor | None,
    weight: torch.Tensor | None,
    bias: torch.Tensor | None,
    channels: int,
    momentum: float,
    eps: float,
    activation: str,
    negative_slope: float,
) -> None:
    """Launches normalise_kernel; training if there are partial statistics."""
    normalise_kernel[(plan.programs,)](
        x, y, partials, mean, invstd, running_mean, running_var, weight, bias,
        plan.rows, plan.columns, channels, plan.splits, plan.rows_per_split, plan.column_blocks,
        plan.groups, float(momentum), float(eps), float(negative_slope),
        ACTIVATION=activation, TRAINING=partials is not None, FOLD=plan.fold,
        BLOCK_R=plan.tile.rows, BLOCK_C=plan.tile.columns, BLOCK_S=BLOCK_S,
        num_warps=plan.tile.num_warps,
    )  # fmt: skip
