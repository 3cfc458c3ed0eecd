"""Bias along dimension 1, then an activation, in one pass.

    z = x + bias[c],  y = act(z)
    dx = dy act'(z),  dbias[c] = sum of dx over all other dimensions

x is kept and z computed again in backward, so that y need not be. While autograd records, backward
is written in differentiable torch functions: right to any order.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from fastgan.ops import native_cpu, native_cuda
from fastgan.ops.activations import ACTIVATIONS, activate, activate_fresh, check_activation
from fastgan.ops.implementations import (
    Choice,
    Implementation,
    always,
    cached_choice,
    choice_when_transformed,
    implementation_named,
    recorded,
    transformed,
    transformed_backward,
    triton_prefers,
    triton_supports,
)
from fastgan.ops.library import register
from fastgan.ops.native_wins import FEWEST_BIAS_ACT_ELEMENTS


class Call(NamedTuple):
    """The static properties of a call."""

    device: torch.device
    dtype: torch.dtype
    bias_dtype: torch.dtype | None
    dimensions: int
    elements: int
    channels: int
    channels_last: bool
    activation: str
    #: Whether autograd records the call.
    recorded: bool


def _with_bias(x: Tensor, bias: Tensor | None) -> Tensor:
    if bias is None:
        return x
    if bias.dtype != x.dtype:
        bias = bias.to(x.dtype)
    return x + bias.view(-1, *(1,) * (x.dim() - 2))


def _reference_forward(x, bias, activation, negative_slope):
    if bias is None:
        return activate(x, activation, negative_slope)
    return activate_fresh(_with_bias(x, bias), activation, negative_slope)


def _reference_backward(grad_y, x, bias, activation, negative_slope):
    """Return (grad_x, grad_bias or None); differentiable."""
    function = ACTIVATIONS[activation].backward_from_input
    grad_x = function(grad_y, _with_bias(x, bias), negative_slope)
    if bias is None:
        return grad_x, None
    others = [d for d in range(x.dim()) if d != 1]
    wide = torch.promote_types(x.dtype, torch.float32)
    return grad_x, grad_x.sum(others, dtype=wide)


def _triton_forward(x, bias, activation, negative_slope):
    from fastgan.kernels import bias_act as kernels

    return kernels.forward(x, bias, activation=activation, negative_slope=negative_slope)


def _triton_backward(grad_y, x, bias, activation, negative_slope):
    from fastgan.kernels import bias_act as kernels

    return kernels.backward(grad_y, x, bias, activation=activation, negative_slope=negative_slope)


def _triton_supports(call: Call) -> str | None:
    reason = triton_supports(call.device, call.dtype)
    if reason is None and call.dimensions != 4:
        reason = f"Triton's kernel takes [N, C, H, W], not {call.dimensions} dimensions"
    if reason is None and call.bias_dtype not in (None, call.dtype, torch.float32):
        reason = f"bias is {call.bias_dtype}, neither float32 nor the input's {call.dtype}"
    return reason


def _triton_prefers(call: Call) -> str | None:
    reason = triton_prefers(call.device)
    if reason is None and call.bias_dtype is None:
        reason = "without a bias torch's own activation is one launch already"
    if reason is None and not call.channels_last:
        reason = "the input is contiguous (NCHW) and would be copied: use torch.channels_last"
    return reason


IMPLEMENTATIONS = (
    native_cuda.BIAS_ACT,
    native_cpu.BIAS_ACT,
    Implementation(
        "triton",
        _triton_supports,
        _triton_prefers,
        {"forward": _triton_forward, "backward": _triton_backward},
    ),
    Implementation(
        "reference",
        always,
        always,
        {"forward": _reference_forward, "backward": _reference_backward},
    ),
)


def _run(x, bias, activation, negative_slope, implementation):
    run = implementation_named(IMPLEMENTATIONS, implementation).run["forward"]
    y = run(x, bias, activation, negative_slope)
    return y.clone() if y is x else y


def _fake(x, bias, activation, negative_slope, implementation):
    return torch.empty_like(x)


def _run_backward(grad_y, x, bias, activation, negative_slope, implementation):
    run = implementation_named(IMPLEMENTATIONS, implementation).run["backward"]
    grad_x, grad_bias = run(grad_y, x, bias, activation, negative_slope)
    wide = torch.promote_types(x.dtype, torch.float32)
    grad_bias = x.new_empty(0, dtype=wide) if grad_bias is None else grad_bias
    return grad_x.clone() if grad_x is grad_y else grad_x, grad_bias


def _fake_backward(grad_y, x, bias, activation, negative_slope, implementation):
    wide = torch.promote_types(x.dtype, torch.float32)
    return torch.empty_like(x), x.new_empty(0 if bias is None else x.shape[1], dtype=wide)


_EPILOGUE = "str activation, float negative_slope, str implementation"
_forward_operator = register(
    f"bias_act(Tensor x, Tensor? bias, {_EPILOGUE}) -> Tensor", _run, _fake
)
_backward_operator = register(
    f"bias_act_backward(Tensor grad_y, Tensor x, Tensor? bias, {_EPILOGUE}) -> (Tensor, Tensor)",
    _run_backward,
    _fake_backward,
)


class BiasAct(torch.autograd.Function):
    """The operator with its derivative."""

    @staticmethod
    def forward(ctx, x, bias, activation, negative_slope, implementation):
        ctx.save_for_backward(x, bias)
        ctx.settings = (activation, negative_slope, implementation)
        return _forward_operator(x, bias, activation, negative_slope, implementation)

    @staticmethod
    def backward(ctx, grad_y):
        x, bias = ctx.saved_tensors
        activation, negative_slope, implementation = ctx.settings
        if torch.is_grad_enabled() or transformed_backward(grad_y):
            grads = _reference_backward(grad_y, x, bias, activation, negative_slope)
        else:
            grad_y = grad_y.contiguous(memory_format=torch.channels_last)
            grads = _backward_operator(grad_y, x, bias, activation, negative_slope, implementation)
        grad_bias = None
        if ctx.needs_input_grad[1]:
            grad_bias = grads[1] if grads[1].dtype == bias.dtype else grads[1].to(bias.dtype)
        return grads[0], grad_bias, None, None, None


def bias_act(
    x: Tensor,
    bias: Tensor | None = None,
    activation: str = "identity",
    negative_slope: float = 0.01,
) -> Tensor:
    """Add a bias along dimension 1 and activate.

    Args:
        x: [N, C, ...], any floating dtype and layout.
        bias: [C] or None; cast to x's dtype.
        activation: "identity", "relu", "leaky_relu", "tanh" or "sigmoid".
        negative_slope: leaky_relu's.

    Returns:
        act(x + bias), of x's shape, dtype and memory format.

    Raises:
        ValueError: the activation is not known, or bias is not [C].
        BackendError: the backend insisted on cannot serve the call.
    """
    check_activation(activation)
    if bias is not None and (x.dim() < 2 or bias.shape != (x.size(1),)):
        raise ValueError(
            f"bias must have shape [{x.shape[1] if x.dim() > 1 else 'C'}] for an input of shape "
            f"{list(x.shape)}, not {list(bias.shape)}"
        )
    many = x.dim() > 1 and x.size(1) > 4
    if native_cpu.too_few(x, FEWEST_BIAS_ACT_ELEMENTS.get((x.dtype, activation, many), 0)):
        return _reference_forward(x, bias, activation, negative_slope)
    implementation = choice(x, bias, activation).chosen
    if implementation == "reference" or x.numel() == 0:
        return _reference_forward(x, bias, activation, negative_slope)
    contiguous = x.is_contiguous()
    x = x.contiguous(memory_format=torch.channels_last)
    call = BiasAct.apply if recorded(x, bias) else _forward_operator
    y = call(x, bias, activation, negative_slope, implementation)
    return y.contiguous() if contiguous else y


def choice(
    x: Tensor,
    bias: Tensor | None = None,
    activation: str = "identity",
    negative_slope: float = 0.01,
) -> Choice:
    """Return what would serve `bias_act` with these arguments."""
    if transformed():
        return choice_when_transformed("bias_act", IMPLEMENTATIONS)
    dimensions = x.dim()
    properties = (
        x.device,
        x.dtype,
        None if bias is None else bias.dtype,
        dimensions,
        x.numel(),
        x.size(1) if dimensions > 1 else 0,
        dimensions == 4 and x.is_contiguous(memory_format=torch.channels_last),
        activation,
        recorded(x, bias),
    )
    return cached_choice("bias_act", IMPLEMENTATIONS, properties, Call._make)
