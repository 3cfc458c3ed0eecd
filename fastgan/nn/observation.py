"""Watch a model while an example passes through it: which module is called where, with what.

`explain`'s eyes. A module may stand in several places under several names, so each call is told by
the container that makes it, not by the module alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from fastgan.nn.acceleration import TWINS, why_left_alone
from fastgan.nn.epilogue import epilogue_of
from fastgan.nn.sequential import FUSING, Sequential, why_not_fused

_FUSING_ORIGINALS = tuple(original for original, twin in TWINS.items() if twin in FUSING)


class Call(NamedTuple):
    """One call of one layer.

    Attributes:
        module: the layer.
        name: the name of the place from which it is called.
        args: its positional arguments.
        kwargs: its keyword arguments.
        left_alone: why no fastgan operator runs it, or None if one does or would.
        follower: the neighbour that is an activation, when the layer could apply one; or None.
        why_not_fused: why that neighbour runs on its own, or None if it does not.
        leader: for such a neighbour, the name of the layer before it; or "".
        why_not_led: why it runs on its own, or None if it does not.
    """

    module: nn.Module
    name: str
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    left_alone: str | None
    follower: nn.Module | None
    why_not_fused: str | None
    leader: str
    why_not_led: str | None

    @property
    def input(self) -> Tensor | None:
        """The first tensor among the arguments."""
        tensors = (x for x in (*self.args, *self.kwargs.values()) if isinstance(x, Tensor))
        return next(tensors, None)


def is_layer(module: nn.Module) -> bool:
    """True for what gets a line of its own: a layer with an operator, or a module without parts."""
    return isinstance(module, _FUSING_ORIGINALS) or next(module.children(), None) is None


def _left_alone(module: nn.Module) -> str | None:
    return None if isinstance(module, FUSING) else why_left_alone(module)


@dataclass
class _Frame:
    """A module that is running: where it stands, and the child that it called last."""

    module: nn.Module
    name: str
    cursor: int = -1


class Observer:
    """Calls `note` for every call of a layer of `model`, once `watch` has put its hooks there.

    Attributes:
        names: the modules that are watched, and the name by which each comes first.
    """

    def __init__(self, model: nn.Module, note: Callable[[Call], None]) -> None:
        self.note = note
        # Without what computes a parametrized weight: it is a part of its layer.
        self.names = {
            module: name
            for name, module in model.named_modules()
            if "parametrizations" not in name.split(".")
        }
        # Found out before the pass: our hooks are a reason not to fuse, and lazy layers change.
        self.left_alone = {module: _left_alone(module) for module in self.names}
        self.neighbours = dict(_neighbours(model))
        self.running: list[_Frame] = []

    def watch(self) -> list[Any]:
        """Put hooks on the modules; return their handles."""
        handles: list[Any] = []
        for module in self.names:
            if not isinstance(module, torch.jit.ScriptModule):
                handles.append(module.register_forward_pre_hook(self._enter, with_kwargs=True))
                handles.append(module.register_forward_hook(self._leave, prepend=True))
        return handles

    def _enter(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        container, position = self._place(module)
        name = self.names.get(module, "")
        leader = ""
        if container is not None:
            children = list(container.module._modules)
            name = _join(container.name, children[position])
            leader = _join(container.name, children[position - 1]) if position else ""
        self.running.append(_Frame(module, name))
        if is_layer(module):
            key = id(container.module) if container is not None else 0
            follower, why_not_fused = self.neighbours.get((key, position), (None, None))
            led, why_not_led = self.neighbours.get((key, position - 1), (None, None))
            if led is None:
                leader = ""
            self.note(
                Call(
                    module,
                    name,
                    args,
                    kwargs,
                    self.left_alone[module],
                    follower,
                    why_not_fused,
                    leader,
                    why_not_led,
                )
            )

    def _leave(self, module: nn.Module, args: Any, output: Any) -> None:
        # A call that raised inside a try left its frame behind.
        while self.running and self.running.pop().module is not module:
            pass

    def _place(self, module: nn.Module) -> tuple[_Frame | None, int]:
        """Return the running container that calls `module`, and the place of it there."""
        if not self.running:
            return None, 0
        container = self.running[-1]
        children = list(container.module._modules.values())
        places = [i for i, child in enumerate(children) if child is module]
        if not places:
            return None, 0
        # The same activation may stand in several places: take the next one in order.
        position = next((i for i in places if i > container.cursor), places[0])
        container.cursor = position
        return container, position


def _neighbours(
    model: nn.Module,
) -> Iterator[tuple[tuple[int, int], tuple[nn.Module, str | None]]]:
    """Yield ((id of Sequential, position of layer), (activation after it, why not fused))."""
    for container in model.modules():
        if isinstance(container, Sequential) or (
            isinstance(container, nn.Sequential) and why_left_alone(container) is None
        ):
            modules = list(container._modules.values())
            after = [*modules[2:], None]
            for position, (layer, follower) in enumerate(pairwise(modules)):
                served = isinstance(layer, _FUSING_ORIGINALS) and _left_alone(layer) is None
                if served and epilogue_of(follower) is not None:
                    key = (id(container), position)
                    yield key, (follower, why_not_fused(layer, follower, after[position]))


def _join(container: str, child: str) -> str:
    return f"{container}.{child}" if container else child
