"""A discriminator's first two convolutions as one: what is between them is never whole in memory.

A layer that reads images has few input channels and the largest output of the network, whose
values, gradient and gradient before the activation are each as large again in backward. Making it
anew costs little. So batches go through both layers a slice at a time, forward and backward, and
only the input is kept: the slices stay in the caches, and of a DCGAN step's memory beyond weights
and moments a third is gone. The result is that of the layers one by one, to the bit unless a kernel
has another algorithm for a slice than for the batch (Winograd's want a few images, and few pixels
have a kernel of their own); gradients of weights are sums over slices in a fixed order.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from fastgan.convolution_sizes import fprop_shape
from fastgan.ops.activations import ACTIVATIONS
from fastgan.ops.convolution import (
    CPU_WHERE_IT_WINS,
    dense,
    fprop_operator,
    like_twin,
)
from fastgan.ops.convolution_autograd import (
    Settings,
    bias_gradient,
    fprop,
    grad_by_dgrad,
    grad_by_wgrad,
)
from fastgan.ops.convolution_plan import implementation_of, plan
from fastgan.ops.implementations import recorded, transformed, transformed_backward
from fastgan.ops.packing import packed

# Of what is between the layers, in a slice: a few MiB, and enough images to fill every kernel.
_SLICE_ELEMENTS = 2 << 20
# The first layer is run once more in backward: its work must be a small part of the second's.
_MOST_WORK = 1 / 8
_NATIVE = ("cpu", CPU_WHERE_IT_WINS)


def conv2d_pair(
    first: dict[str, Any], second: dict[str, Any], activation: str, negative_slope: float
) -> Tensor | None:
    """Return conv2d(activation(conv2d(x))), or None where the layers are to be called one by one.

    Served are calls that autograd records for the weights' sake alone (a discriminator's update),
    on native CPU kernels, where the first layer is cheap and its output is large.

    Args:
        first: arguments of `conv2d`: "x" [N, C, H, W], "weight", "bias", "stride", "padding",
            "dilation" and "groups".
        second: the same of the layer after the activation; its "x" is not read.
        activation: "identity", "relu", "leaky_relu", "tanh" or "sigmoid".
        negative_slope: leaky_relu's.

    Returns:
        [N, C_out, H_out, W_out], laid out as `conv2d` would; or None.
    """
    x, weight, next_weight = first["x"], first["weight"], second["weight"]
    if (
        torch.compiler.is_compiling()
        or transformed()
        or not (x.is_cpu and x.dim() == 4)
        or x.requires_grad
        or not recorded(next_weight)
        or negative_slope < 0
    ):
        return None
    made = plan(**_planned(first))
    implementation = implementation_of(made, activation, x, weight, first["bias"])
    if implementation not in _NATIVE:
        return None
    between = fprop_shape(x, weight, made.stride, made.padding)
    pixels = between[2] * between[3]
    rows = _SLICE_ELEMENTS // max(1, between[1] * pixels)
    if not 0 < rows < between[0]:
        return None
    a_slice = torch.empty((rows, *between[1:]), dtype=made.dtype, memory_format=torch.channels_last)
    next_made = plan(**_planned({**second, "x": a_slice}))
    next_implementation = implementation_of(next_made, "identity", next_weight)
    if next_implementation not in _NATIVE:
        return None
    result = fprop_shape(a_slice, next_weight, next_made.stride, next_made.padding)
    if weight[0].numel() * between[1] * pixels > _MOST_WORK * next_weight.numel() * (
        result[2] * result[3]
    ):
        return None
    settings = [
        Settings(
            at.big_size,
            tuple(some["weight"].shape[2:]),
            at.stride,
            at.padding,
            name,
            negative_slope,
            served_by,
            torch.promote_types(some["weight"].dtype, torch.float32),  # of sums over slices
            None,
        )
        for some, at, name, served_by in (
            (first, made, activation, implementation),
            (second, next_made, "identity", next_implementation),
        )
    ]
    y = ConvolutionPair.apply(
        dense(x.to(made.dtype)), weight, first["bias"], next_weight, second["bias"], *settings, rows
    )
    return like_twin(y, x, next_weight)


def _planned(arguments: dict[str, Any]) -> dict[str, Any]:
    return {"transposed": False, "output_padding": 0, **arguments}


def _slices(images: int, rows: int) -> Iterator[slice]:
    for begin in range(0, images, rows):
        yield slice(begin, min(begin + rows, images))


def _forward(x: Tensor, packed_weight: Tensor, bias: Tensor | None, at: Settings) -> Tensor:
    return fprop_operator(
        x,
        packed_weight,
        bias,
        at.stride,
        at.padding,
        at.activation,
        at.negative_slope,
        at.implementation,
    )


def _plus(total: Tensor | None, part: Tensor | None) -> Tensor | None:
    """Add in place to what is there, if both are."""
    return part if total is None or part is None else total.add_(part)


class ConvolutionPair(torch.autograd.Function):
    """conv2d, activation, conv2d; without a gradient of the input."""

    @staticmethod
    def forward(ctx, x, weight, bias, next_weight, next_bias, at, next_at, rows):
        kernel_weight, next_kernel_weight = packed(weight, x.dtype), packed(next_weight, x.dtype)
        y = None
        for part in _slices(len(x), rows):
            between = _forward(x[part], kernel_weight, bias, at)
            some = _forward(between, next_kernel_weight, next_bias, next_at)
            if y is None:
                y = torch.empty(
                    (len(x), *some.shape[1:]), dtype=x.dtype, memory_format=torch.channels_last
                )
            y[part] = some
        ctx.settings = at, next_at, rows
        ctx.save_for_backward(
            x, weight, bias, next_weight, next_bias, kernel_weight, next_kernel_weight
        )
        return y

    @staticmethod
    def backward(ctx, grad):
        x, weight, bias, next_weight, next_bias, *kernel_weights = ctx.saved_tensors
        at, next_at, rows = ctx.settings
        wanted = ctx.needs_input_grad[1:5]
        weights = (weight, bias, next_weight, next_bias)
        if torch.is_grad_enabled() or transformed_backward(grad):
            return None, *_differentiated(x, weights, grad, at, next_at, wanted), *(None,) * 3
        grad = dense(grad)
        totals: list[Tensor | None] = [None] * len(weights)
        for part in _slices(len(x), rows):
            some = _gradients(x[part], weights, kernel_weights, grad[part], at, next_at, wanted)
            totals = [_plus(total, one) for total, one in zip(totals, some, strict=True)]
        pairs = zip(weights, totals, strict=True)
        gradients = (None if total is None else total.to(of.dtype) for of, total in pairs)
        return None, *gradients, *(None,) * 3


def _gradients(
    x: Tensor,
    weights: tuple[Any, ...],
    kernel_weights: list[Tensor],
    grad: Tensor,
    at: Settings,
    next_at: Settings,
    wanted: Sequence[bool],
) -> tuple[Tensor | None, ...]:
    """What a slice adds to the gradients of weight, bias, next weight and next bias."""
    _, bias, next_weight, _ = weights
    wants_weight, wants_bias, wants_next_weight, wants_next_bias = wanted
    kernel_weight, next_kernel_weight = kernel_weights
    between = _forward(x, kernel_weight, bias, at)
    of_next_weight = grad_by_wgrad(between, grad, next_at) if wants_next_weight else None
    if wants_weight or wants_bias:
        grad_between = grad_by_dgrad(grad, next_weight, next_kernel_weight, next_at)
        ACTIVATIONS[at.activation].backward_in_place(grad_between, between, at.negative_slope)
    del between
    return (
        grad_by_wgrad(x, grad_between, at) if wants_weight else None,
        bias_gradient(grad_between) if wants_bias else None,
        of_next_weight,
        bias_gradient(grad) if wants_next_bias else None,
    )


def _differentiated(
    x: Tensor,
    weights: tuple[Tensor | None, ...],
    grad: Tensor,
    at: Settings,
    next_at: Settings,
    wanted: Sequence[bool],
) -> list[Tensor | None]:
    """The gradients by autograd, over the layers one by one, with a graph of their own if asked."""
    weight, bias, next_weight, next_bias = weights
    with torch.enable_grad():
        between = _differentiable(x, weight, bias, at)
        y = _differentiable(between, next_weight, next_bias, next_at)
    pairs = zip(weights, wanted, strict=True)
    inputs = [tensor for tensor, wants in pairs if wants and tensor is not None]
    found = iter(torch.autograd.grad(y, inputs, grad, create_graph=torch.is_grad_enabled()))
    return [next(found) if wants else None for wants in wanted]


def _differentiable(big: Tensor, weight: Any, bias: Tensor | None, at: Settings) -> Tensor:
    return fprop(
        big,
        weight,
        bias,
        stride=at.stride,
        padding=at.padding,
        activation=at.activation,
        negative_slope=at.negative_slope,
        implementation=at.implementation,
    )
