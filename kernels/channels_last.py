"""How kernels over all pixels cut a channels_last tensor.

A channels_last tensor is a matrix [rows = N·H·W, channels]. A group is an equal contiguous range
of its rows; it is cut into `splits` ranges of rows and `column_blocks` blocks of columns, one
program each. A kernel that reduces over rows leaves one partial result a column and a program,
which the next kernel merges in a fixed order: no atomics, so results are bit-identical from run
to run.

A tensor with few channels would leave most lanes of a tile idle and break 16-byte accesses, so its
matrix is folded: `fold` neighbouring rows count as one row of fold·channels columns. Partial
results [groups, splits, fold·channels] are then, in memory, [groups, splits·fold, channels].
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton

# Partial results behind one channel: bounds the work of whoever merges them.
MAX_ENTRIES = 512


@dataclass(frozen=True)
class Tile:
    """The part of the matrix that one program holds at a time: BLOCK_R rows × BLOCK_C columns."""

    rows: int
    columns: int
    num_warps: int


@dataclass(frozen=True)
class Cut:
    """How the two-pass kernels cut a tensor.

    Attributes:
        tile: what a program holds at a time.
        groups: groups with statistics of their own.
        fold: neighbouring rows that count as one.
        rows: (folded) rows of a group.
        columns: (folded) columns: fold · channels.
        splits: ranges of rows in a group; none is empty.
        rows_per_split: rows of every range but the last, which may be shorter.
        column_blocks: blocks of tile.columns columns.
    """

    tile: Tile
    groups: int
    fold: int
    rows: int
    columns: int
    splits: int
    rows_per_split: int
    column_blocks: int

    @property
    def programs(self) -> int:
        return self.groups * self.splits * self.column_blocks

    def partials(self, x: torch.Tensor, planes: int) -> torch.Tensor:
        """A fresh buffer [planes, groups, splits, columns], float32, on x's device."""
        shape = (planes, self.groups, self.splits, self.columns)
        return torch.empty(shape, dtype=torch.float32, device=x.device)


def cut(tile: Tile, programs: int, rows: int, channels: int, groups: int) -> Cut:
    """Cuts groups of `rows` rows of `channels` channels; rows and channels are at least 1."""
    fold = 1
    while channels * fold < tile.columns or channels * fold % 16:
        fold *= 2
    if rows % fold:
        fold = 1
    columns, folded_rows = channels * fold, rows // fold
    column_blocks = triton.cdiv(columns, tile.columns)
    tiles = triton.cdiv(folded_rows, tile.rows)
    splits = min(max(1, programs // (column_blocks * groups)), tiles, max(1, MAX_ENTRIES // fold))
    rows_per_split = triton.cdiv(tiles, splits) * tile.rows
    return Cut(
        tile=tile,
        groups=groups,
        fold=fold,
        rows=folded_rows,
        columns=columns,
        splits=triton.cdiv(folded_rows, rows_per_split),
        rows_per_split=rows_per_split,
        column_blocks=column_blocks,
    )


def matrix_shape(x: torch.Tensor, groups: int) -> tuple[int, int]:
    """(rows of a group, channels) of a channels_last tensor [N, C, ...]."""
    channels = x.shape[1]
    return x.numel() // max(channels, 1) // groups, channels
