"""Transposed convolution with an optional activation: the twin of `F.conv_transpose2d`."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor
from torch.nn import functional as F

from fastgan.ops.activations import activate, check_activation

Pair = int | Sequence[int]


def conv_transpose2d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Pair = 1,
    padding: Pair = 0,
    output_padding: Pair = 0,
    groups: int = 1,
    dilation: Pair = 1,
    *,
    activation: str = "identity",
    negative_slope: float = 0.01,
) -> Tensor:
    """Convolve like `F.conv_transpose2d`, then activate."""
    check_activation(activation)
    y = F.conv_transpose2d(
        x,
        weight,
        bias,
        stride,
        padding,
        output_padding,
        groups,
        dilation,  # type: ignore[arg-type]
    )
    return activate(y, activation, negative_slope)
