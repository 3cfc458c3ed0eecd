"""How large one side of a convolution is, given the other: what every floor above must agree on."""

from __future__ import annotations

from typing import Any

from torch import Tensor

Pair = tuple[int, int]


def small_size(big: Any, kernel: Any, stride: Any, padding: Any) -> Pair:
    """Return the small side's (height, width): floor((big + 2 p - k) / s) + 1."""
    return (
        (big[0] + 2 * padding[0] - kernel[0]) // stride[0] + 1,
        (big[1] + 2 * padding[1] - kernel[1]) // stride[1] + 1,
    )


def smallest_big_size(small: Any, kernel: Any, stride: Any, padding: Any) -> Pair:
    """Return the least (height, width) that gives the small side: (small - 1) s - 2 p + k."""
    return (
        (small[0] - 1) * stride[0] - 2 * padding[0] + kernel[0],
        (small[1] - 1) * stride[1] - 2 * padding[1] + kernel[1],
    )


def fprop_shape(
    big: Tensor, weight: Tensor, stride: Any, padding: Any
) -> tuple[int, int, int, int]:
    """Return the shape [N, S, OH, OW] of what fprop makes of big and weight."""
    size = small_size(big.shape[2:], weight.shape[2:], stride, padding)
    return (big.shape[0], weight.shape[0], *size)
