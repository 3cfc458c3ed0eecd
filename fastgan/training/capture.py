"""One training step as one graph: plan, warm-up, capture and replay.

A CUDA graph records the kernels of a program once and launches them all together ever after. That
asks three things of the program. It works in place on memory that stays where it is; it never
reads a value back to the host; and whatever the rehearsals before the recording change is put
back. `CapturedProgram` sees to these, and knows nothing of CUDA: the graph itself comes from a
`GraphEngine`, so that the protocol is tested on machines without a GPU.

    rehearse (lazy state appears) → restore → record → restore → replay, replay, replay …
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Protocol

import torch
from torch import Tensor

REHEARSALS = 3  # cuBLAS handles, compiled kernels and the optimizers' state all exist by then


class CaptureError(RuntimeError):
    """A program cannot be recorded; whatever the attempt changed has been put back."""


class Graph(Protocol):
    """A recorded program."""

    def replay(self) -> None:
        """Run what was recorded, on the memory it was recorded on."""


class GraphEngine(Protocol):
    """Records programs; `CudaGraphs` on a GPU, a recording stand-in in tests."""

    def rehearse(self, program: Callable[[], None]) -> None:
        """Run the program once as it is, where a capture allows it."""

    def record(self, program: Callable[[], None], generators: Sequence[torch.Generator]) -> Graph:
        """Record the program; `generators` are those that it draws from."""


class CudaGraphs:
    """The engine of a CUDA device."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.stream = torch.cuda.Stream(device)

    def rehearse(self, program: Callable[[], None]) -> None:
        current = torch.cuda.current_stream(self.device)
        self.stream.wait_stream(current)
        with torch.cuda.stream(self.stream):
            program()
        current.wait_stream(self.stream)

    def record(
        self, program: Callable[[], None], generators: Sequence[torch.Generator]
    ) -> torch.cuda.CUDAGraph:
        graph = torch.cuda.CUDAGraph()
        default = torch.cuda.default_generators[self.device.index or 0]
        for generator in generators:
            if generator is not default:  # the default one is registered by the capture
                graph.register_generator_state(generator)
        with torch.cuda.graph(graph, stream=self.stream):
            program()
        return graph


class Snapshot:
    """A copy of everything that a program changes: tensors, and the state of its generators.

    Args:
        tensors: the tensors now; the same call after the program has run may give more.
        generators: the generators that the program draws from.
    """

    def __init__(
        self, tensors: Iterable[Tensor], generators: Sequence[torch.Generator] = ()
    ) -> None:
        # Known by their memory: `state_dict()` makes a new alias of a tensor on every call. The
        # tensors are kept, so that the memory cannot become another's.
        self._copies = {_memory(tensor): (tensor, tensor.detach().clone()) for tensor in tensors}
        self._generators = [(generator, generator.get_state()) for generator in generators]

    @torch.no_grad()
    def restore(self, tensors: Iterable[Tensor]) -> None:
        """Put everything back in place.

        A tensor of `tensors` that the snapshot does not know was made since then: it is an
        optimizer's fresh state, which starts from zero (moments, step counts), and is zeroed.
        """
        for tensor in tensors:
            if _memory(tensor) in self._copies:
                tensor.copy_(self._copies[_memory(tensor)][1])
            else:
                tensor.zero_()
        for generator, state in self._generators:
            generator.set_state(state)


def _memory(tensor: Tensor) -> tuple[int, tuple[int, ...], tuple[int, ...]]:
    return tensor.data_ptr(), tuple(tensor.shape), tensor.stride()


class CapturedProgram:
    """A program recorded once, replayed on each call.

    Args:
        program: takes nothing, returns nothing: it reads and writes tensors that stay in place.
        state: the tensors that the program changes and that must survive the rehearsals; called
            again whenever needed, since an optimizer makes its state on first use.
        engine: records and replays.
        generators: those that the program draws from.

    Raises:
        CaptureError: the program does something that the engine cannot record.
    """

    def __init__(
        self,
        program: Callable[[], None],
        state: Callable[[], Iterable[Tensor]],
        engine: GraphEngine,
        generators: Sequence[torch.Generator] = (),
    ) -> None:
        before = Snapshot(state(), generators)
        try:
            for _ in range(REHEARSALS):
                engine.rehearse(program)
            before.restore(state())
            self._graph = engine.record(program, generators)
        except RuntimeError as error:
            raise CaptureError(" ".join(str(error).split())[:200]) from error
        finally:
            # An engine may run what it records; CUDA's does not, and then this changes nothing.
            before.restore(state())

    def __call__(self) -> None:
        self._graph.replay()
