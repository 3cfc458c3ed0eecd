"""Batch normalisation, then an activation, in one pass: the twin of `F.batch_norm`."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from fastgan.ops.activations import activate, check_activation


def batch_norm_act(
    x: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
    activation: str = "identity",
    negative_slope: float = 0.01,
    stat_groups: int = 1,
) -> Tensor:
    """Normalise like `F.batch_norm`, a slice of the batch at a time, then activate."""
    check_activation(activation)
    if stat_groups < 1 or x.shape[0] % stat_groups:
        raise ValueError(f"stat_groups={stat_groups} must divide the batch, which is {x.shape[0]}")
    parts = [x] if stat_groups == 1 or not training else list(x.chunk(stat_groups))
    parts = [
        F.batch_norm(part, running_mean, running_var, weight, bias, training, momentum, eps)
        for part in parts
    ]
    y = parts[0] if len(parts) == 1 else torch.cat(parts)
    return activate(y, activation, negative_slope)
