"""Batch normalisation, then an activation, in one pass: the twin of `F.batch_norm`.

    xhat = (x - mean[c]) invstd[c],  z = weight[c] xhat + bias[c],  y = act(z)

with the statistics of the batch (training: biased variance; the running statistics move towards the
mean and the unbiased variance by `momentum`) or the running statistics. `stat_groups=g` cuts the
batch into g equal contiguous slices with statistics of their own: g calls in one, the running
statistics advancing once a slice, in order.

Kept for backward are x, mean and invstd; z and the activation's mask are computed again. With
dz = dy act'(z) and means over a slice,

    dbias = sum dz,  dweight = sum dz xhat,  dx = weight invstd (dz - mean(dz) - xhat mean(dz xhat))

(the two means only in training). While autograd records, backward computes mean and invstd from x
again in differentiable torch functions: right to any order.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fastgan.ops import native_cpu
from fastgan.ops.activations import check_activation
from fastgan.ops.batch_norm_act_operators import (
    IMPLEMENTATIONS,
    Call,
    backward_operator,
    inference_operator,
    reference,
    reference_backward,
    training_operator,
)
from fastgan.ops.implementations import (
    Choice,
    cached_choice,
    choice_when_transformed,
    recorded,
    transformed,
    transformed_backward,
)
from fastgan.ops.native_wins import FEWEST_BATCH_NORM_ELEMENTS


class BatchNormAct(torch.autograd.Function):
    """The operators with their derivative; x, and its gradients, lie densely in channels_last."""

    @staticmethod
    def forward(
        ctx: Any, x, running_mean, running_var, weight, bias, training, momentum, eps, activation,
        negative_slope, stat_groups, implementation,
    ):  # fmt: skip
        if training:
            y, mean, invstd = training_operator(
                x, running_mean, running_var, weight, bias, momentum, eps, activation,
                negative_slope, stat_groups, implementation,
            )  # fmt: skip
        else:
            stat_groups = 1
            y = inference_operator(
                x, running_mean, running_var, weight, bias, eps, activation, negative_slope,
                implementation,
            )  # fmt: skip
            wide = torch.promote_types(x.dtype, torch.float32)
            # Copies: a training call may move the running statistics before backward comes.
            mean = running_mean.to(wide, copy=True).unsqueeze(0)
            invstd = (running_var.to(wide) + eps).rsqrt().unsqueeze(0)
        ctx.save_for_backward(x, mean, invstd, weight, bias)
        ctx.settings = (eps, activation, negative_slope, stat_groups, training)
        ctx.implementation = implementation
        return y

    @staticmethod
    def backward(ctx: Any, grad_y):
        tensors = ctx.saved_tensors
        if torch.is_grad_enabled() or transformed_backward(grad_y):
            grad_x, grad_weight, grad_bias = reference_backward(grad_y, *tensors, *ctx.settings)
        else:
            grad_y = grad_y.contiguous(memory_format=torch.channels_last)
            grad_x, grad_weight, grad_bias = backward_operator(
                grad_y, *tensors, *ctx.settings, ctx.implementation
            )
        weight, bias = tensors[3:]
        return (
            grad_x if ctx.needs_input_grad[0] else None,
            None,
            None,
            _of_dtype(grad_weight, weight.dtype) if ctx.needs_input_grad[3] else None,
            _of_dtype(grad_bias, bias.dtype) if ctx.needs_input_grad[4] else None,
            *(None,) * 7,
        )


def _of_dtype(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    return tensor if tensor.dtype == dtype else tensor.to(dtype)


def batch_norm_act(
    x: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
    activation: str = "identity",
    negative_slope: float = 0.01,
    stat_groups: int = 1,
) -> Tensor:
    """Normalise like `torch.nn.functional.batch_norm`, then activate.

    Args:
        x: [N, C, H, W] (the reference takes [N, C, ...]), any floating dtype and layout.
        running_mean, running_var: [C], updated in place in training; None in training to leave
            running statistics out.
        weight, bias: [C] or None.
        training: normalise by the batch's own statistics.
        momentum: share of the new in the running statistics.
        eps: added to the variance.
        activation: "identity", "relu", "leaky_relu", "tanh" or "sigmoid".
        negative_slope: leaky_relu's.
        stat_groups: in training, the number of equal slices of the batch with statistics each;
            without meaning otherwise.

    Returns:
        y of x's shape, dtype and memory format.

    Raises:
        ValueError: the activation is not known; stat_groups does not divide the batch; torch's
            own, for a channel of one value in training.
        RuntimeError: torch's own, for parameters that do not fit x.
        BackendError: the backend insisted on cannot serve the call.
    """
    check_activation(activation)
    if stat_groups != 1 and (stat_groups < 1 or x.shape[0] % stat_groups):
        raise ValueError(
            f"stat_groups={stat_groups} must be at least 1 and divide the batch of {x.shape[0]}"
        )
    if native_cpu.too_few(x, FEWEST_BATCH_NORM_ELEMENTS):
        return reference(
            x, running_mean, running_var, weight, bias, training, momentum, eps, activation,
            negative_slope, stat_groups,
        )  # fmt: skip
    implementation = choice(
        x, running_mean, running_var, weight, bias, training, activation=activation
    ).chosen
    if implementation == "reference" or not _valid(
        x, (running_mean, running_var, weight, bias), training, stat_groups
    ):
        return reference(
            x, running_mean, running_var, weight, bias, training, momentum, eps, activation,
            negative_slope, stat_groups,
        )  # fmt: skip
    contiguous = x.is_contiguous()
    x = x.contiguous(memory_format=torch.channels_last)
    if recorded(x, weight, bias):
        y = BatchNormAct.apply(
            x, running_mean, running_var, weight, bias, training, momentum, eps, activation,
            negative_slope, stat_groups, implementation,
        )  # fmt: skip
    elif training:
        y, _, _ = training_operator(
            x, running_mean, running_var, weight, bias, momentum, eps, activation,
            negative_slope, stat_groups, implementation,
        )  # fmt: skip
    else:
        y = inference_operator(
            x, running_mean, running_var, weight, bias, eps, activation, negative_slope,
            implementation,
        )  # fmt: skip
    return y.contiguous() if contiguous else y


def choice(
    x: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
    activation: str = "identity",
    *arguments: Any,
    **keywords: Any,
) -> Choice:
    """Return what would serve `batch_norm_act` with these arguments."""
    if transformed():
        return choice_when_transformed("batch_norm_act", IMPLEMENTATIONS)
    dimensions = x.dim()
    properties = (
        x.device,
        x.dtype,
        dimensions,
        x.numel(),
        x.size(1) if dimensions > 1 else 0,
        dimensions == 4 and x.is_contiguous(memory_format=torch.channels_last),
        training,
        activation,
        (
            None if running_mean is None else running_mean.dtype,
            None if running_var is None else running_var.dtype,
            None if weight is None else weight.dtype,
            None if bias is None else bias.dtype,
        ),
        recorded(x, weight, bias),
    )
    return cached_choice("batch_norm_act", IMPLEMENTATIONS, properties, Call._make)


def _valid(
    x: Tensor, parameters: tuple[Tensor | None, ...], training: bool, stat_groups: int
) -> bool:
    """Return whether a kernel may have the call; the rest is empty, or torch refuses it."""
    shape = x.shape[1:2]
    fit = all(p is None or (p.shape == shape and p.device == x.device) for p in parameters)
    if not training:
        return fit and parameters[0] is not None and parameters[1] is not None and x.numel() > 0
    return fit and x.numel() > stat_groups * x.shape[1]
