"""What batch norm's kernels share: the tuning table and the merging of partial statistics.

Statistics are kept as (count, mean, M2), M2 being the sum of squared deviations from the mean, and
merged in a fixed order; E[x²] − E[x]² would lose every digit where the mean is large against the
spread.
"""

from __future__ import annotations

from dataclasses import dataclass

import triton
import triton.language as tl

from fastgan.kernels.architecture import ARCHITECTURES
from fastgan.kernels.channels_last import Tile

# Partial results that a program merges at a time.
BLOCK_S = 64


@dataclass(frozen=True)
class Table:
    """The tuning table of one architecture.

    Attributes:
        resident_forward, resident_backward: tiles of the one-pass kernels by bytes of an element,
            by rising height; a group with at most `rows` rows fits the tile. Taller groups take
            two passes. What bounds the height is registers: see `python -m bench resources`.
        streaming: tile of the two-pass kernels by bytes of an element.
        programs: programs of a pass over a tensor that has enough rows for them.
    """

    resident_forward: dict[int, tuple[Tile, ...]]
    resident_backward: dict[int, tuple[Tile, ...]]
    streaming: dict[int, Tile]
    programs: int


_LOW = (Tile(128, 32, 8), Tile(512, 16, 8), Tile(1024, 8, 8))
_RESIDENT_FORWARD = {2: (*_LOW, Tile(2048, 8, 16)), 4: (*_LOW, Tile(2048, 4, 8))}
_RESIDENT_BACKWARD = {2: (*_LOW, Tile(2048, 8, 8)), 4: (*_LOW, Tile(2048, 4, 8))}
# At least two 16-byte loads a thread in flight.
_STREAMING = {2: Tile(128, 64, 16), 4: Tile(256, 32, 16)}
_STREAMING_SM_80 = {2: Tile(64, 64, 8), 4: Tile(256, 32, 8)}


def _table(architecture: str, streaming: dict[int, Tile], programs_each: int) -> Table:
    programs = ARCHITECTURES[architecture].multiprocessors * programs_each
    return Table(_RESIDENT_FORWARD, _RESIDENT_BACKWARD, streaming, programs)


# Few large programs: each merges the partial results of all others that share its columns. sm_80
# takes twice as many of half the size, because ptxas makes 16 warps share registers with a second
# program there, and spills.
TABLES: dict[str, Table] = {
    "sm_80": _table("sm_80", _STREAMING_SM_80, 2),
    "sm_90": _table("sm_90", _STREAMING, 1),
    "sm_100": _table("sm_100", _STREAMING, 1),
    "gfx942": _table("gfx942", _STREAMING, 1),
}


def resident_tile(tiles: tuple[Tile, ...], rows: int, variant: str | None = None) -> Tile | None:
    """The smallest tile that holds a group of `rows` rows; None where two passes are to be made.

    Args:
        tiles: of the one-pass kernel, by rising height.
        rows: of a group.
        variant: "resident" or "two_pass" instead of the table's choice.

    Raises:
        ValueError: a resident kernel is wanted for a group that fits no tile.
    """
    tile = next((tile for tile in tiles if rows <= tile.rows), None)
    if variant == "resident" and tile is None:
        raise ValueError(f"variant='resident' cannot hold a group of {rows} rows")
    return None if variant == "two_pass" else tile


