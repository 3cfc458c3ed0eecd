"""Binary cross-entropy of probabilities, logarithms clamped at -100 as torch has it."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F


def binary_cross_entropy(probability: Tensor, target: Tensor) -> Tensor:
    """Return the mean binary cross-entropy of `probability` against `target`."""
    return F.binary_cross_entropy(probability, target)
