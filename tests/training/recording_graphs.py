"""A stand-in for CUDA graphs on the CPU: records operators, replays them on the same memory.

Like a CUDA graph, a replay runs no Python of the program: the recorded operators run again on the
recorded tensors, and each result is copied into the memory that it had when it was recorded. What
cannot be captured on a GPU (reading a value back to the host) fails here too.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

SYNCHRONISING = {
    torch.ops.aten._local_scalar_dense.default,
    torch.ops.aten.item.default,
    torch.ops.aten.nonzero.default,
    torch.ops.aten.equal.default,
}


class SynchronisingCallError(RuntimeError):
    """A value would be read back to the host."""


class _Recorder(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, tuple[Any, ...], dict[str, Any], list[Any]]] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func in SYNCHRONISING:
            raise SynchronisingCallError(f"{func} reads a value back to the host")
        result = func(*args, **(kwargs or {}))
        self.calls.append((func, args, kwargs or {}, tree_flatten(result)[0]))
        return result


class RecordedGraph:
    def __init__(self, calls: list[tuple[Any, tuple[Any, ...], dict[str, Any], list[Any]]]) -> None:
        self.calls = calls

    @torch.no_grad()
    def replay(self) -> None:
        for func, args, kwargs, recorded in self.calls:
            results = tree_flatten(func(*args, **kwargs))[0]
            for before, now in zip(recorded, results, strict=True):
                if isinstance(before, Tensor) and before.data_ptr() != now.data_ptr():
                    before.detach().copy_(now.detach())


class RecordingGraphs:
    """The engine of tests."""

    def __init__(self) -> None:
        self.rehearsals = 0

    def rehearse(self, program: Callable[[], None]) -> None:
        program()
        self.rehearsals += 1

    def record(
        self, program: Callable[[], None], generators: Sequence[torch.Generator]
    ) -> RecordedGraph:
        with _Recorder() as recorder:
            program()
        return RecordedGraph(recorder.calls)
