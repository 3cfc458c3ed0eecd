"""First and second derivatives of every operator in float64, and what autograd must not compute.

The formulas of the autograd Functions are what is checked: they run here over operators that are
computed by the reference in float64, and are the same over Triton's kernels.
"""

from __future__ import annotations

import pytest
import torch
from drawn import ACTIVATIONS, DEVICES
from torch.autograd import gradcheck, gradgradcheck

from fastgan import ops
from fastgan.objectives import OBJECTIVES
from fastgan.ops.adversarial_loss import DiscriminatorLoss, GeneratorLoss
from fastgan.ops.batch_norm_act import BatchNormAct
from fastgan.ops.bias_act import BiasAct
from fastgan.ops.convolution_autograd import dgrad, fprop, wgrad

GEOMETRIES = [((2, 1), (1, 0), (3, 2)), ((3, 2), (0, 2), (4, 3)), ((1, 1), (1, 1), (3, 3))]


def normal(*shape):
    generator = torch.Generator().manual_seed(sum(shape))
    return torch.randn(shape, generator=generator, dtype=torch.float64).requires_grad_()


def check_twice(function, inputs):
    assert gradcheck(function, inputs)
    assert gradgradcheck(function, inputs)


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize(("stride", "padding", "kernel"), GEOMETRIES)
def test_convolutions_are_right_to_second_order(stride, padding, kernel, activation):
    epilogue = {"activation": activation, "negative_slope": 0.2, "implementation": "reference"}
    big, w, b = normal(2, 2, 5, 6), normal(3, 2, *kernel), normal(3)
    place = {"stride": stride, "padding": padding}
    check_twice(lambda x, w, b: fprop(x, w, b, **place, **epilogue), (big, w, b))
    small = fprop(big, w, b, **place, implementation="reference").detach().requires_grad_()
    size = {"big_size": (5, 6)}
    check_twice(lambda x, w, b: dgrad(x, w, b, **size, **place, **epilogue), (small, w, normal(2)))
    if activation == "identity":
        of = {"kernel_size": kernel, "implementation": "reference"}
        check_twice(lambda x, y: wgrad(x, y, **place, **of), (big, small))


