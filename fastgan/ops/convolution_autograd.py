"""Autograd of the convolution family: `fprop`, `dgrad` and `wgrad` as differentiable functions.

Each is an autograd Function around its operator (`convolution`); each one's backward is made of the
other two, so that `create_graph=True` is right to any order. While autograd records, a backward
calls the differentiable functions; otherwise the operators, with the weight that forward packed.
Gradients that come in under a transform (vmap, forward-mode AD) go to torch's own convolutions.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from fastgan.convolution_sizes import Pair
from fastgan.ops.activations import ACTIVATIONS
from fastgan.ops.convolution import (
    REFERENCE,
    dense,
    dgrad_operator,
    fprop_operator,
    wgrad_operator,
)
from fastgan.ops.implementations import recorded, transformed_backward
from fastgan.ops.packing import packed


class Settings(NamedTuple):
    """What a Function's backward needs to know beside tensors."""

    big_size: Pair
    kernel_size: Pair
    stride: Pair
    padding: Pair
    activation: str
    negative_slope: float
    implementation: str
    weight_dtype: torch.dtype
    bias_dtype: torch.dtype | None


def _save(ctx: Any, data: Tensor, weight: Tensor, packed_weight: Tensor, y: Tensor) -> None:
    """Save what the gradients that are wanted need: no input for the sake of a frozen weight."""
    wants_data, wants_weight = ctx.needs_input_grad[:2]
    ctx.save_for_backward(
        data if wants_weight else None,
        weight if wants_data else None,
        packed_weight if wants_data else None,
        None if ctx.settings.activation == "identity" else y,
    )


def pre_activation_gradient(grad: Tensor, y: Tensor | None, settings: Settings) -> Tensor:
    """Return the gradient before the activation, dense; y, its result, is None for identity."""
    if y is not None:
        activation = ACTIVATIONS[settings.activation]
        grad = activation.backward_from_output(grad, y, settings.negative_slope)
    return grad if transformed_backward(grad) else dense(grad)


def bias_gradient(grad: Tensor) -> Tensor:
    """Return the sum over all dimensions but 1, in float32 at least."""
    return grad.sum((0, 2, 3), dtype=torch.promote_types(grad.dtype, torch.float32))


def _grad_by_fprop(
    big: Tensor, weight: Tensor, packed_weight: Tensor | None, at: Settings
) -> Tensor:
    if transformed_backward(big, weight):
        weight = weight.to(big.dtype)
        return REFERENCE["fprop"](big, weight, None, at.stride, at.padding, "identity", 0.0)
    if packed_weight is None or torch.is_grad_enabled():
        return fprop(
            big, weight, stride=at.stride, padding=at.padding, implementation=at.implementation
        )
    return fprop_operator(
        big, packed_weight, None, at.stride, at.padding, "identity", 0.0, at.implementation
    )


def grad_by_dgrad(
    small: Tensor, weight: Tensor, packed_weight: Tensor | None, at: Settings
) -> Tensor:
    """Return the gradient of fprop's input; differentiable while autograd records."""
    if transformed_backward(small, weight):
        return REFERENCE["dgrad"](
            small, weight.to(small.dtype), None, at.big_size, at.stride, at.padding, "identity", 0.0
        )
    if packed_weight is None or torch.is_grad_enabled():
        return dgrad(
            small,
            weight,
            big_size=at.big_size,
            stride=at.stride,
            padding=at.padding,
            implementation=at.implementation,
        )
    return dgrad_operator(
        small,
        packed_weight,
        None,
        at.big_size,
        at.stride,
        at.padding,
        "identity",
        0.0,
        at.implementation,
    )


def grad_by_wgrad(big: Tensor, small: Tensor, at: Settings) -> Tensor:
    """Return the weight's gradient in `at.weight_dtype`; differentiable while autograd records."""
    if transformed_backward(big, small):
        return REFERENCE["wgrad"](
            big, small, at.kernel_size, at.stride, at.padding, at.weight_dtype
        )
    call = Wgrad.apply if recorded(big, small) else wgrad_operator
    return call(
        big, small, at.kernel_size, at.stride, at.padding, at.weight_dtype, at.implementation
    )


class Fprop(torch.autograd.Function):
    """fprop; its gradients are a dgrad, a wgrad and a sum."""

    @staticmethod
    def forward(
        ctx, big, weight, bias, stride, padding, activation, negative_slope, implementation
    ):
        ctx.settings = Settings(
            tuple(big.shape[2:]),
            tuple(weight.shape[2:]),
            stride,
            padding,
            activation,
            negative_slope,
            implementation,
            weight.dtype,
            None if bias is None else bias.dtype,
        )
        kernel_weight = packed(weight, big.dtype)
        small = fprop_operator(
            big, kernel_weight, bias, stride, padding, activation, negative_slope, implementation
        )
        _save(ctx, big, weight, kernel_weight, small)
        return small

    @staticmethod
    def backward(ctx, grad_small):
        big, weight, kernel_weight, y = ctx.saved_tensors
        wants_big, wants_weight, wants_bias = ctx.needs_input_grad[:3]
        grad_small = pre_activation_gradient(grad_small, y, ctx.settings)
        grad_weight = grad_by_wgrad(big, grad_small, ctx.settings) if wants_weight else None
        del big, y  # made again for this alone (see `recomputation`), they leave room
        return (
            grad_by_dgrad(grad_small, weight, kernel_weight, ctx.settings) if wants_big else None,
            grad_weight,
            bias_gradient(grad_small).to(ctx.settings.bias_dtype) if wants_bias else None,
            *(None,) * 5,
        )