@triton.jit
def range_of(program, rows, splits, rows_per_split, column_blocks):
    """The range of rows that a program of a two-pass kernel works on (see channels_last).

    Returns:
        (slot, group, start, length): which range of all groups' it is, its group (int64), and its
        first row in the group (int64) and number of rows.
    """
    slot = program // column_blocks
    group = (slot // splits).to(tl.int64)
    start = (slot % splits).to(tl.int64) * rows_per_split
    return slot, group, start, tl.minimum(rows - start, rows_per_split).to(tl.int32)


@triton.jit
def parameters(weight, bias, channel, channels):
    """weight[C] and bias[C] of a block of channels as float32; 1 and 0 where there are none."""
    scale = tl.full(channel.shape, 1.0, tl.float32)
    shift = tl.zeros(channel.shape, tl.float32)
    if weight is not None:
        scale = tl.load(weight + channel, mask=channel < channels, other=0.0).to(tl.float32)
    if bias is not None:
        shift = tl.load(bias + channel, mask=channel < channels, other=0.0).to(tl.float32)
    return scale, shift


@triton.jit
def origin_of(x, group, rows, columns, channel, channels):
    """The first value of a block of channels in a group, float32; partial means are relative to it.

    A mean that is large against the spread then costs no digits.
    """
    first_row = x + tl.cast(group, tl.int64) * rows * columns
    return tl.load(first_row + channel, mask=channel < channels, other=0.0).to(tl.float32)


@triton.jit
def merge_rows(count, mean, m2):
    """Merges the rows of a tile of (count, mean, M2) into one row.

    Args:
        count: [R, 1] float32, values behind each row; a row may have none.
        mean, m2: [R, C] float32, their mean and their sum of squared deviations from it.

    Returns:
        (count, mean[C], M2[C]); with no value at all 0, 0, 0.
    """
    total = tl.sum(tl.sum(count, 1), 0)
    centre = tl.sum(count / tl.maximum(total, 1.0) * mean, 0)
    away = mean - centre[None, :]
    return total, centre, tl.sum(m2 + count * away * away, 0)


@triton.jit
def merge_two(count, mean, m2, other_count, other_mean, other_m2):
    """Merges two (count, mean[C], M2[C]) (Chan, Golub and LeVeque 1979)."""
    total = count + other_count
    away = other_mean - mean
    share = other_count / tl.maximum(total, 1.0)
    return total, mean + away * share, m2 + other_m2 + away * away * count * share


@triton.jit
def merge_group(
    partials,
    group,
    groups,
    splits,
    rows,
    rows_per_split,
    channel,
    channels,
    FOLD: tl.constexpr,
    BLOCK_S: tl.constexpr,
):
    """Mean and biased variance of one group, from the partial statistics of its splits.

    Args:
        partials: [2, groups, splits·FOLD, channels] float32: means, then M2.
        group: which group.
        channel: [C] the channels wanted; those not below `channels` give 0.
        rows, rows_per_split: of a group and of a split, folded rows.

    Returns:
        (values a channel, mean[C], M2[C]), float32.
    """
    entries = splits * FOLD
    plane = tl.cast(groups, tl.int64) * entries * channels
    base = partials + tl.cast(group, tl.int64) * entries * channels
    count = 0.0
    mean = tl.zeros_like(channel).to(tl.float32)
    m2 = tl.zeros_like(channel).to(tl.float32)
    for first in range(0, entries, BLOCK_S):
        entry = first + tl.arange(0, BLOCK_S)[:, None]
        values = tl.minimum(rows - (entry // FOLD) * rows_per_split, rows_per_split)
        values = tl.where(entry < entries, values, 0).to(tl.float32)
        inside = (entry < entries) & (channel[None, :] < channels)
        where = entry * channels + channel[None, :]
        tile_mean = tl.load(base + where, mask=inside, other=0.0)
        tile_m2 = tl.load(base + plane + where, mask=inside, other=0.0)
        tile_count, tile_mean, tile_m2 = merge_rows(values, tile_mean, tile_m2)
        count, mean, m2 = merge_two(count, mean, m2, tile_count, tile_mean, tile_m2)
    return count, mean, m2


@triton.jit
def sum_group(
    partials, group, splits, channel, channels, FOLD: tl.constexpr, BLOCK_S: tl.constexpr
):
    """Sum of one plane's partial sums of one group, in a fixed order.

    Args:
        partials: [groups, splits·FOLD, channels] float32.
        group: which group.
        channel: [C] the channels wanted; those not below `channels` give 0.

    Returns:
        [C] float32.
    """
    entries = splits * FOLD
    base = partials + tl.cast(group, tl.int64) * entries * channels
    total = tl.zeros_like(channel).to(tl.float32)
    for first in range(0, entries, BLOCK_S):
        entry = first + tl.arange(0, BLOCK_S)[:, None]
        inside = (entry < entries) & (channel[None, :] < channels)
        where = entry * channels + channel[None, :]
        total += tl.sum(tl.load(base + where, mask=inside, other=0.0), 0)
    return total
