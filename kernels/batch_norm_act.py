"""Batch norm + activation on channels_last tensors: the launchers.

`forward_training`, `forward_inference` and `backward` are written beside their kernels; this file
is where callers find them, and lists the specializations that are shipped.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from fastgan.kernels.batch_norm_act_backward import (
    backward,
    backward_resident_kernel,
    input_gradient_kernel,
    partial_gradients_kernel,
)
from fastgan.kernels.batch_norm_act_forward import (
    forward_inference,
    forward_resident_kernel,
    forward_training,
    normalise_kernel,
    partial_statistics_kernel,
)
from fastgan.kernels.batch_norm_act_statistics import BLOCK_S, TABLES
from fastgan.kernels.channels_last import Tile
from fastgan.kernels.compilation import KernelVariant

__all__ = ["backward", "forward_inference", "forward_training", "variants"]

# Types of the kernels' arguments that are not constants; "data" is the tensors' dtype.
_TYPES: dict[str, str] = {
    **dict.fromkeys(("x", "y", "grad_y", "grad_x"), "data"),
    **dict.fromkeys(("weight", "bias", "running_mean", "running_var"), "*fp32"),
    **dict.fromkeys(("mean", "invstd", "partials", "grad_weight", "grad_bias"), "*fp32"),
    **dict.fromkeys(("momentum", "eps", "negative_slope"), "fp32"),
    **dict.fromkeys(("rows", "splits", "column_blocks", "groups"), "i32"),
    **dict.fromkeys(("columns", "channels", "rows_per_split"), "i32:16"),
}


def _variant(
    architecture: str, kernel: Any, dtype: str, tile: Tile, **constants: object
) -> KernelVariant:
    """One specialization; arguments that are not in `constants` have the types of `_TYPES`."""
    constants |= {"BLOCK_R": tile.rows, "BLOCK_C": tile.columns}
    types = {name: _TYPES[name] for name in kernel.arg_names if name not in constants}
    shape = f"{tile.rows}x{tile.columns}"
    told = [shape, dtype, *(f"{key.lower()} {value}" for key, value in constants.items()
                            if key in ("ACTIVATION", "FOLD", "TRAINING"))]  # fmt: skip
    return KernelVariant(
        kernel=kernel,
        name=f"batch_norm_act_{kernel.__name__}[{', '.join(told)}]",
        signature={name: f"*{dtype}" if kind == "data" else kind for name, kind in types.items()},
        constants=constants,
        num_warps=tile.num_warps,
        num_stages=2,
        architectures=(architecture,),
        load_bytes=16,
    )


def variants(architecture: str) -> Iterator[KernelVariant]:
    """Every tile of the architecture's table, in bfloat16 and float32, relu or leaky_relu."""
    table = TABLES[architecture]
    for dtype, size in (("bf16", 2), ("fp32", 4)):
        for tile in table.resident_forward[size]:
            yield _variant(architecture, forward_resident_kernel, dtype, tile, ACTIVATION="relu")
        for tile in table.resident_backward[size]:
            yield _variant(
                architecture, backward_resident_kernel, dtype, tile, ACTIVATION="leaky_relu"
            )
        tile = table.streaming[size]
        for fold in (1, 2):
            yield _variant(architecture, partial_statistics_kernel, dtype, tile, FOLD=fold)
            yield _variant(
                architecture, normalise_kernel, dtype, tile,
                ACTIVATION="relu", TRAINING=True, FOLD=fold, BLOCK_S=BLOCK_S,
            )  # fmt: skip
            yield _variant(
                architecture, partial_gradients_kernel, dtype, tile,
                ACTIVATION="leaky_relu", FOLD=fold, grad_x=None,
            )  # fmt: skip
            yield _variant(
                architecture, input_gradient_kernel, dtype, tile,
                ACTIVATION="leaky_relu", FOLD=fold, BLOCK_S=BLOCK_S,
            )  # fmt: skip
        yield _variant(
            architecture, normalise_kernel, dtype, tile,
            ACTIVATION="tanh", TRAINING=False, FOLD=1, BLOCK_S=BLOCK_S,
            partials=None, mean=None, invstd=None,
        )  # fmt: skip
