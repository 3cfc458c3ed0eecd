"""Weights in kernel layout: the data's dtype, dense in channels_last, i.e. [S, kh, kw, B].

Kernels read weights so; models hold them contiguous and, under autocast, in float32. A convolution
packs its weight once in the forward pass and keeps the copy for its backward pass.

Nothing is cached behind the user's back from one call to the next, because nothing would tell when
the copy is out of date: torch's fused Adam and every write through `weight.data` change a weight
without changing its `_version`, and a convolution that went on with an old weight would be wrong in
silence. Whoever updates the weights knows. `PackedWeights` is for them: copies at fixed addresses,
rewritten by `refresh` in one multi-tensor launch after an update (also inside a captured graph),
and used by every call in between. Changes that do leave a trace (version, storage, shape) make the
operators pass over such a copy and pack afresh.

A weight that is already dense in channels_last and of the right dtype is used as it is: a model
converted with `model.to(dtype, memory_format=torch.channels_last)` packs nothing.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor


def pack(weight: Tensor, dtype: torch.dtype) -> Tensor:
    """Return `weight` in `dtype`, dense in channels_last: itself where it is so already."""
    if weight.dtype != dtype:
        weight = weight.to(dtype)
    return weight.contiguous(memory_format=torch.channels_last)


class _Copy(NamedTuple):
    weight: weakref.ref[Tensor]
    copy: Tensor
    state: tuple[object, ...]


# Copies that an owner keeps fresh, by id(weight).
_kept: dict[int, _Copy] = {}


def _state(weight: Tensor) -> tuple[object, ...]:
    """Return what shows that a weight was changed, as far as anything does."""
    version = None if weight.is_inference() else weight._version
    return (version, weight.data_ptr(), weight.shape, weight.stride(), weight.dtype)


def _kept_copy(weight: Tensor, dtype: torch.dtype) -> Tensor | None:
    """Return the copy of `weight` in `dtype` that its owner keeps, if it is as the weight is."""
    if torch.compiler.is_compiling():
        return None
    kept = _kept.get(id(weight))
    if (
        kept is not None
        and kept.weight() is weight
        and kept.copy.dtype == dtype
        and kept.state == _state(weight)
    ):
        return kept.copy
    return None


class _Cast(torch.autograd.Function):
    """A cast whose result is there already."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, made: tuple[Tensor]) -> Tensor:
        # In a tuple autograd does not see it: the result is not a view of an argument.
        ctx.dtype = weight.dtype
        return made[0].detach()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        return grad.to(ctx.dtype), None


def cast(weight: Tensor, dtype: torch.dtype) -> Tensor:
    """Return `weight` for torch's own products: the kept copy in place of autocast's own cast.

    Args:
        weight: [S, B, kh, kw], any floating dtype and layout.
        dtype: what autocast makes of it, or its own.

    Returns:
        [S, B, kh, kw], laid out as `weight` is, differentiable to any order: the copy of `dtype`
        that the owner keeps, else the weight itself, which autocast casts.
    """
    kept = None if weight.dtype == dtype else _kept_copy(weight, dtype)
    if kept is None or kept.stride() != weight.stride():
        return weight
    return _Cast.apply(weight, (kept,))  # type: ignore[no-any-return]


def packed(weight: Tensor, dtype: torch.dtype) -> Tensor:
    """Return `weight` in kernel layout: the copy that its owner keeps, or a fresh one.

    Args:
        weight: [S, B, kh, kw], any floating dtype and layout.
        dtype: the dtype of the data that it meets.

    Returns:
        [S, B, kh, kw] of `dtype`, dense in channels_last, without a graph.
    """
    kept = _kept_copy(weight, dtype)
    if kept is not None:
        return kept
    if weight.requires_grad:
        weight = weight.detach()
    return pack(weight, dtype)


class PackedWeights:
    """Copies of weights in kernel layout, used by every operator while this object is open.

    The owner of the weights calls `refresh` after each update and closes the object (or leaves the
    `with` block) when done:

        with PackedWeights(discriminator.parameters(), torch.bfloat16) as copies:
            for batch in batches:
                loss(batch).backward()
                optimizer.step()
                copies.refresh()

    Args:
        weights: tensors; those that are not 4-dimensional are left out.
        dtype: what the data will be.
    """

    def __init__(self, weights: Iterable[Tensor], dtype: torch.dtype) -> None:
        self._weights = [weight for weight in weights if weight.dim() == 4]
        self.copies = [
            torch.empty_like(weight, dtype=dtype, memory_format=torch.channels_last).detach()
            for weight in self._weights
        ]
        self.refresh()

    @torch.no_grad()
    def refresh(self) -> None:
        """Rewrite the copies from the weights as they are now; the addresses stay."""
        if not self._weights:
            return
        torch._foreach_copy_(self.copies, [weight.detach() for weight in self._weights])
        for weight, copy in zip(self._weights, self.copies, strict=True):
            _kept[id(weight)] = _Copy(weakref.ref(weight), copy, _state(weight))

    def close(self) -> None:
        """Let the operators pack for themselves again."""
        for weight, copy in zip(self._weights, self.copies, strict=True):
            kept = _kept.get(id(weight))
            if kept is not None and kept.copy is copy:
                del _kept[id(weight)]

    def __enter__(self) -> PackedWeights:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()
