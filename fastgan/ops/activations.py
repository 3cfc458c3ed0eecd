"""The activations that operators fold into themselves, as data.

Each record gives the function and its derivative twice: from the input z, where an operator keeps z
(batch norm recomputes it), and from the output y, where it keeps y (a convolution's epilogue). All
are written in differentiable torch functions, so the derivative of a derivative is right too.
At 0 relu and leaky_relu have the derivative from the left, as torch has it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F


@dataclass(frozen=True)
class Activation:
    """An elementwise function; `slope` is leaky_relu's and ignored by the others."""

    name: str
    apply: Callable[[Tensor, float], Tensor]
    #: (grad, z, slope) -> the gradient at z, differentiable in grad and z.
    backward_from_input: Callable[[Tensor, Tensor, float], Tensor]
    #: (grad, y, slope) -> the same from the output y.
    backward_from_output: Callable[[Tensor, Tensor, float], Tensor]


def _relu_backward(grad: Tensor, y_or_z: Tensor, slope: float) -> Tensor:
    return torch.where(y_or_z <= 0, 0, grad)


def _leaky_relu_backward(grad: Tensor, y_or_z: Tensor, slope: float) -> Tensor:
    return torch.where(y_or_z > 0, grad, grad * slope)


def _tanh_backward(grad: Tensor, y: Tensor, slope: float) -> Tensor:
    return grad * (1 - y * y)


def _sigmoid_backward(grad: Tensor, y: Tensor, slope: float) -> Tensor:
    return grad * (y * (1 - y))


def _identity_backward(grad: Tensor, y_or_z: Tensor, slope: float) -> Tensor:
    return grad


ACTIVATIONS: dict[str, Activation] = {
    activation.name: activation
    for activation in (
        Activation("identity", lambda z, slope: z, _identity_backward, _identity_backward),
        Activation("relu", lambda z, slope: F.relu(z), _relu_backward, _relu_backward),
        Activation(
            "leaky_relu",
            lambda z, slope: F.leaky_relu(z, slope),
            _leaky_relu_backward,
            _leaky_relu_backward,
        ),
        Activation(
            "tanh",
            lambda z, slope: torch.tanh(z),
            lambda grad, z, slope: _tanh_backward(grad, torch.tanh(z), slope),
            _tanh_backward,
        ),
        Activation(
            "sigmoid",
            lambda z, slope: torch.sigmoid(z),
            lambda grad, z, slope: _sigmoid_backward(grad, torch.sigmoid(z), slope),
            _sigmoid_backward,
        ),
    )
}


def activate(z: Tensor, activation: str, negative_slope: float) -> Tensor:
    """Apply the activation called `activation` with torch's own function for it."""
    return ACTIVATIONS[activation].apply(z, negative_slope)


def check_activation(activation: str) -> None:
    """Raise ValueError unless `activation` is a name in `ACTIVATIONS`."""
    if activation not in ACTIVATIONS:
        raise ValueError(
            f"activation={activation!r} is not known; allowed: {', '.join(ACTIVATIONS)}"
        )
