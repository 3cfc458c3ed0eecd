"""batch_norm_act, bias_act and the losses on drawn cases against float64 torch.

Each check serves the reference and the Triton kernels, on the CPU and on a GPU.
"""

from __future__ import annotations

import pytest
import torch
from drawn import (
    DEVICES,
    activations,
    dtypes,
    layouts,
    maps,
    memory_format,
    normal,
    poisoned,
    seeds,
    slopes,
)
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from tolerances import accumulation, assert_within, epsilon, smallest
from torch.nn import functional as F

from fastgan import ops
from fastgan.objectives import OBJECTIVES
from fastgan.ops.activations import activate


def vector(channels, dtype, seed, device, shift=0.0):
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn(channels, generator=generator) * 0.3 + shift).to(device, dtype)


def largest(tensor):
    return tensor.detach().max().item() if tensor.numel() else 0.0


NORM_CASES = {
    "shape": maps(),
    "layout": st.sampled_from(
        ["contiguous", "channels_last", "transposed", "sliced_channels_last"]
    ),
    "grad_layout": layouts,
    "dtype": dtypes,
    "activation": activations,
    "slope": slopes,
    "training": st.booleans(),
    "groups": st.integers(1, 3),
    "affine": st.booleans(),
    "running": st.booleans(),
    "offset": st.sampled_from([0.0, 0.0, 3.0]),
    "seed": seeds,
}


def check_batch_norm_act(
    backend, device, shape, layout, grad_layout, dtype, activation, slope, training, groups, affine,
    running, offset, seed,
):  # fmt: skip
    n, c, h, w = shape
    count = n // groups * h * w  # values a channel, in one slice
    assume(not training or (n % groups == 0 and count != 1))
    groups = groups if training and n else 1
    running = running or not training
    x = (normal(shape, layout, dtype, seed, device) + offset).requires_grad_()
    g = normal(shape, grad_layout, dtype, seed + 1, device)
    weight = vector(c, torch.float32, seed + 2, device, 1.0).requires_grad_() if affine else None
    bias = vector(c, torch.float32, seed + 3, device).requires_grad_() if affine else None
    mean = vector(c, torch.float32, seed + 4, device) if running else None
    var = vector(c, torch.float32, seed + 5, device).exp() if running else None

    # Exactly: a slice at a time, in float64.
    exact = [
        None if t is None else t.detach().double().cpu().requires_grad_() for t in (x, weight, bias)
    ]
    x64, weight64, bias64 = exact
    mean64, var64 = (None if t is None else t.double().cpu() for t in (mean, var))
    slices = x64.chunk(groups)
    z64 = torch.cat(
        [F.batch_norm(p, mean64, var64, weight64, bias64, training, 0.3, 1e-5) for p in slices]
    )
    if training and n:
        invstd = torch.cat(
            [
                (p.var((0, 2, 3), correction=0, keepdim=True) + 1e-5).rsqrt().expand_as(p)
                for p in slices
            ]
        )
        centre = torch.cat([p.mean((0, 2, 3), keepdim=True).expand_as(p) for p in slices])
    else:
        source = (mean64, var64) if running else (torch.zeros(c), torch.ones(c))
        centre = source[0].double().view(1, c, 1, 1).expand_as(x64)
        invstd = (source[1].double().view(1, c, 1, 1) + 1e-5).rsqrt().expand_as(x64)
    with torch.no_grad():
        # Mean and variance are sums of `count` numbers; their errors are amplified by invstd.
        unit = epsilon(accumulation(dtype))
        values = max(count, 1) + 8 if training else 8
        normalised = (x64 - centre) * invstd
        shift = values * unit * largest(x64.abs() + centre.abs()) * invstd
        if backend == "reference" and not affine and not running:
            # No parameter is float32: torch keeps the statistics in the input's dtype.
            shift = shift + epsilon(dtype) * (centre.abs() + x64.abs()) * invstd
        stretch = values * unit + 2 * shift * largest(normalised.abs())
        scale = weight64.abs().view(1, c, 1, 1) if affine else torch.ones(1, c, 1, 1)
        z_bound = scale * (shift + stretch * normalised.abs()) + 4 * epsilon(dtype) * (
            z64.abs() + scale * normalised.abs()
        )
        z_bound = z_bound + smallest(dtype)
    # Next to relu's and leaky_relu's corner the derivative may honestly be the other one.
    g = torch.where((z64.detach().abs() <= z_bound).to(device), torch.zeros_like(g), g)

    with ops.backend(backend), poisoned():
        y = ops.batch_norm_act(
            x, mean, var, weight, bias, training, 0.3, 1e-5, activation, slope,
            groups,
        )  # fmt: skip
        inputs = [t for t in (x, weight, bias) if t is not None]
        gradients = torch.autograd.grad(y, inputs, g)
    assert y.dtype == dtype
    if min(shape) > 1 and layout in ("contiguous", "channels_last"):
        assert memory_format(y) == layout
    y64 = activate(z64, activation, slope)
    assert_within("y", y, y64, z_bound + 4 * epsilon(dtype) * y64.detach().abs())
    if training and running and n:
        spread = largest(x64.detach().abs()) ** 2 + 1.0
        assert_within("running mean", mean, mean64, 2 * values * groups * unit * spread)
        assert_within("running var", var, var64, 4 * values * groups * unit * spread)

    with torch.no_grad():
        g64 = g.double().cpu()
        # dz is rounded in the reference; what dz's error and xhat's error do to the sums:
        dz = 6 * epsilon(dtype) + values * unit
        size = g64.abs()
        much = scale * invstd * (size + largest(size) * (1 + normalised.abs()))
        x_bound = much * (dz + 4 * (largest(shift) + largest(stretch)))
        x_bound = x_bound * (1 + normalised.abs()) + smallest(dtype)
        total = dz + n * h * w * unit
        weight_bound = (size * (normalised.abs() + 1) * (total + shift + stretch)).sum((0, 2, 3))
        bias_bound = (size * (total + shift + stretch)).sum((0, 2, 3))
    wanted = torch.autograd.grad(y64, [t for t in exact if t is not None], g64)
    assert_within("dx", gradients[0], wanted[0], x_bound)
    if affine:
        assert_within("dweight", gradients[1], wanted[1], weight_bound + smallest(torch.float32))
        assert_within("dbias", gradients[2], wanted[2], bias_bound + smallest(torch.float32))


