"""What the native kernels of the fused convolution + batch norm + activation block hand on.

`conv -> statistics in the epilogue -> normalise and activate in the next convolution's prologue`: a
convolution fills a `Statistics`, `coefficients` makes of it what batch norm's backward keeps and
the `Prologue` that the next convolution (and its weight gradient) reads its input through. The
normalised activation is never stored.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Statistics:
    """Statistics of a convolution's result as stored, rounded to its dtype, filled by the kernel.

    Attributes:
        mean: [stat_groups, C], float32: the mean of each channel in each of `stat_groups` equal
            contiguous slices of the batch.
        m2: [stat_groups, C], float32: sum((x - mean)^2), rows times the biased variance.
    """

    mean: Tensor
    m2: Tensor

    @classmethod
    def empty(cls, stat_groups: int, channels: int) -> Statistics:
        """Return room for the statistics of a result of `channels` channels."""
        mean = torch.empty((stat_groups, channels), dtype=torch.float32)
        return cls(mean, torch.empty_like(mean))


@dataclass(frozen=True)
class Prologue:
    """How a convolution reads its input x: as act(scale * x + shift), rounded to x's dtype.

    Padding is zero after the activation.

    Attributes:
        scale, shift: [stat_groups, C], contiguous float32; each slice of the batch has its own.
        activation, negative_slope: as in `fastgan.ops.batch_norm_act`.
    """

    scale: Tensor
    shift: Tensor
    activation: str = "identity"
    negative_slope: float = 0.01
