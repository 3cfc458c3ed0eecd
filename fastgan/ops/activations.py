"""The activations that operators fold into themselves, as data.

Each record gives the function, also in place, and its derivative twice: from the input z, where an
operator keeps z (batch norm recomputes it), and from the output y, where it keeps y (a
convolution's epilogue). All are torch functions with derivatives of their own, so the derivative of
a derivative is right too.
At 0 relu and leaky_relu have the derivative from the left, as torch has it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

aten = torch.ops.aten


@dataclass(frozen=True)
class Activation:
    """An elementwise function; `slope` is leaky_relu's and ignored by the others."""

    name: str
    apply: Callable[[Tensor, float], Tensor]
    #: The same on a tensor that nobody else needs; without a derivative for leaky_relu.
    apply_in_place: Callable[[Tensor, float], Tensor]
    #: (grad, z, slope) -> the gradient at z.
    backward_from_input: Callable[[Tensor, Tensor, float], Tensor]
    #: (grad, y, slope) -> the same, read off the output; for leaky_relu slope must be >= 0.
    backward_from_output: Callable[[Tensor, Tensor, float], Tensor]
    #: The same, written over grad; without a derivative.
    backward_in_place: Callable[[Tensor, Tensor, float], Tensor]


def _identity_backward(grad: Tensor, y_or_z: Tensor, slope: float) -> Tensor:
    return grad


def _relu_backward(grad: Tensor, y_or_z: Tensor, slope: float) -> Tensor:
    return aten.threshold_backward(grad, y_or_z, 0)


def _tanh_backward(grad: Tensor, y: Tensor, slope: float) -> Tensor:
    return aten.tanh_backward(grad, y)


def _sigmoid_backward(grad: Tensor, y: Tensor, slope: float) -> Tensor:
    return aten.sigmoid_backward(grad, y)


_ALL = (
    Activation(
        "identity",
        apply=lambda z, slope: z,
        apply_in_place=lambda z, slope: z,
        backward_from_input=_identity_backward,
        backward_from_output=_identity_backward,
        backward_in_place=_identity_backward,
    ),
    Activation(
        "relu",
        apply=lambda z, slope: torch.relu(z),
        apply_in_place=lambda z, slope: torch.relu_(z),
        backward_from_input=_relu_backward,
        backward_from_output=_relu_backward,
        backward_in_place=lambda g, y, slope: aten.threshold_backward(g, y, 0, grad_input=g),
    ),
    Activation(
        "leaky_relu",
        apply=lambda z, slope: F.leaky_relu(z, slope),
        apply_in_place=lambda z, slope: F.leaky_relu_(z, slope),
        backward_from_input=lambda g, z, slope: aten.leaky_relu_backward(g, z, slope, False),
        backward_from_output=lambda g, y, slope: aten.leaky_relu_backward(g, y, slope, True),
        backward_in_place=lambda g, y, slope: aten.leaky_relu_backward(
            g, y, slope, True, grad_input=g
        ),
    ),
    Activation(
        "tanh",
        apply=lambda z, slope: torch.tanh(z),
        apply_in_place=lambda z, slope: z.tanh_(),
        backward_from_input=lambda g, z, slope: _tanh_backward(g, torch.tanh(z), slope),
        backward_from_output=_tanh_backward,
        backward_in_place=lambda g, y, slope: aten.tanh_backward(g, y, grad_input=g),
    ),
    Activation(
        "sigmoid",
        apply=lambda z, slope: torch.sigmoid(z),
        apply_in_place=lambda z, slope: z.sigmoid_(),
        backward_from_input=lambda g, z, slope: _sigmoid_backward(g, torch.sigmoid(z), slope),
        backward_from_output=_sigmoid_backward,
        backward_in_place=lambda g, y, slope: aten.sigmoid_backward(g, y, grad_input=g),
    ),
)

ACTIVATIONS: dict[str, Activation] = {activation.name: activation for activation in _ALL}


def activate(z: Tensor, activation: str, negative_slope: float) -> Tensor:
    """Apply the activation called `activation` with torch's own function for it."""
    if activation == "identity":
        return z
    return ACTIVATIONS[activation].apply(z, negative_slope)


def activate_fresh(z: Tensor, activation: str, negative_slope: float) -> Tensor:
    """Activate a tensor that was just made and that no derivative needs: in place if possible.

    One tensor less than `activate` makes. What is written over the result afterwards must not be
    what the derivative reads, unless it is with `activate` too: leaky_relu's is its input there.
    """
    if activation == "identity":
        return z
    if activation == "leaky_relu" and z.requires_grad:
        return F.leaky_relu(z, negative_slope)
    return ACTIVATIONS[activation].apply_in_place(z, negative_slope)


def check_activation(activation: str) -> None:
    """Raise ValueError unless `activation` is a name in `ACTIVATIONS`."""
    if activation not in ACTIVATIONS:
        allowed = ", ".join(ACTIVATIONS)
        raise ValueError(f"activation={activation!r} is not known; allowed: {allowed}")
