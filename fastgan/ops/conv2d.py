"""Two-dimensional convolution with an optional activation: the twin of `F.conv2d`."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor
from torch.nn import functional as F

from fastgan.ops.activations import activate, check_activation

Pair = int | Sequence[int]


def conv2d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Pair = 1,
    padding: Pair | str = 0,
    dilation: Pair = 1,
    groups: int = 1,
    *,
    activation: str = "identity",
    negative_slope: float = 0.01,
) -> Tensor:
    """Convolve like `F.conv2d`, then activate."""
    check_activation(activation)
    y = F.conv2d(x, weight, bias, stride, padding, dilation, groups)  # type: ignore[arg-type]
    return activate(y, activation, negative_slope)
