"""Binary cross-entropy of probabilities against targets: the twin of `F.binary_cross_entropy`.

    loss = mean of -y log(p) - (1 - y) log(1 - p), each logarithm clamped at -100

The loss of a discriminator that ends in a sigmoid. With one target for all elements,
`discriminator_loss(..., objective="bce")` computes the same without a tensor of targets, and in one
launch; this is the twin for models that bring targets of their own, and torch computes it.
"""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from fastgan.ops.implementations import (
    Choice,
    Implementation,
    always,
    cached_choice,
    forced_backend,
)

IMPLEMENTATIONS = (
    Implementation("reference", always, always, {"forward": F.binary_cross_entropy}),
)


def binary_cross_entropy(probability: Tensor, target: Tensor) -> Tensor:
    """Return the mean binary cross-entropy.

    Args:
        probability: in [0, 1], any shape and floating dtype.
        target: of the same shape and dtype, in [0, 1].

    Returns:
        A scalar of the input's dtype.

    Raises:
        RuntimeError, ValueError: torch's own, for values outside [0, 1] and shapes that differ.
        BackendError: a backend other than the reference is insisted on.
    """
    if forced_backend() is not None:
        choice(probability, target)
    return F.binary_cross_entropy(probability, target)


def choice(probability: Tensor, target: Tensor) -> Choice:
    """Return what would serve `binary_cross_entropy` with these arguments."""
    return cached_choice("binary_cross_entropy", IMPLEMENTATIONS, None)