class Dgrad(torch.autograd.Function):
    """dgrad; its gradients are an fprop, a wgrad and a sum."""

    @staticmethod
    def forward(
        ctx,
        small,
        weight,
        bias,
        big_size,
        stride,
        padding,
        activation,
        negative_slope,
        implementation,
    ):
        ctx.settings = Settings(
            big_size,
            tuple(weight.shape[2:]),
            stride,
            padding,
            activation,
            negative_slope,
            implementation,
            weight.dtype,
            None if bias is None else bias.dtype,
        )
        kernel_weight = packed(weight, small.dtype)
        big = dgrad_operator(
            small,
            kernel_weight,
            bias,
            big_size,
            stride,
            padding,
            activation,
            negative_slope,
            implementation,
        )
        _save(ctx, small, weight, kernel_weight, big)
        return big

    @staticmethod
    def backward(ctx, grad_big):
        small, weight, kernel_weight, y = ctx.saved_tensors
        wants_small, wants_weight, wants_bias = ctx.needs_input_grad[:3]
        grad_big = pre_activation_gradient(grad_big, y, ctx.settings)
        grad_weight = grad_by_wgrad(grad_big, small, ctx.settings) if wants_weight else None
        del small, y
        return (
            _grad_by_fprop(grad_big, weight, kernel_weight, ctx.settings) if wants_small else None,
            grad_weight,
            bias_gradient(grad_big).to(ctx.settings.bias_dtype) if wants_bias else None,
            *(None,) * 6,
        )


class Wgrad(torch.autograd.Function):
    """wgrad; bilinear, so its gradients are a dgrad and an fprop with the gradient as weight."""

    @staticmethod
    def forward(ctx, big, small, kernel_size, stride, padding, out_dtype, implementation):
        ctx.settings = Settings(
            tuple(big.shape[2:]),
            tuple(kernel_size),
            stride,
            padding,
            "identity",
            0.0,
            implementation,
            out_dtype,
            None,
        )
        wants_big, wants_small = ctx.needs_input_grad[:2]
        ctx.save_for_backward(big if wants_small else None, small if wants_big else None)
        return wgrad_operator(big, small, kernel_size, stride, padding, out_dtype, implementation)

    @staticmethod
    def backward(ctx, grad_weight):
        big, small = ctx.saved_tensors
        wants_big, wants_small = ctx.needs_input_grad[:2]
        return (
            grad_by_dgrad(small, grad_weight, None, ctx.settings) if wants_big else None,
            _grad_by_fprop(big, grad_weight, None, ctx.settings) if wants_small else None,
            *(None,) * 5,
        )


def fprop(
    big: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    stride: Pair,
    padding: Pair,
    activation: str = "identity",
    negative_slope: float = 0.01,
    implementation: str,
) -> Tensor:
    """Return act(conv(big, weight) + bias), differentiable to any order.

    Args:
        big: [N, B, H, W], any layout.
        weight: [S, B, kh, kw], any floating dtype and layout; its gradient has its dtype.
        bias: [S] or None.
        stride, padding: (vertical, horizontal).
        activation: a name in `ACTIVATIONS`.
        negative_slope: leaky_relu's; not negative, since the sign is read off the output.
        implementation: "reference" or the name of a kernel family.

    Returns:
        [N, S, h, w] of big's dtype, dense in channels_last.
    """
    big = dense(big)
    if recorded(big, weight, bias):
        return Fprop.apply(
            big, weight, bias, stride, padding, activation, negative_slope, implementation
        )
    return fprop_operator(
        big, packed(weight, big.dtype), bias, stride, padding, activation, negative_slope,
        implementation,
    )  # fmt: skip


def dgrad(
    small: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    big_size: Pair,
    stride: Pair,
    padding: Pair,
    activation: str = "identity",
    negative_slope: float = 0.01,
    implementation: str,
) -> Tensor:
    """Return act(conv_transpose(small, weight) + bias), differentiable to any order.

    Args:
        small: [N, S, h, w], any layout.
        weight: [S, B, kh, kw].
        bias: [B] or None.
        big_size: (H, W) of the result, one of the sizes whose fprop has the size of `small`.
        stride, padding, activation, negative_slope, implementation: as in `fprop`.

    Returns:
        [N, B, H, W] of small's dtype, dense in channels_last.
    """
    small = dense(small)
    if recorded(small, weight, bias):
        return Dgrad.apply(
            small, weight, bias, big_size, stride, padding, activation, negative_slope,
            implementation,
        )  # fmt: skip
    return dgrad_operator(
        small, packed(weight, small.dtype), bias, big_size, stride, padding, activation,
        negative_slope, implementation,
    )  # fmt: skip


def wgrad(
    big: Tensor,
    small: Tensor,
    *,
    kernel_size: Pair,
    stride: Pair,
    padding: Pair,
    out_dtype: torch.dtype | None = None,
    implementation: str,
) -> Tensor:
    """Return the weight gradient [S, B, kh, kw], differentiable to any order.

    Args:
        big: [N, B, H, W], any layout.
        small: [N, S, h, w].
        kernel_size, stride, padding: (vertical, horizontal).
        out_dtype: of the result, which is summed in float32; None is big's dtype.
        implementation: "reference" or the name of a kernel family.
    """
    big, small = dense(big), dense(small)
    call = Wgrad.apply if recorded(big, small) else wgrad_operator
    return call(big, small, kernel_size, stride, padding, out_dtype or big.dtype, implementation)
