"""The activations that kernels fold into their epilogues, and the derivatives of them.

Device functions, called from other kernels on float32 tiles. NaN passes through each of them as it
passes through its torch twin.
"""

from __future__ import annotations

import triton
import triton.language as tl

ACTIVATIONS = ("identity", "relu", "leaky_relu", "tanh", "sigmoid")


@triton.jit
def sigmoid(z):
    """1 / (1 + exp(-z)), without overflow at either end."""
    decayed = tl.exp(-tl.abs(z))
    return tl.where(z >= 0, 1.0, decayed) / (1.0 + decayed)


@triton.jit
def tanh(z):
    """tanh to float32 accuracy at every magnitude.

    Below 0.625 the odd polynomial of Cephes' tanhf, above it 1 − 2 / (exp(2|z|) + 1): the quotient
    alone would lose every digit of a small z to cancellation.
    """
    square = tl.minimum(z * z, 0.390625)
    odd = -5.70498872745e-3 * square + 2.06390887954e-2
    odd = odd * square - 5.37397155531e-2
    odd = odd * square + 1.33314422036e-1
    odd = odd * square - 3.33332819422e-1
    magnitude = tl.abs(z)
    decayed = tl.exp(-2.0 * magnitude)
    far = 1.0 - 2.0 * decayed / (1.0 + decayed)
    return tl.where(magnitude < 0.625, odd * square * z + z, tl.where(z < 0, -far, far))


@triton.jit
def activate(z, negative_slope, ACTIVATION: tl.constexpr):
    """The activation of a float32 tile.

    Args:
        z: pre-activation, any shape, float32.
        negative_slope: of leaky_relu; unused by the others.
        ACTIVATION: a name in `ACTIVATIONS`.
    """
    if ACTIVATION == "relu":
        z = tl.where(z <= 0, 0.0, z)
    elif ACTIVATION == "leaky_relu":
        z = tl.where(z > 0, z, z * negative_slope)
    elif ACTIVATION == "tanh":
        z = tanh(z)
    elif ACTIVATION == "sigmoid":
        z = sigmoid(z)
    return z


@triton.jit
def activation_backward(grad, z, negative_slope, ACTIVATION: tl.constexpr):
    """The gradient at the pre-activation: `grad` times the activation's derivative at `z`.

    Args:
        grad: gradient at the activation's output, float32, of `z`'s shape.
        z: pre-activation, float32; relu's and leaky_relu's derivative at 0 is the left one,
            as torch has it.
        negative_slope: of leaky_relu; unused by the others.
        ACTIVATION: a name in `ACTIVATIONS`.
    """
    if ACTIVATION == "relu":
        grad = tl.where(z <= 0, 0.0, grad)
    elif ACTIVATION == "leaky_relu":
        grad = tl.where(z > 0, grad, grad * negative_slope)
    elif ACTIVATION == "tanh":
        y = tanh(z)
        grad = grad * (1.0 - y * y)
    elif ACTIVATION == "sigmoid":
        y = sigmoid(z)
        grad = grad * (y * (1.0 - y))
    return grad
