"""What the property tests of the operators draw: geometries, layouts, dtypes; and tensors of them.

A case is small on purpose (`MULTIPLY_ADDS` bounds a convolution), so that hundreds run in seconds,
also in Triton's interpreter; what it varies is everything that a kernel could get wrong.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import pytest
import torch
from hypothesis import strategies as st
from torch import Tensor

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
ACTIVATIONS = ["identity", "relu", "leaky_relu", "tanh", "sigmoid"]
LAYOUTS = [
    "contiguous",
    "channels_last",
    "transposed",
    "sliced",
    "sliced_channels_last",
    "expanded",
]
MULTIPLY_ADDS = 60_000

#: Around the widths of tiles and vectors, where masks begin and end.
CHANNELS = [1, 2, 3, 4, 5, 7, 8, 15, 16, 17, 24, 31, 32, 33, 63, 64, 65, 100, 127, 128, 129, 130]

pairs_of = st.tuples
seeds = st.integers(0, 2**31 - 1)
dtypes = st.sampled_from(DTYPES)
layouts = st.sampled_from(LAYOUTS)
activations = st.sampled_from(ACTIVATIONS)
slopes = st.sampled_from([0.2, 0.01, 0.0])


@dataclass(frozen=True)
class Geometry:
    """A convolution between a big and a small side; serves both directions."""

    batch: int
    big_channels: int
    small_channels: int
    small: tuple[int, int]
    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]
    output_padding: tuple[int, int]

    @property
    def big(self) -> tuple[int, int]:
        h, w = (
            (n - 1) * s - 2 * p + k + e
            for n, s, p, k, e in zip(
                self.small,
                self.stride,
                self.padding,
                self.kernel,
                self.output_padding,
                strict=True,
            )
        )
        return h, w

    @property
    def big_shape(self) -> tuple[int, ...]:
        return (self.batch, self.big_channels, *self.big)

    @property
    def small_shape(self) -> tuple[int, ...]:
        return (self.batch, self.small_channels, *self.small)

    @property
    def weight_shape(self) -> tuple[int, ...]:
        return (self.small_channels, self.big_channels, *self.kernel)


def _channels(limit: int) -> st.SearchStrategy[int]:
    return st.sampled_from([c for c in CHANNELS if c <= max(limit, 1)])


@st.composite
def geometries(draw: st.DrawFn, multiply_adds: int = MULTIPLY_ADDS) -> Geometry:
    """Strides 1 to 4, kernels 1 to 7, any padding that leaves an image, batch 0 to 5."""
    kernel = draw(pairs_of(st.integers(1, 7), st.integers(1, 7)))
    stride = draw(pairs_of(st.integers(1, 4), st.integers(1, 4)))
    small, padding, extra = [], [], []
    for k, s in zip(kernel, stride, strict=True):
        n = draw(st.integers(1, 6))
        e = draw(st.integers(0, s - 1))
        room = (n - 1) * s + k + e - 1  # at least one pixel must be left
        small.append(n)
        extra.append(e)
        padding.append(draw(st.integers(0, min(room // 2, k))))
    batch = draw(st.integers(0, 5))
    one_channel = max(batch, 1) * small[0] * small[1] * kernel[0] * kernel[1]
    small_channels = draw(_channels(multiply_adds // one_channel))
    big_channels = draw(_channels(multiply_adds // (one_channel * small_channels)))
    if draw(st.booleans()):
        small_channels, big_channels = big_channels, small_channels
    return Geometry(
        batch,
        big_channels,
        small_channels,
        (small[0], small[1]),
        kernel,
        stride,
        (padding[0], padding[1]),
        (extra[0], extra[1]),
    )


@st.composite
def maps(draw: st.DrawFn, elements: int = 6_000) -> tuple[int, int, int, int]:
    """Shapes [N, C, H, W] of feature maps, odd sizes and empty batches among them."""
    h, w = draw(st.integers(1, 9)), draw(st.integers(1, 9))
    batch = draw(st.integers(0, 5))
    return (batch, draw(_channels(elements // (max(batch, 1) * h * w))), h, w)


def normal(
    shape: tuple[int, ...], layout: str, dtype: torch.dtype, seed: int, device: str
) -> Tensor:
    """A tensor of standard normal numbers, [N, C, H, W], lying in memory as `layout` says.

    "expanded" has stride 0 along N, H and W, as the gradient of a sum has.
    """
    generator = torch.Generator().manual_seed(seed)

    def random(*sizes: int) -> Tensor:
        return torch.randn(sizes, generator=generator).to(device, dtype)

    n, c, h, w = shape
    if layout == "channels_last":
        return random(n, h, w, c).permute(0, 3, 1, 2)
    if layout == "transposed":
        return random(w, n, h, c).permute(1, 3, 2, 0)
    if layout == "sliced":
        return random(n, c + 1, h + 2, 2 * w)[:, 1:, 1:-1, ::2]
    if layout == "sliced_channels_last":
        return random(n, h + 1, w, c + 3).permute(0, 3, 1, 2)[:, 3:, 1:]
    if layout == "expanded":
        return random(1, c, 1, 1).expand(n, c, h, w)
    return random(n, c, h, w)


@contextmanager
def poisoned() -> Iterator[None]:
    """Fill every fresh buffer with NaN, so that an element that nobody writes shows."""
    before = torch.are_deterministic_algorithms_enabled()
    warned = torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        assert torch.utils.deterministic.fill_uninitialized_memory
        yield
    finally:
        torch.use_deterministic_algorithms(before, warn_only=warned)


def memory_format(tensor: Tensor) -> str:
    """What torch would take the layout for, sizes of 1 aside."""
    if tensor.is_contiguous():
        return "contiguous"
    is_last = tensor.is_contiguous(memory_format=torch.channels_last)
    return "channels_last" if is_last else "neither"
