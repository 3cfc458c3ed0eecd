"""Bias + activation kernels against float64 torch."""

from __future__ import annotations

import math

import pytest
import torch
from conv_cases import DEVICES
from pixel_cases import ACTIVATED, DTYPES, SLOPE, channel_vector, channels_last, poisoned_buffers
from tolerances import assert_within, epsilon, smallest

from fastgan.kernels import bias_act
from fastgan.kernels.channels_last import Tile

U = epsilon(torch.float32)
SHAPES = (
    (4, 3, 16, 16),  # an image: folded
    (2, 64, 4, 4),
    (2, 130, 3, 5),
    (1, 1, 1, 1),
    (5, 7, 3, 3),  # odd: no folding possible
    (3, 100, 1, 1),
)


def check(shape, dtype, device, monkeypatch, activation, bias_dtype=torch.float32):
    x, grad_y = (channels_last(shape, dtype, device, seed) for seed in (0, 1))
    bias = None if bias_dtype is None else channel_vector(shape[1], device, 2, bias_dtype)
    settings = {"activation": activation, "negative_slope": SLOPE}
    # A sum that rounding may push over the kink has no gradient to compare.
    z = x.double() + (0 if bias is None else bias.double()[:, None, None])
    z_error = U * z.abs()
    grad_y = torch.where(z.abs() <= 1e-6, 0, grad_y).to(dtype)
    grad_y = grad_y.contiguous(memory_format=torch.channels_last)
    with poisoned_buffers(monkeypatch):
        y = bias_act.forward(x, bias, **settings)
        grad_x, grad_bias = bias_act.backward(grad_y, x, bias, **settings)
    expected = ACTIVATED[activation](z.requires_grad_())
    (expected_grad,) = torch.autograd.grad(expected, z, grad_y.double())

    assert y.dtype == grad_x.dtype == dtype
    assert y.stride() == grad_x.stride() == x.stride()
    bound = z_error + (8 * U + epsilon(dtype)) * expected.abs() + smallest(dtype)
    assert_within("y", y, expected, bound)
    # The derivatives' own derivatives are at most 1.
    exact_error = 8 * U * expected_grad.abs() + grad_y.double().abs() * (z_error + 8 * U)
    bound = exact_error + epsilon(dtype) * expected_grad.abs() + smallest(dtype)
    assert_within("grad_x", grad_x, expected_grad, bound)
    if bias is None:
        assert grad_bias is None
        return
    steps = math.sqrt(x.numel() / shape[1]) + 16
    bound = exact_error + steps * U * expected_grad.abs()
    assert_within("grad_bias", grad_bias, expected_grad.sum((0, 2, 3)), bound.sum((0, 2, 3)))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("activation", ["leaky_relu", "tanh"])
def test_shapes(shape, activation, device, monkeypatch):
    check(shape, torch.float32, device, monkeypatch, activation)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("activation", ACTIVATED)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_dtypes_and_activations(activation, dtype, device, monkeypatch):
    check(SHAPES[0], dtype, device, monkeypatch, activation)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("bias_dtype", [None, torch.bfloat16], ids=str)
def test_no_bias_and_bias_of_the_data_type(bias_dtype, device, monkeypatch):
    check(SHAPES[1], torch.bfloat16, device, monkeypatch, "relu", bias_dtype)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("shape", SHAPES[:3], ids=str)
def test_many_small_tiles_and_same_bits_from_run_to_run(shape, device, monkeypatch):
    for size in (2, 4):
        monkeypatch.setitem(bias_act.TILES, size, Tile(16, 16, 4))
    check(shape, torch.float32, device, monkeypatch, "tanh")
    x, grad_y = (channels_last(shape, torch.bfloat16, device, seed) for seed in (0, 1))
    bias = channel_vector(shape[1], device, 2)
    settings = {"activation": "sigmoid", "negative_slope": SLOPE}
    first, second = (bias_act.backward(grad_y, x, bias, **settings) for _ in range(2))
    assert torch.equal(first[0], second[0])
    assert torch.equal(first[1], second[1])


@pytest.mark.parametrize("device", DEVICES)
def test_activations_keep_nan_and_infinity(device):
    values = torch.tensor([math.nan, math.inf, -math.inf, 0.0, -0.0, 1e-30, 88.0, -88.0, 1e4, -1e4])
    x = values.to(device).reshape(1, 1, 1, -1).contiguous(memory_format=torch.channels_last)
    for activation, function in ACTIVATED.items():
        y = bias_act.forward(x, None, activation=activation, negative_slope=SLOPE)
        torch.testing.assert_close(y, function(x), equal_nan=True, rtol=8 * U, atol=0)


@pytest.mark.parametrize("device", DEVICES)
def test_empty_batch(device):
    x = torch.empty(0, 5, 4, 4, device=device).contiguous(memory_format=torch.channels_last)
    bias = torch.ones(5, device=device)
    settings = {"activation": "relu", "negative_slope": SLOPE}
    assert bias_act.forward(x, bias, **settings).shape == x.shape
    grad_x, grad_bias = bias_act.backward(x, x, bias, **settings)
    assert grad_x.shape == x.shape
    assert torch.equal(grad_bias, torch.zeros_like(bias))


@pytest.mark.gpu
def test_more_elements_than_32_bits_count():
    x = torch.randn(16, 64, 64, 64, device="cuda", dtype=torch.bfloat16)
    x = x.repeat(513, 1, 1, 1).contiguous(memory_format=torch.channels_last)
    assert x.numel() > 2**31
    bias = torch.randn(64, device="cuda")
    settings = {"activation": "tanh", "negative_slope": SLOPE}
    y = bias_act.forward(x, bias, **settings)
    assert torch.equal(y[-16:], y[:16])
    grad_x, _ = bias_act.backward(y, x, bias, **settings)
    assert torch.equal(grad_x[-16:], grad_x[:16])
