"""The reference activates in place: what the caller and a derivative need stays as it was."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from fastgan import ops

W, SCALE, SHIFT = (
    torch.randn(4, 3, 3, 3).double(),
    torch.rand(3).double() + 1,
    torch.ones(3).double(),
)
OPERATORS = {
    "conv2d": (lambda x, a, s: ops.conv2d(x, W, activation=a, negative_slope=s), F.conv2d, (W,)),
    "bias_act": (
        lambda x, a, s: ops.bias_act(x, SHIFT, a, s),
        lambda x, shift: x + shift[:, None, None],
        (SHIFT,),
    ),
    "bias_act without bias": (lambda x, a, s: ops.bias_act(x, None, a, s), lambda x: x, ()),
    "batch_norm_act": (
        lambda x, a, s: ops.batch_norm_act(
            x, None, None, SCALE, SHIFT, True, activation=a, negative_slope=s
        ),
        lambda x: F.batch_norm(x, None, None, SCALE, SHIFT, True),
        (),
    ),
}
ACTIVATIONS = {
    "relu": lambda z, slope: z.relu(),
    "leaky_relu": F.leaky_relu,
    "tanh": lambda z, slope: z.tanh(),
    "sigmoid": lambda z, slope: z.sigmoid(),
}


@pytest.mark.parametrize("slope", [0.2, 0.0, -0.3])
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("name", OPERATORS)
def test_values_derivatives_and_the_input_are_torchs(name, activation, slope) -> None:
    operator, twin, parameters = OPERATORS[name]
    values = torch.randn(2, 3, 5, 4, generator=torch.Generator().manual_seed(1)).double()
    ours, theirs = (values.clone().requires_grad_() for _ in range(2))
    y = operator(ours, activation, slope)
    z = ACTIVATIONS[activation](twin(theirs, *parameters), slope)
    torch.testing.assert_close(y, z)
    (first,) = torch.autograd.grad(y.square().sum(), ours, create_graph=True)
    (expected,) = torch.autograd.grad(z.square().sum(), theirs, create_graph=True)
    torch.testing.assert_close(first, expected)
    (second,) = torch.autograd.grad(first.square().sum(), ours)
    (expected_second,) = torch.autograd.grad(expected.square().sum(), theirs)
    torch.testing.assert_close(second, expected_second)
    assert torch.equal(ours, values)


@pytest.mark.parametrize("name", OPERATORS)
def test_a_leaky_relu_may_be_written_over_like_torchs(name) -> None:
    operator, twin, parameters = OPERATORS[name]
    values = torch.randn(2, 3, 5, 4, generator=torch.Generator().manual_seed(1)).double()
    ours, theirs = (values.clone().requires_grad_() for _ in range(2))
    operator(ours, "leaky_relu", 0.2).mul_(2).sin().sum().backward()
    F.leaky_relu(twin(theirs, *parameters), 0.2).mul_(2).sin().sum().backward()
    torch.testing.assert_close(ours.grad, theirs.grad)
