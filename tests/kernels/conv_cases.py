"""Convolutions to try the kernels on, and what float64 torch makes of them."""

from __future__ import annotations

import math
import os
import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICES = [
    pytest.param("cpu", marks=pytest.mark.skipif(not INTERPRETED, reason="kernels run on the GPU")),
    pytest.param("cuda", marks=pytest.mark.gpu),
]
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


@dataclass(frozen=True)
class Case:
    """A convolution from big [n, b, *size] to s channels."""

    n: int
    b: int
    size: tuple[int, int]
    s: int
    kernel: tuple[int, int]
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (0, 0)

    def __str__(self) -> str:
        parts = (self.n, self.b, *self.size, self.s), self.kernel, self.stride, self.padding
        return "-".join("x".join(map(str, part)) for part in parts)

    @property
    def small_size(self) -> tuple[int, int]:
        spans = zip(self.size, self.kernel, self.stride, self.padding, strict=True)
        h, w = ((size + 2 * pad - kernel) // stride + 1 for size, kernel, stride, pad in spans)
        return h, w

    def tensors(self, dtype: torch.dtype, device: str) -> tuple[torch.Tensor, ...]:
        """big, weight, small: channels_last, drawn from the case alone."""
        generator = torch.Generator().manual_seed(hash(self) % 2**31)
        shapes = (
            (self.n, self.b, *self.size),
            (self.s, self.b, *self.kernel),
            (self.n, self.s, *self.small_size),
        )
        drawn = (torch.randn(shape, generator=generator) for shape in shapes)
        return tuple(
            x.to(device, dtype).contiguous(memory_format=torch.channels_last) for x in drawn
        )


# What DCGAN, its relatives and the corners of the definition need, small enough to interpret.
NAMED = (
    Case(3, 16, (8, 8), 24, (4, 4), (2, 2), (1, 1)),  # a DCGAN layer
    Case(2, 3, (16, 16), 8, (4, 4), (2, 2), (1, 1)),  # from or to an RGB image
    Case(2, 1, (9, 7), 5, (5, 5), (1, 1), (2, 2)),  # greyscale, stride 1
    Case(1, 4, (7, 9), 6, (3, 3), (2, 3), (1, 0)),  # four channels, sizes no multiple of a stride
    Case(2, 10, (6, 6), 1, (5, 5), (1, 1), (2, 2)),  # to one channel
    Case(1, 20, (4, 4), 1, (4, 4)),  # a discriminator's head
    Case(2, 33, (1, 1), 17, (1, 1)),  # one pixel, one tap
    Case(1, 6, (9, 11), 7, (1, 2), (3, 4), (0, 1)),  # strides longer than the kernel
    Case(2, 2, (5, 6), 3, (2, 1), (4, 3)),  # the same onto an image
    Case(1, 5, (3, 4), 4, (2, 2), (1, 1), (3, 4)),  # padding beyond the kernel
    Case(1, 130, (3, 3), 9, (3, 3), (2, 2), (1, 1)),  # more channels than a block
    Case(1, 9, (3, 3), 130, (2, 3), (1, 2), (1, 1)),
    Case(5, 8, (10, 6), 8, (7, 5), (3, 2), (3, 2)),  # uneven phases
    Case(1, 3, (8, 5), 4, (3, 3), (4, 4), (1, 1)),  # image blocks larger than the narrowest tile
)


def drawn(count: int, seed: int) -> list[Case]:
    """Random geometries: strides 1 to 4, kernels 1 to 7, asymmetric, odd sizes and channels."""
    draw = random.Random(seed)
    cases: list[Case] = []
    while len(cases) < count:
        case = Case(
            n=draw.randint(1, 4),
            b=draw.choice((1, 2, 3, 4, 5, 8, 13, 16, 24, 40)),
            size=(draw.randint(1, 11), draw.randint(1, 11)),
            s=draw.choice((1, 2, 3, 4, 7, 8, 16, 19, 32)),
            kernel=(draw.randint(1, 7), draw.randint(1, 7)),
            stride=(draw.randint(1, 4), draw.randint(1, 4)),
            padding=(draw.randint(0, 4), draw.randint(0, 4)),
        )
        if min(case.small_size) >= 1:
            cases.append(case)
    return cases


def activated(x: torch.Tensor, activation: str, slope: float) -> torch.Tensor:
    functions = {
        "identity": lambda x: x,
        "relu": torch.relu,
        "leaky_relu": lambda x: F.leaky_relu(x, slope),
        "tanh": torch.tanh,
        "sigmoid": torch.sigmoid,
    }
    return functions[activation](x)


@contextmanager
def poisoned(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Fills every fresh buffer with NaN, so that an element nobody writes shows."""
    with monkeypatch.context() as patch:
        patch.setattr(torch, "empty", lambda size, **kw: torch.full(size, math.nan, **kw))
        yield