@pytest.mark.parametrize("device", DEVICES)
@settings(max_examples=500)
@given(**NORM_CASES)
def test_batch_norm_act_reference(device, **case):
    check_batch_norm_act("reference", device, **case)


@pytest.mark.parametrize("device", DEVICES)
@settings(max_examples=60)
@given(**NORM_CASES)
def test_batch_norm_act_triton(device, **case):
    check_batch_norm_act("triton", device, **case)


BIAS_CASES = {
    "shape": maps(),
    "layout": layouts,
    "grad_layout": layouts,
    "dtype": dtypes,
    "activation": activations,
    "slope": slopes,
    "with_bias": st.booleans(),
    "seed": seeds,
}


def check_bias_act(
    backend, device, shape, layout, grad_layout, dtype, activation, slope, with_bias, seed
):
    x = normal(shape, layout, dtype, seed, device).requires_grad_()
    g = normal(shape, grad_layout, dtype, seed + 1, device)
    bias = vector(shape[1], dtype, seed + 2, device).requires_grad_() if with_bias else None
    exact = [None if t is None else t.detach().double().cpu().requires_grad_() for t in (x, bias)]
    z64 = exact[0] if bias is None else exact[0] + exact[1].view(1, -1, 1, 1)
    unit = epsilon(dtype)
    z_bound = 4 * unit * (z64.detach().abs() + exact[0].detach().abs()) + smallest(dtype)
    g = torch.where((z64.detach().abs() <= z_bound).to(device), torch.zeros_like(g), g)
    with ops.backend(backend), poisoned():
        y = ops.bias_act(x, bias, activation, slope)
        inputs = [t for t in (x, bias) if t is not None]
        gradients = torch.autograd.grad(y, inputs, g)
    assert y.dtype == dtype
    if min(shape) > 1 and layout in ("contiguous", "channels_last"):
        assert memory_format(y) == layout
    y64 = activate(z64, activation, slope)
    assert_within("y", y, y64, z_bound + 4 * unit * y64.detach().abs())
    wanted = torch.autograd.grad(y64, [t for t in exact if t is not None], g.double().cpu())
    size = g.double().cpu().abs()
    each = size * (8 * unit + z_bound) + smallest(dtype)
    assert_within("dx", gradients[0], wanted[0], each)
    if with_bias:
        terms = size[:, 0].numel()
        summed = (each + size * terms * epsilon(accumulation(dtype))).sum((0, 2, 3))
        assert_within("dbias", gradients[1], wanted[1], summed + 2 * unit * wanted[1].abs())


@pytest.mark.parametrize("device", DEVICES)
@settings(max_examples=500)
@given(**BIAS_CASES)
def test_bias_act_reference(device, **case):
    check_bias_act("reference", device, **case)


@pytest.mark.parametrize("device", DEVICES)
@settings(max_examples=60)
@given(**BIAS_CASES)
def test_bias_act_triton(device, **case):
    check_bias_act("triton", device, **case)


