"""The specializations of the convolution kernels that ship, for ahead-of-time compilation.

Each kernel module lists its own (`variants`); this file spells out what they have in common: the
types that a launcher's arguments turn into.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from fastgan.kernels.compilation import KernelVariant
from fastgan.kernels.conv_tuning import ARITHMETICS, Configuration, configurations


def shipped(architecture: str, family: str) -> Iterator[tuple[str, Configuration]]:
    """Every (arithmetic, tile) that the table of an architecture lists for a kernel family."""
    for arithmetic in ARITHMETICS:
        for tile in configurations(architecture, family, arithmetic):
            yield arithmetic, tile


def specialization(
    kernel: Any,
    family: str,
    architecture: str,
    arithmetic: str,
    tile: Configuration,
    *,
    pointers: str,
    sizes: str,
    channels: str = "",
    vectors: str = "",
    even: str = "",
    image: str = "",
    half: str = "bf16",
    bias: bool | None = False,
    activation: str | None = "identity",
    wide: bool = False,
    load_bytes: int = 16,
    **constants: object,
) -> KernelVariant:
    """One specialization, on operands as `arithmetic` has them.

    Args:
        kernel, family, architecture, arithmetic, tile: what is compiled, and from which table.
        pointers: names of the arguments that point to operands and result, with spaces between.
        sizes: names of integers of unknown divisibility.
        channels: names of the integers that count channels; multiples of 16 where the arithmetic
            is aligned.
        image: name of the one channel count that is small, as of an image; never aligned.
        vectors, even: names of the alignment constants and of the "divides" flags.
        half: the 16-bit type of arithmetic "half".
        bias: whether there is a float32 bias; None if the kernel takes none.
        activation: of the epilogue; None if the kernel has none.
        wide: 64-bit offsets.
        load_bytes: the widest load promised of aligned channels.
        constants: the kernel's other constexpr arguments.
    """
    numerics, _, unaligned = arithmetic.partition("_")
    operand = half if numerics == "half" else "fp32"
    width = 1 if unaligned else 8 if numerics == "half" else 4
    signature = dict.fromkeys(pointers.split(), f"*{operand}")
    signature |= dict.fromkeys(sizes.split(), "i32")
    signature |= dict.fromkeys(channels.split(), "i32" if unaligned else "i32:16")
    settings: dict[str, object] = {**constants, "WIDE": wide}
    settings |= dict.fromkeys(vectors.split(), width) | dict.fromkeys(even.split(), not unaligned)
    if image:
        signature[image], settings[f"{image}_VECTOR"] = "i32", 1
    settings["PRECISION"] = "tf32" if numerics == "tf32" else "ieee"
    settings |= {"BLOCK_M": tile.rows, "BLOCK_N": tile.columns, "BLOCK_K": tile.depth}
    if activation is not None:
        settings["ACTIVATION"] = activation
        signature["negative_slope"] = "fp32"
    if bias:
        signature["bias_ptr"] = "*fp32"
    elif bias is not None:
        settings["bias_ptr"] = None
    traits = [operand if numerics == "half" else numerics, unaligned]
    traits += [f"bias + {activation}" if bias else "", "int64" if wide else ""]
    return KernelVariant(
        kernel=kernel,
        name=f"{family}[{', '.join(filter(None, [str(tile), *traits]))}]",
        signature=signature,
        constants=settings,
        num_warps=tile.warps,
        num_stages=tile.stages,
        architectures=(architecture,),
        matrix=numerics != "ieee",
        load_bytes=0 if unaligned or not channels else load_bytes,
    )
