"""What the tests of the native kernels draw, and how float64 torch answers."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
ACTIVATIONS = ("identity", "relu", "leaky_relu", "tanh", "sigmoid")
SLOPE = 0.2
#: Around the widths of vectors (4, 8, 16) and tiles (8, 16, 64), where masks begin and end.
CHANNELS = (1, 2, 3, 4, 5, 7, 8, 12, 15, 16, 17, 24, 31, 33, 48, 63, 64, 65, 96, 130)
MULTIPLY_ADDS = 400_000

U = torch.finfo(torch.float32).eps


@dataclass(frozen=True)
class Convolution:
    """big [n, b, *size] against weight [s, b, *kernel]."""

    n: int
    b: int
    s: int
    size: tuple[int, int]
    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]

    @property
    def small_size(self) -> tuple[int, int]:
        spans = zip(self.size, self.kernel, self.stride, self.padding, strict=True)
        h, w = ((size + 2 * pad - kernel) // step + 1 for size, kernel, step, pad in spans)
        return h, w

    @property
    def possible(self) -> bool:
        work = self.n * self.b * self.s * self.kernel[0] * self.kernel[1]
        small = self.small_size
        return min(small) >= 1 and work * small[0] * small[1] <= MULTIPLY_ADDS


channels = st.sampled_from(CHANNELS)


def pairs(least: int, most: int) -> st.SearchStrategy[tuple[int, int]]:
    return st.tuples(st.integers(least, most), st.integers(least, most))


convolutions = st.builds(
    Convolution,
    n=st.integers(1, 13),
    b=channels,
    s=channels,
    size=pairs(1, 9),
    kernel=pairs(1, 5),
    stride=pairs(1, 3),
    padding=pairs(0, 3),
).filter(lambda case: case.possible)


def dense(tensor: Tensor) -> Tensor:
    """The tensor in the kernels' memory format: channels_last where there are four dimensions."""
    return tensor.contiguous(memory_format=torch.channels_last) if tensor.dim() == 4 else tensor


def normal(shape: tuple[int, ...], dtype: torch.dtype, seed: int) -> Tensor:
    """Standard normal numbers, dense."""
    return dense(torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype))


def activated(z: Tensor, activation: str) -> Tensor:
    functions = {
        "identity": lambda x: x,
        "relu": torch.relu,
        "leaky_relu": lambda x: F.leaky_relu(x, SLOPE),
        "tanh": torch.tanh,
        "sigmoid": torch.sigmoid,
    }
    return functions[activation](z)


def activation_bound(y: Tensor, z_bound: Tensor, dtype: torch.dtype) -> Tensor:
    """Every activation has a slope of at most 1; y is rounded to its dtype at the end."""
    info = torch.finfo(dtype)
    return z_bound + (8 * U + info.eps) * y.abs() + info.smallest_normal
