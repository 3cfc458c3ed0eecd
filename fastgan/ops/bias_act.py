"""Bias along dimension 1, then an activation, in one pass."""

from __future__ import annotations

from torch import Tensor

from fastgan.ops.activations import activate, check_activation


def bias_act(
    x: Tensor,
    bias: Tensor | None = None,
    activation: str = "identity",
    negative_slope: float = 0.01,
) -> Tensor:
    """Add `bias` along dimension 1 and activate."""
    check_activation(activation)
    if bias is not None:
        x = x + bias.view(1, -1, *(1 for _ in range(x.dim() - 2)))
    return activate(x, activation, negative_slope)
