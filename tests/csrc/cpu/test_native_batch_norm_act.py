"""Batch norm + activation and bias + activation at every level against float64 torch."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from native_cases import (
    ACTIVATIONS,
    DTYPES,
    SLOPE,
    U,
    activated,
    activation_bound,
    channels,
    dense,
    normal,
)
from tolerances import assert_within, epsilon
from torch.nn import functional as F

from fastgan import native_kernels

EPS, MOMENTUM = 1e-5, 0.1


def check_batch_norm_act(
    groups, images, c, size, dtype, activation, training, affine, offset
) -> None:
    """Forward and backward, and the running statistics, against float64."""
    if images * size[0] * size[1] < 2:
        images = 2
    n = images * groups
    x = (normal((n, c, *size), torch.float32, 1) * 1.5 + offset).to(dtype)
    grad_y = normal((n, c, *size), dtype, 2)
    weight = normal((c,), torch.float32, 3) if affine else None
    bias = normal((c,), torch.float32, 4) if affine else None
    running_mean, running_var = normal((c,), torch.float32, 5), normal((c,), torch.float32, 6) ** 2
    running_var += 0.5

    exact_x = x.double().requires_grad_()
    parameters = [None if p is None else p.double().requires_grad_() for p in (weight, bias)]
    exact_running = [running_mean.double(), running_var.double()]
    if not training:
        groups = 1
    parts = exact_x.reshape(groups, n // groups, c, *size)
    over = (1, 3, 4)
    if training:
        mean = parts.mean(over)
        invstd = (parts.var(over, unbiased=False) + EPS).rsqrt()
        rows = parts.numel() // (groups * c)
        for group in range(groups):
            unbiased = parts[group].var((0, 2, 3), unbiased=True)
            for running, fresh in zip(exact_running, (mean[group], unbiased), strict=True):
                running.mul_(1 - MOMENTUM).add_(MOMENTUM * fresh.detach())
    else:
        mean, invstd = exact_running[0][None], (exact_running[1] + EPS).rsqrt()[None]
        rows = 1

    def spread(statistic):
        return statistic[:, None, :, None, None]

    normalised = (parts - spread(mean)) * spread(invstd)
    scale = 1.0 if weight is None else parameters[0].view(-1, 1, 1)
    shift = 0.0 if bias is None else parameters[1].view(-1, 1, 1)
    z = normalised * scale + shift

    # x - mean errs by u of |mean| and of the sum that made it; the rest by u an operation.
    steps = math.sqrt(rows) + 16
    reach = (parts - spread(mean)).abs().amax(over)
    size_of_mean = spread(invstd * (mean.abs() + reach)).detach()
    normal_bound = steps * U * (normalised.abs().detach() + size_of_mean)
    weight_size = 1.0 if weight is None else weight.double().abs().view(-1, 1, 1)
    bias_size = 0.0 if bias is None else bias.double().abs().view(-1, 1, 1)
    z_bound = normal_bound * weight_size + 4 * U * (z.abs().detach() + bias_size)
    # Where z may lie on either side of a kink, the derivative is not determined: no gradient there.
    kink = (z.detach().abs() <= z_bound).reshape(x.shape)
    grad_y = dense(grad_y.masked_fill(kink, 0.0))
    y = activated(z, activation)

    if training:
        got, got_mean, got_invstd = native_kernels.forward_training(
            x, running_mean, running_var, weight, bias, momentum=MOMENTUM, eps=EPS,
            activation=activation, negative_slope=SLOPE, stat_groups=groups,
        )  # fmt: skip
        assert_within("mean", got_mean, mean, steps * U * (mean.abs() + reach))
        assert_within("invstd", got_invstd, invstd, steps * U * invstd)
        largest = [mean.abs().amax(0) + reach.amax(0), (1 / invstd**2).amax(0)]
        for name, got_running, running, wide in zip(
            ("running_mean", "running_var"), (running_mean, running_var), exact_running, largest,
            strict=True,
        ):  # fmt: skip
            bound = steps * U * (running.abs() + groups * MOMENTUM * wide)
            assert_within(name, got_running, running, bound)
    else:
        got = native_kernels.forward_inference(
            x, running_mean, running_var, weight, bias,
            eps=EPS, activation=activation, negative_slope=SLOPE,
        )  # fmt: skip
        got_mean, got_invstd = running_mean[None], (running_var + EPS).rsqrt()[None]
    exact_y = y.detach().reshape(x.shape)
    assert_within("y", got, exact_y, activation_bound(exact_y, z_bound.reshape(x.shape), dtype))

    upstream = grad_y.double().reshape(parts.shape)
    g = torch.autograd.grad(y, z, upstream, retain_graph=True)[0]
    wanted = [exact_x, *(p for p in parameters if p is not None)]
    exact = torch.autograd.grad(y, wanted, upstream)
    grad_x, grad_weight, grad_bias = native_kernels.backward(
        grad_y, x, got_mean, got_invstd, weight, bias, activation=activation,
        negative_slope=SLOPE, stat_groups=groups, training=training,
    )  # fmt: skip
    rows = n // groups * size[0] * size[1]
    steps = rows / 8 + 64  # sums run in blocks: at most an eighth of the rows one after the other
    scale_size = (spread(invstd) * weight_size).detach()
    hat = normalised.detach().abs()
    g_bound = upstream.abs() * (z_bound + 16 * U)
    product_bound = g.abs() * normal_bound + g_bound * hat + steps * U * (g * hat).abs()
    bound = g_bound + steps * U * g.abs()
    if training:
        sums = (1, 3, 4)
        bound = bound + (g_bound + steps * U * g.abs()).mean(sums, keepdim=True)
        bound = bound + (hat + normal_bound) * product_bound.mean(sums, keepdim=True)
        bound = bound + (normal_bound + steps * U * hat) * (g * hat).abs().mean(sums, keepdim=True)
    bound = (scale_size * bound).reshape(x.shape) + 2 * epsilon(dtype) * exact[0].abs()
    assert_within("grad_x", grad_x, exact[0], bound + torch.finfo(dtype).smallest_normal)
    exact_bias = g.sum((0, 1, 3, 4))
    exact_weight = (g * normalised.detach()).sum((0, 1, 3, 4))
    over_all = (0, 1, 3, 4)
    bias_bound = (g_bound + steps * U * g.abs()).sum(over_all)
    assert_within("grad_bias", grad_bias, exact_bias, bias_bound + 1e-30)
    assert_within("grad_weight", grad_weight, exact_weight, product_bound.sum(over_all) + 1e-30)


@settings(max_examples=500)
@given(
    groups=st.integers(1, 3),
    images=st.integers(1, 4),
    c=channels,
    size=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    dtype=st.sampled_from(DTYPES),
    activation=st.sampled_from(ACTIVATIONS),
    training=st.booleans(),
    affine=st.booleans(),
    offset=st.sampled_from([0.0, 0.5, -30.0]),
)
def test_batch_norm_act_is_exact_up_to_rounding(
    level, groups, images, c, size, dtype, activation, training, affine, offset
) -> None:
    check_batch_norm_act(groups, images, c, size, dtype, activation, training, affine, offset)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("channels", [16, 130])
def test_large_tensors_are_cut_into_tasks_that_add_up(level, channels, dtype) -> None:
    """Tasks are of 256 KB: several a group, whose partial results are merged."""
    images = 3_000_000 // (2 * channels * 16 * 17 * dtype.itemsize)
    check_batch_norm_act(2, images, channels, (16, 17), dtype, "leaky_relu", True, True, -30.0)


@settings(max_examples=500)
@given(
    shape=st.one_of(
        st.tuples(st.integers(1, 9), channels, st.integers(1, 9), st.integers(1, 9)),
        st.tuples(st.integers(1, 70), channels),
    ),
    dtype=st.sampled_from(DTYPES),
    activation=st.sampled_from(ACTIVATIONS),
    has_bias=st.booleans(),
)
def test_bias_act_is_exact_up_to_rounding(level, shape, dtype, activation, has_bias) -> None:
    x, grad_y = normal(shape, dtype, 1), normal(shape, dtype, 2)
    bias = normal((shape[1],), torch.float32, 3) if has_bias else None
    shift = 0.0 if bias is None else bias.double().view(1, -1, *(1,) * (len(shape) - 2))
    z = (x.double() + shift).requires_grad_()
    z_bound = U * (z.detach().abs() + (0.0 if bias is None else shift.abs()))
    grad_y = dense(grad_y.masked_fill(z.detach().abs() <= z_bound, 0.0))
    y = activated(z, activation)
    call = {"activation": activation, "negative_slope": SLOPE}
    got = native_kernels.bias_act_forward(x, bias, **call)
    assert_within("y", got, y, activation_bound(y.detach(), z_bound, dtype))
    exact = torch.autograd.grad(y, z, grad_y.double())[0]
    grad_x, grad_bias = native_kernels.bias_act_backward(grad_y, x, bias, **call)
    bound = grad_y.double().abs() * (z_bound + 16 * U)
    allowed = bound + epsilon(dtype) * exact.abs() + torch.finfo(dtype).smallest_normal
    assert_within("grad_x", grad_x, exact, allowed)
    if bias is None:
        assert grad_bias is None
        return
    over = [dim for dim in range(len(shape)) if dim != 1]
    rows = x.numel() // shape[1]
    bound = (bound + (rows / 8 + 64) * U * exact.abs()).sum(over)
    assert_within("grad_bias", grad_bias, exact.sum(over), bound + 1e-30)


def test_statistics_of_a_large_offset_keep_their_digits(level) -> None:
    """E[x^2] - E[x]^2 would leave nothing of this variance."""
    x = (normal((8, 20, 16, 16), torch.float64, 1) + 4096.0).float()
    x = dense(x)
    _, _, invstd = native_kernels.forward_training(
        x, None, None, None, None, momentum=MOMENTUM, eps=EPS,
        activation="identity", negative_slope=SLOPE, stat_groups=1,
    )  # fmt: skip
    exact = (x.double().var((0, 2, 3), unbiased=False) + EPS).rsqrt()[None]
    assert_within("invstd", invstd, exact, 64 * U * exact)


def test_running_statistics_of_any_dtype_advance(level) -> None:
    x = normal((4, 6, 3, 3), torch.bfloat16, 1)
    running = [torch.zeros(6, dtype=torch.float64), torch.ones(6, dtype=torch.float64)]
    expected = [tensor.clone() for tensor in running]
    native_kernels.forward_training(
        x, *running, None, None, momentum=MOMENTUM, eps=EPS,
        activation="relu", negative_slope=SLOPE, stat_groups=1,
    )  # fmt: skip
    F.batch_norm(x.double(), *expected, training=True, momentum=MOMENTUM, eps=EPS)
    for got, exact in zip(running, expected, strict=True):
        assert_within("running", got, exact, 32 * U * (exact.abs() + 1))


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_nan_and_infinity_come_through_as_in_torch(level, activation) -> None:
    values = [math.nan, math.inf, -math.inf, 0.0, -0.0, 1e30, -1e30, 100.0, -100.0, 1e-30]
    x = torch.tensor(values).repeat(5).view(-1, 1)
    got = native_kernels.bias_act_forward(x, None, activation=activation, negative_slope=SLOPE)
    torch.testing.assert_close(got, activated(x, activation), equal_nan=True, rtol=4 * U, atol=0)
