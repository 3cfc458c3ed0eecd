"""Implementations of batch norm + activation and their registration in `torch.ops.fastgan`.

The mathematics and the contract are in `batch_norm_act`; here are the reference, the way to the
Triton kernels, the table of both, and the three operators: training (which updates the running
statistics in place), inference and backward.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch.nn import functional as F

from fastgan.ops import native_cpu, native_cuda
from fastgan.ops.activations import ACTIVATIONS, activate_fresh
from fastgan.ops.implementations import (
    Implementation,
    always,
    implementation_named,
    triton_prefers,
    triton_supports,
)
from fastgan.ops.library import register


class Call(NamedTuple):
    """The static properties of a call."""

    device: torch.device
    dtype: torch.dtype
    dimensions: int
    elements: int
    channels: int
    channels_last: bool
    training: bool
    activation: str
    #: dtypes of running_mean, running_var, weight and bias.
    parameters: tuple[torch.dtype | None, ...]
    #: Whether autograd records the call.
    recorded: bool


# ------------------------------------------------------------------------ reference


def reference(
    x, running_mean, running_var, weight, bias, training, momentum, eps, activation,
    negative_slope, stat_groups,
):  # fmt: skip
    """Compute with torch's own functions, differentiable by torch's own derivatives."""
    if stat_groups == 1 or not training:
        y = _batch_norm(x, running_mean, running_var, weight, bias, training, momentum, eps)
    else:
        # Differentiable torch functions want their running statistics unchanged until backward:
        # they are not read in training, so each slice may update them in turn.
        slices = [
            F.batch_norm(part, running_mean, running_var, weight, bias, True, momentum, eps)
            for part in x.chunk(stat_groups)
        ]
        y = torch.cat(slices)
    return activate_fresh(y, activation, negative_slope)


def _batch_norm(x, running_mean, running_var, weight, bias, training, momentum, eps):
    """F.batch_norm; without what it checks in Python where that is sure to hold on a CPU."""
    if not x.is_cpu or x.dim() < 2 or (training and x.numel() <= x.size(1)):
        return F.batch_norm(x, running_mean, running_var, weight, bias, training, momentum, eps)
    return torch.batch_norm(
        x, weight, bias, running_mean, running_var, training, momentum, eps, True
    )


def _reference_training(
    x, running_mean, running_var, weight, bias, momentum, eps, activation, negative_slope,
    stat_groups,
):  # fmt: skip
    slices = [
        torch.native_batch_norm(part, weight, bias, running_mean, running_var, True, momentum, eps)
        for part in x.chunk(stat_groups)
    ]
    y = torch.cat([part[0] for part in slices])
    mean, invstd = (torch.stack([part[i] for part in slices]) for i in (1, 2))
    return activate_fresh(y, activation, negative_slope), mean, invstd


def _reference_inference(
    x, running_mean, running_var, weight, bias, eps, activation, negative_slope
):
    y = F.batch_norm(x, running_mean, running_var, weight, bias, False, 0.0, eps)
    return activate_fresh(y, activation, negative_slope)


def reference_backward(
    grad_y, x, mean, invstd, weight, bias, eps, activation, negative_slope, stat_groups, training
):  # fmt: skip
    """Return (grad_x, grad_weight, grad_bias), the last two wide; differentiable in all tensors.

    mean and invstd, [g, C], are constants here and serve where `training` is false.
    """
    wide = torch.promote_types(x.dtype, torch.float32)
    # Not unflatten and flatten: the vmap of is_grads_batched=True has no rules for them.
    in_slices = (stat_groups, x.shape[0] // stat_groups, *x.shape[1:])  # [g, N/g, C, ...]
    sliced = x.to(wide).reshape(in_slices)
    slices = (1, *range(3, sliced.dim()))
    channels = (1, 1, -1, *(1,) * (x.dim() - 2))
    if training:
        centred = sliced - sliced.mean(slices, keepdim=True)
        invstd = (centred.square().mean(slices, keepdim=True) + eps).rsqrt()
    else:
        centred = sliced - mean.to(wide).view(channels)
        invstd = invstd.to(wide).view(channels)
    normalised = centred * invstd
    z = normalised
    if weight is not None:
        z = z * weight.to(wide).view(channels)
    if bias is not None:
        z = z + bias.to(wide).view(channels)
    grad_z = grad_y.to(wide).reshape(in_slices)
    grad_z = ACTIVATIONS[activation].backward_from_input(grad_z, z, negative_slope)
    grad_weight = (grad_z * normalised).sum((0, *slices))
    grad_bias = grad_z.sum((0, *slices))
    grad_x = grad_z if weight is None else grad_z * weight.to(wide).view(channels)
    if training:
        along = (grad_x * normalised).mean(slices, keepdim=True)
        grad_x = grad_x - grad_x.mean(slices, keepdim=True) - normalised * along
    return (grad_x * invstd).reshape(x.shape).to(x.dtype), grad_weight, grad_bias


# --------------------------------------------------------------------------- Triton


def _triton_training(
    x, running_mean, running_var, weight, bias, momentum, eps, activation, negative_slope,
    stat_groups,
):  # fmt: skip
    from fastgan.kernels import batch_norm_act as kernels

    result = kernels.forward_training(
        x,
        running_mean,
        running_var,
        weight,
        bias,
        momentum=momentum,
        eps=eps,
        activation=activation,
        negative_slope=negative_slope,
        stat_groups=stat_groups,
    )
    for buffer in (running_mean, running_var):
        if buffer is not None and not buffer.is_inference():
            # A kernel's writes are invisible to autograd's check for modified tensors.
            torch.autograd.graph.increment_version(buffer)
    return result


def _triton_inference(x, running_mean, running_var, weight, bias, eps, activation, negative_slope):
    from fastgan.kernels import batch_norm_act as kernels

    return kernels.forward_inference(
        x,
        running_mean,
        running_var,
        weight,
        bias,
        eps=eps,
        activation=activation,
        negative_slope=negative_slope,
    )


def _triton_backward(
    grad_y, x, mean, invstd, weight, bias, eps, activation, negative_slope, stat_groups, training
):  # fmt: skip
    from fastgan.kernels import batch_norm_act as kernels

    return kernels.backward(
        grad_y,
        x,
        mean,
        invstd,
        weight,
        bias,
        activation=activation,
        negative_slope=negative_slope,
        stat_groups=stat_groups,
        training=training,
    )


def _triton_supports(call: Call) -> str | None:
    reason = triton_supports(call.device, call.dtype)
    if reason is None and call.dimensions != 4:
        reason = f"Triton's kernels take [N, C, H, W], not {call.dimensions} dimensions"
    allowed = (None, torch.float32, call.dtype)
    if reason is None and any(dtype not in allowed for dtype in call.parameters):
        reason = "weight, bias and running statistics must be float32 or of the input's dtype"
    return reason


def _triton_prefers(call: Call) -> str | None:
    reason = triton_prefers(call.device)
    if reason is None and not call.channels_last:
        reason = "the input is contiguous (NCHW) and would be copied: use torch.channels_last"
    return reason


IMPLEMENTATIONS = (
    native_cuda.BATCH_NORM_ACT,
    native_cpu.BATCH_NORM_ACT,
    Implementation(
        "triton",
        _triton_supports,
        _triton_prefers,
        {
            "training": _triton_training,
            "inference": _triton_inference,
            "backward": _triton_backward,
        },
    ),
    Implementation(
        "reference",
        always,
        always,
        {
            "training": _reference_training,
            "inference": _reference_inference,
            "backward": reference_backward,
        },
    ),
)


# -------------------------------------------------------- operators of torch.ops.fastgan


def _launcher(implementation: str, computation: str) -> Any:
    return implementation_named(IMPLEMENTATIONS, implementation).run[computation]


def _run_training(x, running_mean, running_var, weight, bias, momentum, eps, activation,
                  negative_slope, stat_groups, implementation):  # fmt: skip
    return _launcher(implementation, "training")(
        x, running_mean, running_var, weight, bias, momentum, eps, activation, negative_slope,
        stat_groups,
    )  # fmt: skip


def _fake_training(x, running_mean, running_var, weight, bias, momentum, eps, activation,
                   negative_slope, stat_groups, implementation):  # fmt: skip
    wide = torch.promote_types(x.dtype, torch.float32)
    mean, invstd = (x.new_empty((stat_groups, x.shape[1]), dtype=wide) for _ in range(2))
    return torch.empty_like(x), mean, invstd


def _run_inference(x, running_mean, running_var, weight, bias, eps, activation, negative_slope,
                   implementation):  # fmt: skip
    return _launcher(implementation, "inference")(
        x, running_mean, running_var, weight, bias, eps, activation, negative_slope
    )


def _fake_inference(x, running_mean, running_var, weight, bias, eps, activation, negative_slope,
                    implementation):  # fmt: skip
    return torch.empty_like(x)


def _run_backward(grad_y, x, mean, invstd, weight, bias, eps, activation, negative_slope,
                  stat_groups, training, implementation):  # fmt: skip
    return _launcher(implementation, "backward")(
        grad_y,
        x,
        mean,
        invstd,
        weight,
        bias,
        eps,
        activation,
        negative_slope,
        stat_groups,
        training,
    )


def _fake_backward(grad_y, x, mean, invstd, weight, bias, eps, activation, negative_slope,
                   stat_groups, training, implementation):  # fmt: skip
    wide = torch.promote_types(x.dtype, torch.float32)
    grad_weight, grad_bias = (x.new_empty(x.shape[1], dtype=wide) for _ in range(2))
    return torch.empty_like(x), grad_weight, grad_bias


_EPILOGUE = "str activation, float negative_slope"
training_operator = register(
    "batch_norm_act_training(Tensor x, Tensor(a!)? running_mean, Tensor(b!)? running_var, "
    f"Tensor? weight, Tensor? bias, float momentum, float eps, {_EPILOGUE}, int stat_groups, "
    "str implementation) -> (Tensor, Tensor, Tensor)",
    _run_training,
    _fake_training,
)
inference_operator = register(
    "batch_norm_act_inference(Tensor x, Tensor running_mean, Tensor running_var, Tensor? weight, "
    f"Tensor? bias, float eps, {_EPILOGUE}, str implementation) -> Tensor",
    _run_inference,
    _fake_inference,
)
backward_operator = register(
    "batch_norm_act_backward(Tensor grad_y, Tensor x, Tensor mean, Tensor invstd, Tensor? weight, "
    f"Tensor? bias, float eps, {_EPILOGUE}, int stat_groups, bool training, str implementation) "
    "-> (Tensor, Tensor, Tensor)",
    _run_backward,
    _fake_backward,
)
