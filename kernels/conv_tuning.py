"""Which tile a convolution kernel runs with: tables as data, and the arithmetic that chooses.

tuning/conv_<architecture>.json lists, for each kernel family and arithmetic, the tiles that ship.
All of them compile without spills and fit shared memory (checked ahead of time); which one serves
a call depends on its shape alone. `estimate` counts, in clock cycles, what a multiprocessor needs
for its share of the tiles: the whole waves that the grid makes, times the slower of the matrix
unit and the loads from L2. Large tiles load less for each multiply-add and win where there are
enough of them; small tiles win where a large one would leave multiprocessors without work.

The rates in the tables come from data sheets and the overheads from counting the instructions of
the compiled kernels; none is a measurement, and only their order matters.

With FASTGAN_AUTOTUNE=1 the best few by that estimate are timed instead (see conv_autotune).
"""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from fastgan.kernels import conv_autotune
from fastgan.kernels.architecture import ARCHITECTURES, architecture_of

# The keys of a family's tiles: 16-bit operands, float32 rounded to TF32, float32 as it is; and
# 16-bit operands whose channels are no multiple of 8, which come element by element through
# registers and leave less room for the accumulator.
ARITHMETICS = ("half", "half_unaligned", "tf32", "ieee")

# Largest tile, in elements of the accumulator, for calls with 64-bit offsets.
WIDE_AREA = 128 * 128


@dataclass(frozen=True)
class Configuration:
    """One tile: rows x columns of the product, `depth` of the reduction a step.

    Attributes:
        rows, columns, depth: BLOCK_M, BLOCK_N and BLOCK_K of the kernels.
        warps, stages: num_warps and num_stages of the launch.
    """

    rows: int
    columns: int
    depth: int
    warps: int
    stages: int

    @property
    def options(self) -> dict[str, int]:
        """What every kernel is launched with for this tile."""
        return {
            "BLOCK_M": self.rows,
            "BLOCK_N": self.columns,
            "BLOCK_K": self.depth,
            "num_warps": self.warps,
            "num_stages": self.stages,
        }

    def shared_memory(self, element_size: int) -> int:
        """Bytes of shared memory that the pipelined operand tiles occupy at most."""
        return self.stages * (self.rows + self.columns) * self.depth * element_size

    def __str__(self) -> str:
        return f"{self.rows}x{self.columns}x{self.depth}, {self.warps} warps, {self.stages} stages"


@dataclass(frozen=True)
class Problem:
    """The matrix product that a call amounts to.

    Attributes:
        family: the kernel, a key of the tuning tables.
        dtype: of the operands.
        numerics: "ieee" or "tf32" (of float32 operands).
        rows: rows of the product, for each phase (fprop and wgrad have one).
        columns: columns of the product.
        depth: length of the reduction for one tap.
        taps: taps, for each phase.
        reuse: how often successive taps read the same pixel, at most.
        aligned: rows of channels allow 16-byte loads.
        wide: offsets need 64 bits, whose registers a large accumulator would lack.
        splittable: the reduction may be divided among programs (wgrad).
    """

    family: str
    dtype: torch.dtype
    numerics: str
    rows: tuple[int, ...]
    columns: int
    depth: int
    taps: tuple[int, ...] = (1,)
    reuse: float = 1.0
    aligned: bool = True
    wide: bool = False
    splittable: bool = False

    @property
    def arithmetic(self) -> str:
        """The key of the tuning tables, one of `ARITHMETICS`."""
        if self.dtype == torch.float32:
            return self.numerics
        return "half" if self.aligned else "half_unaligned"


@dataclass(frozen=True)
class Chip:
    """The device that a call runs on: its tuning table and how much of everything it has."""

    architecture: str
    name: str
    multiprocessors: int
    shared_memory: int


@functools.cache
def chip_of(device: torch.device) -> Chip:
    """What is known of a device.

    A CPU (Triton's interpreter) has a table of its own and counts as two multiprocessors: it runs
    programs one by one, so few large tiles suit it, and two still split long reductions.
    """
    if device.type != "cuda":
        return Chip("interpreter", "interpreter", 2, 2**31)
    served_by = architecture_of(device)
    usual = ARCHITECTURES[served_by]
    found = torch.cuda.get_device_properties(device)
    # Smaller siblings of a data-centre part have its instructions but less shared memory.
    shared = getattr(found, "shared_memory_per_block_optin", usual.shared_memory)
    return Chip(
        served_by,
        found.name,
        found.multi_processor_count,
        min(shared, usual.shared_memory),
    )


