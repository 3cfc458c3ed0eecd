"""Run a model and leave no trace: for looking at what a forward pass would do.

A forward pass in training mode moves running statistics, spectral norm's vectors, random number
generators. Here all of that happens to stand-ins: each buffer is replaced by a copy while the pass
runs, and the objects that were there are put back afterwards, untouched to the version counter, so
that not even an autograd graph that is waiting for its backward pass notices.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn


@contextmanager
def preserved(model: nn.Module) -> Iterator[None]:
    """Undo on exit whatever happens to the modules' attributes and buffers and to random numbers.

    Covers each module's `__dict__` (flags, buffers, tensors that a pre-hook assigns, hooks by way
    of their handles), the generators of torch on the CPU and on the model's devices, and Python's
    `random`. Parameters that a forward pass writes in place, and state kept elsewhere, are not
    covered.

    Args:
        model: the module about to be run; its parameters keep their identity meanwhile.
    """
    modules = list(model.modules())
    attributes = [dict(module.__dict__) for module in modules]
    tensors = [*model.parameters(), *model.buffers()]
    devices = {tensor.device.index for tensor in tensors if tensor.device.type == "cuda"}
    python_state = random.getstate()
    copies: dict[int, Tensor] = {}  # a buffer shared by two modules is shared meanwhile too
    with torch.random.fork_rng(devices=sorted(d for d in devices if d is not None)):
        for module in modules:
            module.__dict__["_buffers"] = {
                name: None if buffer is None else _copied(buffer, copies)
                for name, buffer in module._buffers.items()
            }
        try:
            yield
        finally:
            for module, before in zip(modules, attributes, strict=True):
                _reset(module.__dict__, before)
            random.setstate(python_state)


def _copied(buffer: Tensor, copies: dict[int, Tensor]) -> Tensor:
    if id(buffer) not in copies:
        copies[id(buffer)] = buffer.detach().clone()
    return copies[id(buffer)]


def _reset(attributes: dict[str, Any], before: dict[str, Any]) -> None:
    attributes.clear()
    attributes.update(before)
