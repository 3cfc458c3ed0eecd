"""conv2d and conv_transpose2d, forward and first derivatives, on drawn cases against float64 torch.

The same code holds the reference (plain torch and the matrix products) and the Triton kernels, on
the CPU (through Triton's interpreter) and on a GPU.
"""

from __future__ import annotations

import pytest
import torch
from drawn import (
    DEVICES,
    Geometry,
    activations,
    dtypes,
    geometries,
    layouts,
    memory_format,
    normal,
    poisoned,
    seeds,
    slopes,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from tolerances import assert_within, epsilon, sum_of_products
from torch import Tensor
from torch.nn import functional as F

from fastgan import ops
from fastgan.ops.activations import ACTIVATIONS, activate
from fastgan.ops.convolution import regular

CASES = {
    "geometry": geometries(),
    "layout": layouts,
    "weight_layout": st.sampled_from(["contiguous", "channels_last", "transposed", "sliced"]),
    "grad_layout": layouts,
    "dtype": dtypes,
    "activation": activations,
    "slope": slopes,
    "with_bias": st.booleans(),
    "seed": seeds,
}


def convolve(
    transposed: bool, geometry: Geometry, x: Tensor, w: Tensor, b: Tensor | None
) -> Tensor:
    if transposed:
        return F.conv_transpose2d(
            x, w, b, geometry.stride, geometry.padding, geometry.output_padding
        )
    return F.conv2d(x, w, b, geometry.stride, geometry.padding)


def check(
    transposed, backend, device, geometry, layout, weight_layout, grad_layout, dtype, activation,
    slope, with_bias, seed,
):  # fmt: skip
    shapes = (geometry.small_shape, geometry.big_shape)
    x_shape, y_shape = shapes if transposed else shapes[::-1]
    x = normal(x_shape, layout, dtype, seed, device).requires_grad_()
    w = normal(geometry.weight_shape, weight_layout, dtype, seed + 1, device).requires_grad_()
    b = normal((1, y_shape[1], 1, 1), "contiguous", dtype, seed + 2, device).flatten() + 0.5
    b = b.detach().requires_grad_() if with_bias else None
    g = normal(y_shape, grad_layout, dtype, seed + 3, device)
    inputs = [tensor for tensor in (x, w, b) if tensor is not None]

    operator = ops.conv_transpose2d if transposed else ops.conv2d
    extra = {"output_padding": geometry.output_padding} if transposed else {}
    with ops.backend(backend), poisoned():
        y = operator(
            x, w, b, geometry.stride, geometry.padding, activation=activation,
            negative_slope=slope, **extra,
        )  # fmt: skip
        gradients = torch.autograd.grad(y, inputs, g)
    assert y.dtype == dtype
    assert all(grad.dtype == tensor.dtype for grad, tensor in zip(gradients, inputs, strict=True))
    twin = convolve(transposed, geometry, x, regular(w), b)
    if 1 not in y.shape:
        assert memory_format(y) == memory_format(twin)

    # Forward: the activations have slopes of at most 1, so the pre-activation's bound holds.
    exact = [None if t is None else t.detach().double().cpu().contiguous() for t in (x, w, b)]
    size = [None if t is None else t.abs() for t in exact]
    z = convolve(transposed, geometry, *exact)
    magnitude = convolve(transposed, geometry, *size)
    taps = geometry.kernel[0] * geometry.kernel[1]
    terms = taps * x_shape[1] + 1
    bound = sum_of_products(dtype, terms, magnitude, roundings=2)
    y64 = activate(z, activation, slope)
    assert_within("y", y, y64, bound + 4 * epsilon(dtype) * y64.abs())

    # Backward, from the derivative that can be read off the y of this very run.
    backward = ACTIVATIONS[activation].backward_from_output
    g64 = g.double().cpu()
    dz = backward(g64, y.detach().double().cpu(), slope)
    leaves = [t.requires_grad_() for t in exact if t is not None]
    linear = convolve(transposed, geometry, *[None if t is None else t for t in exact])
    wanted = torch.autograd.grad(linear, leaves, dz)
    leaves = [t.requires_grad_() for t in size if t is not None]
    linear = convolve(transposed, geometry, *size)
    magnitudes = torch.autograd.grad(linear, leaves, g64.abs())
    pixels = y_shape[0] * y_shape[2] * y_shape[3]
    counts = (taps * y_shape[1], pixels, pixels)
    for name, actual, gradient, much, count in zip(
        ("dx", "dw", "db"), gradients, wanted, magnitudes, counts, strict=False
    ):
        if name == "dw" and backend == "reference" and dtype != torch.float32 and device == "cpu":
            # torch 2.13 (oneDNN) leaves uninitialised memory in the gradient of taps that see
            # nothing but padding. Ours are zero; of the reference only the others are held to it.
            actual = torch.where(much == 0, 0, actual)
        # dz is rounded on its way, and tanh's and sigmoid's derivative is taken of a rounded y.
        assert_within(name, actual, gradient, sum_of_products(dtype, count, much, roundings=6))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("transposed", [False, True], ids=["conv2d", "conv_transpose2d"])
@settings(max_examples=500)
@given(**CASES)
def test_reference_on_drawn_cases(transposed, device, **case):
    check(transposed, "reference", device, **case)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("transposed", [False, True], ids=["conv2d", "conv_transpose2d"])
@settings(max_examples=60)
@given(**{**CASES, "geometry": geometries(multiply_adds=15_000)})
def test_triton_on_drawn_cases(transposed, device, **case):
    check(transposed, "triton", device, **case)


@st.composite
def products(draw: st.DrawFn) -> Geometry:
    """Stems and heads: one unpadded pixel on the small side."""
    kernel = draw(st.tuples(st.integers(1, 5), st.integers(1, 5)))
    channels = st.integers(1, 40)
    return Geometry(
        draw(st.integers(0, 5)), draw(channels), draw(channels), (1, 1), kernel,
        draw(st.tuples(st.integers(1, 3), st.integers(1, 3))), (0, 0), (0, 0),
    )  # fmt: skip


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("transposed", [False, True], ids=["conv2d", "conv_transpose2d"])
@settings(max_examples=100)
@given(**{**CASES, "geometry": products()})
def test_matrix_products_on_drawn_stems_and_heads(transposed, device, **case):
    check(transposed, "matmul", device, **case)
