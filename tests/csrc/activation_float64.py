"""The activations and their derivatives in float64, for the tests of the CUDA kernels."""

from __future__ import annotations

import torch
from torch import Tensor


def activation_and_slope(name: str, z: Tensor, negative_slope: float) -> tuple[Tensor, Tensor]:
    """Return act(z) and act'(z); where z is 0 the derivative is the one that torch takes."""
    if name == "relu":
        return z.clamp(min=0), (z > 0).to(z.dtype)
    if name == "leaky_relu":
        slope = torch.where(z > 0, 1.0, negative_slope)
        return z * slope, slope
    if name == "tanh":
        return z.tanh(), 1 - z.tanh() ** 2
    if name == "sigmoid":
        return z.sigmoid(), z.sigmoid() * (1 - z.sigmoid())
    return z, torch.ones_like(z)
