"""The operators under torch.func's transforms and forward-mode AD: torch's results, or a refusal.

Their tensors are computed by torch's own operators, so what is compared here are equal sums in
float64, and the default tolerance of torch.testing is that of float64.
"""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch.autograd import forward_ad
from torch.func import grad, hessian, jacfwd, jacrev, jvp, vmap
from torch.nn import functional as F

from fastgan import ops
from fastgan.errors import BackendError
from fastgan.objectives import OBJECTIVES
from fastgan.ops.adversarial_loss import (
    DiscriminatorLoss,
    GeneratorLoss,
    discriminator_loss_and_gradients,
)
from fastgan.ops.batch_norm_act import BatchNormAct
from fastgan.ops.bias_act import BiasAct
from fastgan.ops.convolution_autograd import dgrad, fprop, wgrad


def drawn(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    tensor = torch.randn(shape, generator=generator, dtype=torch.float64)
    return tensor.to(memory_format=torch.channels_last) if len(shape) == 4 else tensor


def twin_of_losses(real, fake):
    hinge = F.relu(1 - real).mean() + F.relu(1 + fake).mean()
    return hinge, real.detach().mean(), fake.detach().mean()


IMAGES = drawn(2, 2, 5, 4)
W, B, SCALE = drawn(4, 3, 3, 3, seed=1), drawn(4, seed=2), drawn(3, seed=3)
SHIFT, MEAN, VAR = drawn(3, seed=4), drawn(3, seed=5), drawn(3, seed=6).square()

# (ours, torch's, the shape that the one argument has)
OPERATORS = {
    "conv2d": (
        lambda x: ops.conv2d(x, W, B, 2, 1, activation="leaky_relu", negative_slope=0.3),
        lambda x: F.leaky_relu(F.conv2d(x, W, B, 2, 1), 0.3),
        (2, 3, 5, 4),
    ),
    "conv2d of one image": (
        lambda x: ops.conv2d(x, W, B, padding="same", activation="tanh"),
        lambda x: F.conv2d(x, W, B, padding="same").tanh(),
        (3, 5, 4),
    ),
    "a head": (lambda x: ops.conv2d(x, W), lambda x: F.conv2d(x, W), (2, 3, 3, 3)),
    "conv2d's weight": (
        lambda w: ops.conv2d(IMAGES, w, None, 1, 1, activation="sigmoid"),
        lambda w: F.conv2d(IMAGES, w, None, 1, 1).sigmoid(),
        (4, 2, 3, 2),
    ),
    "conv_transpose2d": (
        lambda x: ops.conv_transpose2d(x, W, SHIFT, 2, 1, 1, activation="tanh"),
        lambda x: F.conv_transpose2d(x, W, SHIFT, 2, 1, 1).tanh(),
        (2, 4, 3, 2),
    ),
    "a stem": (
        lambda x: ops.conv_transpose2d(x, W),
        lambda x: F.conv_transpose2d(x, W),
        (2, 4, 1, 1),
    ),
    "batch_norm_act": (
        lambda x: ops.batch_norm_act(x, None, None, SCALE, SHIFT, True, activation="tanh"),
        lambda x: F.batch_norm(x, None, None, SCALE, SHIFT, True).tanh(),
        (4, 3, 2, 2),
    ),
    "batch_norm_act in slices": (
        lambda x: ops.batch_norm_act(x, None, None, SCALE, SHIFT, True, stat_groups=2),
        lambda x: torch.cat([F.batch_norm(s, None, None, SCALE, SHIFT, True) for s in x.chunk(2)]),
        (4, 3, 2, 2),
    ),
    "batch_norm_act in evaluation": (
        lambda x: ops.batch_norm_act(x, MEAN, VAR, SCALE, SHIFT, activation="sigmoid"),
        lambda x: F.batch_norm(x, MEAN, VAR, SCALE, SHIFT).sigmoid(),
        (2, 3, 2, 2),
    ),
    "bias_act": (
        lambda x: ops.bias_act(x, SHIFT, "sigmoid"),
        lambda x: (x + SHIFT[:, None, None]).sigmoid(),
        (2, 3, 2, 2),
    ),
    "discriminator_loss": (
        lambda x: ops.discriminator_loss(x[0], x[1], "hinge"),
        lambda x: twin_of_losses(x[0], x[1]),
        (2, 5),
    ),
    "generator_loss": (
        lambda x: ops.generator_loss(x, "least_squares")[0],
        lambda x: OBJECTIVES["least_squares"].generator(x).mean(),
        (6,),
    ),
}


def scalar(function, x):
    """The sum of the squares of what `function` returns: with a second derivative everywhere."""
    results = function(x)
    results = results[:1] if isinstance(results, tuple) else (results,)
    return sum((result + 1).square().sum() for result in results)


def by_forward_mode(function, x, direction):
    with forward_ad.dual_level():
        value = scalar(function, forward_ad.make_dual(x, direction))
        return tuple(forward_ad.unpack_dual(value))


TRANSFORMS = {
    "grad": lambda f, x: grad(partial(scalar, f))(x),
    "vmap": lambda f, x: vmap(f)(torch.stack([x, 2 * x, -x])),
    "vmap over another dimension": lambda f, x: vmap(f, -1)(torch.stack([x, 2 * x], -1)),
    "vmap of grad": lambda f, x: vmap(grad(partial(scalar, f)))(torch.stack([x, 2 * x])),
    "jacrev": lambda f, x: jacrev(f)(x),
    "jacfwd": lambda f, x: jacfwd(f)(x),
    "hessian": lambda f, x: hessian(partial(scalar, f))(x),
    "grad of grad": lambda f, x: grad(lambda x: grad(partial(scalar, f))(x).square().sum())(x),
    "jvp": lambda f, x: jvp(f, (x,), (x.cos(),)),
    "forward mode": lambda f, x: by_forward_mode(f, x, x.cos()),
}


@pytest.mark.parametrize("transform", TRANSFORMS)
@pytest.mark.parametrize("operator", OPERATORS)
def test_a_transform_of_an_operator_is_torchs(operator, transform):
    ours, twin, shape = OPERATORS[operator]
    x = drawn(*shape, seed=7)
    apply = TRANSFORMS[transform]
    torch.testing.assert_close(apply(ours, x), apply(twin, x))


def test_the_loss_with_its_gradients_under_vmap():
    logits = drawn(3, 2, 5)
    found = vmap(lambda x: discriminator_loss_and_gradients(x[0], x[1]))(logits)
    expected = [discriminator_loss_and_gradients(x[0], x[1]) for x in logits]
    for part, parts in zip(found, zip(*expected, strict=True), strict=True):
        torch.testing.assert_close(part, torch.stack(parts))


@pytest.mark.parametrize("backend", ["triton", "cpu", "matmul", "cuda"])
@pytest.mark.parametrize("operator", OPERATORS)
def test_a_forced_backend_refuses_transforms_and_says_why(operator, backend):
    function, _, shape = OPERATORS[operator]
    x = drawn(*shape).float()
    for transform in TRANSFORMS.values():
        with ops.backend(backend), pytest.raises(BackendError, match=r"torch\.func.*'reference'"):
            transform(function, x)


def test_explanations_under_a_transform_name_it():
    def seen(x):
        choice = ops.explain_call("conv2d", x, W)
        assert choice.chosen == "reference"
        assert all("torch.func" in reason for _, reason in choice.rejected)
        return x

    vmap(seen)(drawn(2, 1, 3, 5, 5))


def test_after_a_transform_everything_is_as_before():
    x, w = drawn(2, 8, 4, 4).float(), drawn(1, 8, 4, 4).float()
    before = ops.explain_call("conv2d", x, w)
    grad(lambda x: ops.conv2d(x, w).sum())(x)
    by_forward_mode(lambda x: ops.conv2d(x, w), x, x)
    assert ops.explain_call("conv2d", x, w) == before
    assert before.chosen == "matmul"


# ------------------------------------------- backward passes of calls recorded without a transform

PLACE = {"stride": (2, 1), "padding": (1, 0), "implementation": "reference"}
EPILOGUE = {"activation": "tanh", "negative_slope": 0.2}
RECORDED = {
    "fprop": (
        lambda x, w, b: fprop(x, w, b, **PLACE, **EPILOGUE),
        [(2, 3, 5, 4), (4, 3, 3, 2), (4,)],
    ),
    "dgrad": (
        lambda x, w, b: dgrad(x, w, b, big_size=(5, 4), **PLACE, **EPILOGUE),
        [(2, 4, 3, 3), (4, 3, 3, 2), (3,)],
    ),
    "wgrad": (
        lambda x, y: wgrad(x, y, kernel_size=(3, 2), **PLACE),
        [(2, 3, 5, 4), (2, 4, 3, 3)],
    ),
    "batch_norm_act": (
        lambda x, w, b: BatchNormAct.apply(
            x, None, None, w, b, True, 0.1, 1e-5, "tanh", 0.2, 2, "reference"
        ),
        [(4, 3, 2, 2), (3,), (3,)],
    ),
    "bias_act": (
        lambda x, b: BiasAct.apply(x, b, "sigmoid", 0.2, "reference"),
        [(2, 3, 2, 2), (3,)],
    ),
    "discriminator_loss": (
        lambda real, fake: DiscriminatorLoss.apply(
            real, fake, "non_saturating", 0.9, 0.0, "reference"
        )[0],
        [(5,), (4,)],
    ),
    "generator_loss": (
        lambda fake: GeneratorLoss.apply(fake, "non_saturating", "reference")[0],
        [(5,)],
    ),
}


def recorded(name):
    function, shapes = RECORDED[name]
    inputs = [drawn(*shape, seed=i).requires_grad_() for i, shape in enumerate(shapes)]
    y = function(*inputs)
    return y, inputs, drawn(3, *y.shape, seed=8)


@pytest.mark.parametrize("name", RECORDED)
def test_batched_gradients_are_the_gradients_one_by_one(name):
    y, inputs, directions = recorded(name)
    back = partial(torch.autograd.grad, y, inputs, retain_graph=True)
    for i, one in enumerate(directions):
        for expected, older, newer in zip(
            back(one), back(directions, is_grads_batched=True), vmap(back)(directions), strict=True
        ):
            torch.testing.assert_close(older[i], expected)
            torch.testing.assert_close(newer[i], expected)


@pytest.mark.parametrize("name", RECORDED)
def test_a_backward_pass_is_linear_in_forward_mode_too(name):
    y, inputs, (gradient, direction, _) = recorded(name)
    expected = torch.autograd.grad(y, inputs, direction, retain_graph=True)
    with forward_ad.dual_level():
        found = torch.autograd.grad(y, inputs, forward_ad.make_dual(gradient, direction))
        tangents = [forward_ad.unpack_dual(tensor).tangent for tensor in found]
    for tangent, exact in zip(tangents, expected, strict=True):
        torch.testing.assert_close(tangent, exact)


@pytest.mark.parametrize("name", RECORDED)
def test_a_vectorised_hessian_is_the_hessian_row_by_row(name):
    function, shapes = RECORDED[name]
    inputs = tuple(drawn(*shape, seed=i) for i, shape in enumerate(shapes))

    def energy(*inputs):
        return (function(*inputs) + 1).square().sum()

    by_rows = torch.autograd.functional.hessian(energy, inputs)
    at_once = torch.autograd.functional.hessian(energy, inputs, vectorize=True)
    torch.testing.assert_close(at_once, by_rows)


# ---------------------------------------------------------------------------------- torch.compile


def test_a_compiled_function_may_hold_a_transform():
    torch._dynamo.reset()
    x, w = drawn(2, 3, 5, 4), drawn(4, 3, 3, 3, seed=1)

    def energy(convolve, x):
        return convolve(x, w).square().sum()

    expected = grad(partial(energy, F.conv2d))(x)
    ours = grad(partial(energy, ops.conv2d))
    compiled = torch.compile(ours, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), expected)
