"""Tensors to try the elementwise kernels on, poisoned buffers, and torch's activations."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
SLOPE = 0.2

ACTIVATED: dict[str, Callable[[Tensor], Tensor]] = {
    "identity": lambda z: z,
    "relu": torch.relu,
    "leaky_relu": lambda z: F.leaky_relu(z, SLOPE),
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
}


def channels_last(shape: tuple[int, ...], dtype: torch.dtype, device: str, seed: int) -> Tensor:
    """Standard normal numbers, dense channels_last."""
    drawn = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    return drawn.to(device, dtype).contiguous(memory_format=torch.channels_last)


def channel_vector(channels: int, device: str, seed: int, dtype=torch.float32) -> Tensor:
    """Standard normal numbers, one a channel."""
    drawn = torch.randn(channels, generator=torch.Generator().manual_seed(seed))
    return drawn.to(device, dtype)


@contextmanager
def poisoned_buffers(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Fills every fresh buffer with NaN, so that an element nobody writes shows."""
    empty, empty_like = torch.empty, torch.empty_like
    with monkeypatch.context() as patch:
        patch.setattr(torch, "empty", lambda *args, **kw: empty(*args, **kw).fill_(math.nan))
        patch.setattr(torch, "empty_like", lambda x, **kw: empty_like(x, **kw).fill_(math.nan))
        yield