@functools.cache
def tuning_table(name: str) -> dict[str, Any]:
    """The tuning table of an architecture, as its JSON file has it."""
    path = Path(__file__).parent / "tuning" / f"conv_{name}.json"
    return json.loads(path.read_text(encoding="utf-8"))


@functools.cache
def configurations(name: str, family: str, arithmetic: str) -> tuple[Configuration, ...]:
    """The tiles that ship for a kernel family, in the order of preference among equals.

    Args:
        name: the architecture, such as "sm_90".
        family: "fprop", "dgrad", "wgrad", "fprop_image", "dgrad_image" or "wgrad_image".
        arithmetic: one of `ARITHMETICS`.
    """
    return tuple(Configuration(*row) for row in tuning_table(name)["tiles"][family][arithmetic])


@functools.lru_cache(maxsize=4096)
def estimate(problem: Problem, tile: Configuration, chip: Chip) -> tuple[float, int]:
    """Clock cycles that a call takes with a tile, and the splits of its reduction.

    Args:
        problem: the matrix product.
        tile: the configuration.
        chip: the device.

    Returns:
        Cycles by the model above (comparable with each other, not with a clock), and the number
        of programs that share one tile's reduction (1 unless the problem is splittable).
    """
    limits = tuning_table(chip.architecture)
    size = problem.dtype.itemsize
    bandwidth = limits["bytes_per_clock"]
    rate = limits["macs_per_clock"][problem.arithmetic.partition("_")[0]]
    multiply = tile.rows * tile.columns * tile.depth / rate
    # Rows are pixels: some of the repeated reads of neighbouring taps are served by L1.
    rows_from_l2 = tile.rows / max(1.0, min(problem.reuse, limits["served_by_l1"]))
    load = (rows_from_l2 + tile.columns) * tile.depth * size / bandwidth
    column_tiles = math.ceil(problem.columns / tile.columns)
    tiles = [math.ceil(rows / tile.rows) * column_tiles for rows in problem.rows]
    steps_of_tap = math.ceil(problem.depth / tile.depth)
    steps = sum(n * taps for n, taps in zip(tiles, problem.taps, strict=True)) * steps_of_tap
    count = max(sum(tiles), 1)
    steps_of_tile = steps / count
    store = tile.rows * tile.columns * size / bandwidth
    fixed = limits["cycles_per_tile"] + store

    # Programs that share a multiprocessor hide each other's first loads and last stores.
    residents = min(
        limits["shared_memory"] // (tile.shared_memory(size) + 1024),
        limits["registers"] // (tile.rows * tile.columns + 64 * 32 * tile.warps),
    )

    def cycles(splits: int) -> float:
        share = math.ceil(count * splits / chip.multiprocessors)
        waves = math.ceil(share / max(residents, 1))
        steps_of_split = math.ceil(steps_of_tile / splits)
        total = share * steps_of_split * max(multiply, load) + waves * fixed
        if splits > 1:
            # Partial tiles are written and read once in float32, by all multiprocessors.
            partial = splits * sum(problem.rows) * problem.columns * 4
            total += 2 * partial / (bandwidth * chip.multiprocessors) + limits["cycles_per_launch"]
        return total

    if not problem.splittable:
        return cycles(1), 1
    fills = (max(1, waves * chip.multiprocessors // count) for waves in (1, 2, 3, 4))
    splits = min({1, *(min(n, math.ceil(steps_of_tile)) for n in fills)} - {0}, key=cycles)
    return cycles(splits), splits


@functools.lru_cache(maxsize=4096)
def ranked(problem: Problem, chip: Chip) -> tuple[Configuration, ...]:
    """The shipped tiles that fit the device, best estimate first."""
    fitting = [
        tile
        for tile in configurations(chip.architecture, problem.family, problem.arithmetic)
        if tile.shared_memory(problem.dtype.itemsize) <= chip.shared_memory
        and not (problem.wide and tile.rows * tile.columns > WIDE_AREA)
    ]
    return tuple(sorted(fitting, key=lambda tile: estimate(problem, tile, chip)[0]))


def select(
    problem: Problem, device: torch.device, run: Callable[[Configuration], None]
) -> Configuration:
    """The tile for a call.

    Args:
        problem: the matrix product.
        device: where it runs.
        run: launches the call with a tile; used only when autotuning is switched on.
    """
    chip = chip_of(device)
    candidates = ranked(problem, chip)
    if conv_autotune.enabled(device):
        return conv_autotune.fastest(f"{chip.name}|{problem}", candidates, run)
    return candidates[0]
