"""Activations that backward makes again instead of keeping them.

A batch norm keeps its input x for backward, and the convolution after it keeps the normalised,
activated x: the same values twice. From x, mean and inverse deviation they are made again, to the
bit, in one pass over memory when the weight gradient asks for them; a DCGAN's step holds a third
less of activations for it.
"""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import torch
from torch import Tensor

from fastgan import native_kernels
from fastgan.ops.batch_norm_act import BatchNormAct
from fastgan.ops.convolution_autograd import Dgrad, Fprop

_NORM: type[Any] = BatchNormAct._backward_cls  # type: ignore[attr-defined]
_CONVOLUTIONS: tuple[type[Any], ...] = tuple(
    function._backward_cls  # type: ignore[attr-defined]
    for function in (Fprop, Dgrad)
)


def recompute_input(y: Tensor, x: Tensor) -> None:
    """Let the convolution that made y from x drop x and make it again in backward.

    Done where x comes straight from `batch_norm_act` on its native CPU kernels in training, and
    nowhere else; for 1% of a step's time. Nobody may have written to x in between.

    Args:
        y: what `conv2d` or `conv_transpose2d` returned.
        x: what it was given, which `batch_norm_act` returned.
    """
    if torch.compiler.is_compiling():
        return
    convolution: Any = y.grad_fn
    norm: Any = x.grad_fn
    if (
        not isinstance(convolution, _CONVOLUTIONS)
        or not isinstance(norm, _NORM)
        or norm.implementation != "cpu"
        or convolution.next_functions[0][0] is not norm  # it was given a cast or a copy of x
        or not convolution.needs_input_grad[1]
    ):
        return
    # Refused where the caller has hooks on saved tensors (checkpointing, offloading): theirs count.
    with suppress(RuntimeError):
        convolution._raw_saved_tensors[0].register_hooks(lambda _: norm, _activated)


def _activated(norm: Any) -> Tensor:
    """What a batch norm returned, from what it keeps; autograd gives it its place in the graph."""
    x, mean, invstd, weight, bias = norm.saved_tensors
    _, activation, negative_slope, _, _ = norm.settings
    return native_kernels.normalise(
        x, mean, invstd, weight, bias, activation=activation, negative_slope=negative_slope
    )