def test_a_third_derivative_of_a_convolution_is_torchs():
    x, w = normal(2, 2, 5, 5), normal(3, 2, 3, 3)

    def third(convolve):
        (first,) = torch.autograd.grad(convolve(x, w).tanh().sum(), x, create_graph=True)
        (second,) = torch.autograd.grad(first.square().sum(), w, create_graph=True)
        return torch.autograd.grad(second.square().sum(), (x, w))

    ours = third(
        lambda x, w: fprop(x, w, stride=(2, 2), padding=(1, 1), implementation="reference")
    )
    torchs = third(lambda x, w: torch.nn.functional.conv2d(x, w, None, 2, 1))
    for a, b in zip(ours, torchs, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize(("training", "groups"), [(True, 1), (True, 2), (False, 1)])
@pytest.mark.parametrize("affine", [True, False])
def test_batch_norm_act_is_right_to_second_order(activation, training, groups, affine):
    x = normal(4, 3, 2, 3).detach().to(memory_format=torch.channels_last).requires_grad_()
    mean, var = torch.full((3,), 0.1).double(), torch.full((3,), 0.8).double()

    def function(x, *parameters):
        weight, bias = parameters or (None, None)
        return BatchNormAct.apply(
            x, mean.clone(), var.clone(), weight, bias, training, 0.1, 1e-5, activation, 0.2,
            groups, "reference",
        )  # fmt: skip

    check_twice(function, (x, normal(3), normal(3)) if affine else (x,))


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_bias_act_is_right_to_second_order(activation):
    def function(x, bias):
        return BiasAct.apply(x, bias, activation, 0.2, "reference")

    check_twice(function, (normal(2, 3, 2, 2), normal(3)))
    check_twice(lambda x: function(x, None), (normal(2, 3, 2, 2),))


@pytest.mark.parametrize("objective", sorted(OBJECTIVES))
def test_losses_are_right_to_second_order(objective):
    real, fake = normal(5), normal(3, 2)
    if OBJECTIVES[objective].operates_on == "probability":
        real, fake = (t.detach().sigmoid().requires_grad_() for t in (real, fake))
    check_twice(
        lambda r, f: DiscriminatorLoss.apply(r, f, objective, 1.0, 0.0, "reference")[0],
        (real, fake),
    )
    check_twice(lambda f: GeneratorLoss.apply(f, objective, "reference")[0], (fake,))


@pytest.mark.parametrize("objective", sorted(OBJECTIVES))
def test_derivatives_of_the_objectives_are_the_derivatives(objective):
    record = OBJECTIVES[objective]
    t = torch.linspace(-3, 3, 41, dtype=torch.float64)
    t = (t.sigmoid() if record.operates_on == "probability" else t).requires_grad_()
    label = 0.9 if record.uses_labels else 1.0
    for function, derivative in (
        (lambda t: record.real(t, label), lambda t: record.real_derivative(t, label)),
        (lambda t: record.fake(t, 1 - label), lambda t: record.fake_derivative(t, 1 - label)),
        (record.generator, record.generator_derivative),
    ):
        (exact,) = torch.autograd.grad(function(t).sum(), t)
        torch.testing.assert_close(derivative(t), exact)


@pytest.mark.parametrize(
    ("objective", "f"),
    [
        ("kl", lambda u: u * u.log()),
        ("reverse_kl", lambda u: -u.log()),
        ("pearson_chi2", lambda u: (u - 1) ** 2),
        ("squared_hellinger", lambda u: (u.sqrt() - 1) ** 2),
        ("jensen_shannon", lambda u: -(u + 1) * ((1 + u) / 2).log() + u * u.log()),
        ("gan", lambda u: u * u.log() - (u + 1) * (u + 1).log()),
    ],
)
def test_the_best_discriminator_measures_the_f_divergence(objective, f):
    """sup over t of u g(t) - f*(g(t)) is f(u), the variational bound made tight (f-GAN, eq. 4)."""
    record = OBJECTIVES[objective]
    u = torch.linspace(0.3, 3.0, 10, dtype=torch.float64)[:, None]
    t = torch.linspace(-6, 6, 24001, dtype=torch.float64)
    value = -u * record.real(t, 1.0) - record.fake(t, 0.0)
    torch.testing.assert_close(value.amax(1), f(u)[:, 0], atol=1e-6, rtol=0)


def penalty_gradients(x, w1, w2, weight, bias, running):
    """A WGAN-GP penalty through convolution, batch norm and a head: gradients of a gradient."""
    mean, var = (t.clone() for t in running)
    h = ops.conv2d(x, w1, None, 2, 1, activation="leaky_relu", negative_slope=0.2)
    h = ops.batch_norm_act(h, mean, var, weight, bias, True, activation="tanh")
    score = ops.conv2d(h, w2)
    (slope,) = torch.autograd.grad(score.sum(), x, create_graph=True)
    penalty = (slope.square().sum((1, 2, 3)).add(1e-8).sqrt() - 1).square().mean()
    return torch.autograd.grad(penalty, (w1, w2, weight))


@pytest.mark.parametrize("device", DEVICES)
def test_a_gradient_penalty_through_triton_is_torchs(device):
    generator = torch.Generator().manual_seed(0)

    def random(*shape):
        return torch.randn(shape, generator=generator).to(device).requires_grad_()

    x, w1, w2 = random(3, 2, 8, 8), random(4, 2, 4, 4), random(1, 4, 4, 4)
    parameters = (torch.rand(4, generator=generator).to(device).requires_grad_(), random(4))
    running = torch.zeros(4, device=device), torch.ones(4, device=device)
    with ops.backend("reference"):
        wanted = penalty_gradients(x, w1, w2, *parameters, running)
    with ops.backend("triton"):
        actual = penalty_gradients(x, w1, w2, *parameters, running)
    for a, b in zip(actual, wanted, strict=True):
        # Two float32 chains of some ten operations, each with sums of up to 128 products.
        size = b.abs().max().item()
        torch.testing.assert_close(a, b, rtol=0, atol=10 * 128 * torch.finfo(a.dtype).eps * size)


@pytest.mark.parametrize("transposed", [False, True], ids=["conv2d", "conv_transpose2d"])
@pytest.mark.parametrize("frozen", ["weight", "input"])
def test_gradients_that_nobody_wants_are_not_computed(transposed, frozen, monkeypatch):
    from fastgan.ops import convolution

    called = []
    launchers = {
        name: lambda *arguments, name=name, run=run: called.append(name) or run(*arguments)
        for name, run in convolution.LAUNCHERS["reference"].items()
    }
    monkeypatch.setitem(convolution.LAUNCHERS, "reference", launchers)
    x = torch.randn(2, 4, 4, 3).permute(0, 3, 1, 2)
    w = torch.randn(3, 3, 2, 2)
    (x if frozen == "weight" else w).requires_grad_()
    place = {"stride": (2, 2), "padding": (0, 0), "implementation": "reference"}
    y = dgrad(x, w, big_size=(8, 8), **place) if transposed else fprop(x, w, **place)
    saved = [t for t in y.grad_fn.saved_tensors if t is not None]
    assert any(t.data_ptr() == x.data_ptr() for t in saved) == (frozen == "input")
    called.clear()
    y.sum().backward()
    to_input = "fprop" if transposed else "dgrad"
    assert called == ([to_input] if frozen == "weight" else ["wgrad"])
