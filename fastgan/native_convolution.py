"""Launchers of the native CPU convolutions; what `fastgan.native_kernels` says holds here too.

fprop, dgrad and wgrad between a big side [N, B, H, W] and a small side [N, S, OH, OW] take their
operands through a prologue and hand on statistics of their result (`fastgan.native_fusion`), and
make their sums by one of two algorithms.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fastgan.convolution_sizes import Pair, fprop_shape
from fastgan.native_fusion import Prologue, Statistics
from fastgan.native_kernels import ACTIVATIONS, operators, vector

#: In the order of `enum class Algorithm` (csrc/cpu/kernels.h): how a convolution's sums are made.
#: "direct" serves every call; "winograd", with 9 products where 16 are summed, serves what
#: `unsupported_by_winograd` has no objection to.
ALGORITHMS = {"direct": 0, "winograd": 1}


def unsupported_by_winograd(*, dtype: torch.dtype, kernel_size: Pair, stride: Pair) -> str | None:
    """Return why algorithm="winograd" cannot serve a convolution, or None.

    Neither a prologue nor statistics can be had with it.

    Float32 alone: its transformed operands rounded to 16 bits would be less exact than the data.
    """
    if (dtype, kernel_size, stride) == (torch.float32, (4, 4), (2, 2)):
        return None
    return "Winograd's tiles serve float32 with 4x4 kernels of stride 2 alone"


def _channels_last(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    return torch.empty(shape, dtype=dtype, memory_format=torch.channels_last)


def _fused(prologue: Prologue | None, statistics: Statistics | None) -> tuple[Any, ...]:
    """The operators' arguments for a prologue and statistics; none where there are neither."""
    if prologue is None and statistics is None:
        return ()
    read: tuple[Any, ...] = (None, None, 0, 0.0)
    if prologue is not None:
        read = (
            prologue.scale, prologue.shift,
            ACTIVATIONS[prologue.activation], prologue.negative_slope,
        )  # fmt: skip
    return read if statistics is None else (*read, statistics.mean, statistics.m2)


def fprop(
    big: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    stride: Pair,
    padding: Pair,
    activation: str = "identity",
    negative_slope: float = 0.01,
    prologue: Prologue | None = None,
    statistics: Statistics | None = None,
    algorithm: str = "direct",
) -> Tensor:
    """The convolution big -> small: `act(F.conv2d(big, weight, bias, stride, padding))`.

    Args:
        big: [N, B, H, W], dense channels_last.
        weight: [S, B, kh, kw] of big's dtype, dense channels_last (physically [S, kh, kw, B]).
        bias: [S] or None.
        stride, padding: (vertical, horizontal).
        activation, negative_slope: applied in the epilogue.
        prologue: how big is read; None: as it is.
        statistics: filled with those of the result; the activation must be "identity".
        algorithm: one of `ALGORITHMS`.

    Raises:
        RuntimeError: an argument does not fit (it is named), or the algorithm does not serve it.

    Returns:
        [N, S, OH, OW] of big's dtype, dense channels_last.
    """
    small = _channels_last(fprop_shape(big, weight, stride, padding), big.dtype)
    operators().fprop(
        big, weight, vector(bias), small, *stride, *padding,
        ACTIVATIONS[activation], negative_slope, *_fused(prologue, statistics),
        algorithm=ALGORITHMS[algorithm],
    )  # fmt: skip
    return small


def dgrad(
    small: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    big_size: Pair,
    stride: Pair,
    padding: Pair,
    activation: str = "identity",
    negative_slope: float = 0.01,
    prologue: Prologue | None = None,
    statistics: Statistics | None = None,
    algorithm: str = "direct",
) -> Tensor:
    """The transposed convolution small -> big; also fprop's gradient with respect to big.

    Args:
        small: [N, S, OH, OW], dense channels_last.
        weight: [S, B, kh, kw] of small's dtype, dense channels_last.
        bias: [B] or None.
        big_size: (H, W) of the result; output_padding is what it is larger than the least.
        prologue, statistics: as in `fprop`, of small and of the result.
        stride, padding, activation, negative_slope, algorithm: as in `fprop`.

    Returns:
        [N, B, H, W] of small's dtype, dense channels_last.

    Raises:
        RuntimeError: as `fprop`.
    """
    big = _channels_last((small.shape[0], weight.shape[1], *big_size), small.dtype)
    operators().dgrad(
        small, weight, vector(bias), big, *stride, *padding,
        ACTIVATIONS[activation], negative_slope, *_fused(prologue, statistics),
        algorithm=ALGORITHMS[algorithm],
    )  # fmt: skip
    return big


def wgrad(
    big: Tensor,
    small: Tensor,
    *,
    kernel_size: Pair,
    stride: Pair,
    padding: Pair,
    out_dtype: torch.dtype | None = None,
    big_prologue: Prologue | None = None,
    small_prologue: Prologue | None = None,
    algorithm: str = "direct",
) -> Tensor:
    """The weight gradient [S, B, kh, kw], dense channels_last, of both convolutions.

    Args:
        big: [N, B, H, W]; small: [N, S, OH, OW]; dense channels_last, of one dtype.
        kernel_size, stride, padding: (vertical, horizontal).
        out_dtype: of the result; None for big's.
        big_prologue, small_prologue: how the operands are read; one of them at most.
        algorithm: one of `ALGORITHMS`.

    Raises:
        ValueError: both have a prologue.
        RuntimeError: as `fprop`.
    """
    if big_prologue is not None and small_prologue is not None:
        raise ValueError("one of big_prologue and small_prologue must be None")
    weight = _channels_last((small.shape[1], big.shape[1], *kernel_size), out_dtype or big.dtype)
    fused: tuple[Any, ...] = ()
    if big_prologue is not None:
        scale, shift, *activation = _fused(big_prologue, None)
        fused = (scale, shift, None, None, *activation)
    elif small_prologue is not None:
        fused = (None, None, *_fused(small_prologue, None))
    operators().wgrad(
        big, small, weight, *stride, *padding, *fused, algorithm=ALGORITHMS[algorithm]
    )
    return weight