LOSS_CASES = {
    "objective": st.sampled_from(sorted(OBJECTIVES)),
    "real_count": st.integers(1, 300),
    "fake_count": st.integers(1, 300),
    "dtype": dtypes,
    "strided": st.booleans(),
    "labels": st.sampled_from([(1.0, 0.0), (0.9, 0.1), (1.2, 0.3)]),
    "upstream": st.sampled_from([1.0, 0.5]),
    "seed": seeds,
}


def check_losses(
    backend, device, objective, real_count, fake_count, dtype, strided, labels, upstream, seed
):
    record = OBJECTIVES[objective]
    labels = labels if record.uses_labels else (1.0, 0.0)
    generator = torch.Generator().manual_seed(seed)
    step = 2 if strided else 1
    outputs = []
    for count in (real_count, fake_count):
        values = 2 * torch.randn(step * count, generator=generator)
        if record.operates_on == "probability":
            values = values.sigmoid().clamp(0.05, 0.95)
        outputs.append(values.to(device, dtype)[::step].requires_grad_())
    real, fake = outputs
    exact = [t.detach().double().cpu().requires_grad_() for t in outputs]
    real64, fake64 = exact
    loss64 = record.real(real64, labels[0]).mean() + record.fake(fake64, labels[1]).mean()
    taught64 = record.generator(fake64).mean()
    with ops.backend(backend), poisoned():
        loss, real_mean, fake_mean = ops.discriminator_loss(real, fake, objective, *labels)
        gradients = torch.autograd.grad(loss * upstream, outputs)
        alone = ops.discriminator_loss_and_gradients(real, fake, objective, *labels)
        taught, mean_again = ops.generator_loss(fake, objective)
        (gradient,) = torch.autograd.grad(taught * upstream, fake)
        taught_alone = ops.generator_loss_and_gradient(fake, objective)
    assert loss.dtype == real_mean.dtype == taught.dtype == torch.float32
    assert not real_mean.requires_grad

    # exp(t) turns an error of t, which has an ulp of |t|, into a relative one: hence 1 + |t|.
    unit = epsilon(torch.float32) * (max(real_count, fake_count) + 16)
    steep = 1 + max(real64.abs().max(), fake64.abs().max()).item()
    much = record.real(real64, labels[0]).abs().mean() + record.fake(fake64, labels[1]).abs().mean()
    bound = unit * steep * (much.item() + 1)
    assert_within("loss", loss, loss64, bound)
    assert_within("loss without a graph", alone[0], loss64, bound)
    scores = [t.sigmoid() if record.score == "sigmoid" else t for t in exact]
    assert_within("D(x)", real_mean, scores[0].mean(), unit * (1 + scores[0].abs().max().item()))
    for mean in (fake_mean, mean_again):
        assert_within("D(G(z))", mean, scores[1].mean(), unit * (1 + scores[1].abs().max().item()))
    size = record.generator(fake64).abs().mean().item() + 1
    assert_within("generator's loss", taught, taught64, unit * steep * size)

    wanted = torch.autograd.grad(loss64, exact)
    (wanted_taught,) = torch.autograd.grad(taught64, fake64)
    relative = 4 * epsilon(dtype) + 64 * epsilon(torch.float32) * steep
    for name, actual, gradient64, factor in (
        ("d real", gradients[0], wanted[0], upstream),
        ("d fake", gradients[1], wanted[1], upstream),
        ("d real without a graph", alone[3], wanted[0], 1.0),
        ("d fake without a graph", alone[4], wanted[1], 1.0),
        ("generator's", gradient, wanted_taught, upstream),
        ("generator's without a graph", taught_alone[2], wanted_taught, 1.0),
    ):
        # A derivative like sigmoid(t) - 1 may cancel: its error is an ulp of 1, over the count.
        ulp = 8 * epsilon(torch.float32) * steep / actual.numel() + smallest_step(dtype)
        assert_within(name, actual, factor * gradient64, relative * gradient64.abs() + ulp)


def smallest_step(dtype: torch.dtype) -> float:
    """The spacing of subnormal numbers: float16 gradients over a count of hundreds come near."""
    return torch.finfo(dtype).smallest_normal * epsilon(dtype)


@pytest.mark.parametrize("device", DEVICES)
@settings(max_examples=500)
@given(**LOSS_CASES)
def test_losses_reference(device, **case):
    check_losses("reference", device, **case)


@pytest.mark.parametrize("device", DEVICES)
@settings(max_examples=60)
@given(**LOSS_CASES)
def test_losses_triton(device, **case):
    check_losses("triton", device, **case)
