"""Batch norms to try the kernels on: float64 torch's answers, and how far float32 may err."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from pixel_cases import channels_last
from tolerances import epsilon, smallest
from torch import Tensor

EPS, MOMENTUM = 1e-5, 0.1
U = epsilon(torch.float32)


@dataclass(frozen=True)
class Case:
    """x [n, c, h, w] in `groups` slices; `mean` and `spread` of its values."""

    n: int
    c: int
    h: int
    w: int
    groups: int = 1
    mean: float = 0.5
    spread: float = 1.5

    def __str__(self) -> str:
        return f"{self.n}x{self.c}x{self.h}x{self.w}, {self.groups} groups, mean {self.mean:g}"

    @property
    def rows(self) -> int:
        return self.n // self.groups * self.h * self.w

    def tensor(self, dtype: torch.dtype, device: str) -> Tensor:
        x = channels_last((self.n, self.c, self.h, self.w), torch.float32, "cpu", seed=self.c)
        return (x * self.spread + self.mean).to(device, dtype)


CASES = (
    Case(4, 16, 4, 4),  # the smallest DCGAN-like layer
    Case(4, 3, 5, 4, groups=2),  # folded: few channels
    Case(2, 1, 1, 1),  # two rows, one channel
    Case(3, 130, 1, 1, groups=1),  # more channels than a block, odd
    Case(6, 17, 3, 1, groups=3),
    Case(2, 64, 9, 7),  # a group higher than a tile
    Case(4, 48, 8, 8, groups=2),
    Case(1, 5, 40, 31),  # tall and odd: no folding possible
    Case(4, 24, 6, 6, groups=4),
)


@dataclass
class Exact:
    """Float64 torch's answer, and how far float32 arithmetic may be from it.

    With u the spacing of float32 near 1, a sum of n numbers errs by sqrt(n)·u of their magnitude
    and every further operation by u; `steps` counts them. The mean is stored in float32, so
    x − mean errs by u·|mean| however the mean was found: that is all that a large offset may cost.
    """

    x: Tensor
    groups: int
    weight: Tensor | None
    bias: Tensor | None

    def __post_init__(self) -> None:
        parts = self.x.double().reshape(self.groups, -1, *self.x.shape[1:])
        over = (1, 3, 4)
        self.rows = parts.numel() // (self.groups * parts.shape[2])
        self.steps = math.sqrt(self.rows) + 16
        self.mean = parts.mean(over)
        self.var = parts.var(over, unbiased=False)
        self.unbiased = parts.var(over, unbiased=True)
        self.invstd = 1 / (self.var + EPS).sqrt()
        self.reach = (parts - self.spread_out(self.mean)).abs().amax(over)

    def spread_out(self, statistic: Tensor) -> Tensor:
        """[groups, C] -> [groups, 1, C, 1, 1]."""
        return statistic[:, None, :, None, None]

    def everywhere(self, statistic: Tensor) -> Tensor:
        """[groups, C] -> x's shape."""
        part = (self.groups, self.x.shape[0] // self.groups, *self.x.shape[1:])
        return self.spread_out(statistic).expand(part).reshape(self.x.shape)

    @property
    def mean_error(self) -> Tensor:
        return U * self.mean.abs() + self.steps * U * self.reach

    @property
    def invstd_error(self) -> Tensor:
        return self.steps * U * self.invstd

    def normal_error(self, normal: Tensor) -> Tensor:
        scale = self.everywhere(self.invstd * self.mean_error)
        return scale + self.steps * U * normal.abs()

    def scales(self) -> tuple[Tensor, Tensor]:
        one = torch.ones(self.x.shape[1], dtype=torch.float64, device=self.x.device)
        weight = one if self.weight is None else self.weight.double()
        bias = 0 * one if self.bias is None else self.bias.double()
        return weight[:, None, None], bias[:, None, None]

    def z(self) -> tuple[Tensor, Tensor, Tensor]:
        """x̂, z, and the error that z may have."""
        weight, bias = self.scales()
        normal = (self.x.double() - self.everywhere(self.mean)) * self.everywhere(self.invstd)
        z = normal * weight + bias
        error = self.normal_error(normal) * weight.abs() + 4 * U * (z.abs() + bias.abs())
        return normal, z, error


def output_bound(y: Tensor, z_error: Tensor, dtype: torch.dtype) -> Tensor:
    """Every activation has a slope of at most 1; y is rounded to its dtype at the end."""
    return z_error + (8 * U + epsilon(dtype)) * y.abs() + smallest(dtype)
