"""A convolution drops the activated batch norm that it was given, and backward makes it again."""

from __future__ import annotations

import weakref

import pytest
import torch
from torch import nn

import fastgan
from fastgan import ops
from fastgan.ops.recomputation import recompute_input

pytestmark = pytest.mark.usefixtures("native_kernels")


@pytest.fixture
def native_kernels() -> None:
    if fastgan.native.extension() is None:
        pytest.skip(f"native kernels are not loaded: {fastgan.native.reason()}")


def network(transposed: bool, activation: nn.Module) -> nn.Sequential:
    torch.manual_seed(0)
    kind = nn.ConvTranspose2d if transposed else nn.Conv2d
    layers = [kind(8, 16, 4, 2, 1), nn.BatchNorm2d(16), activation, kind(16, 8, 4, 2, 1)]
    layers += [nn.BatchNorm2d(8), kind(8, 4, 3, 1, 1)]
    return nn.Sequential(*layers).to(memory_format=torch.channels_last)


def inputs(dtype: torch.dtype) -> torch.Tensor:
    x = torch.randn(4, 8, 12, 12, generator=torch.Generator().manual_seed(1))
    return x.to(dtype, memory_format=torch.channels_last).requires_grad_()


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("activation", [nn.ReLU(True), nn.LeakyReLU(0.2), nn.Tanh()])
def test_gradients_are_the_same_to_the_bit(transposed, dtype, activation, monkeypatch) -> None:
    def gradients() -> list[torch.Tensor]:
        model = fastgan.accelerate(network(transposed, activation).to(dtype))
        model[1].stat_groups = 2
        x = inputs(dtype)
        with fastgan.backend("cpu"):
            model(x).float().square().mean().backward()
        return [x.grad, *(parameter.grad for parameter in model.parameters())]

    again = gradients()
    monkeypatch.setattr("fastgan.nn.sequential.recompute_input", lambda y, x: None)
    for mine, kept in zip(again, gradients(), strict=True):
        assert torch.equal(mine, kept)


def block(dtype: torch.dtype = torch.float32) -> tuple[torch.Tensor, ...]:
    """(x, BN weight, convolution weight, activated, result) of a batch norm and a convolution."""
    x = inputs(dtype)
    gamma, weight = torch.ones(8, requires_grad=True), torch.randn(6, 8, 4, 4, requires_grad=True)
    with fastgan.backend("cpu"):
        z = ops.batch_norm_act(
            x, None, None, gamma, None, True, activation="leaky_relu", negative_slope=0.2
        )
        y = ops.conv2d(z, weight.to(dtype), None, 2, 1)
    return x, gamma, weight, z, y


@pytest.mark.parametrize("dropped", [False, True])
def test_the_activated_input_is_dropped(dropped: bool) -> None:
    *_, z, y = block()
    if dropped:
        recompute_input(y, z)
    held = weakref.ref(z)
    del z
    assert (held() is None) == dropped
    y.sum().backward()


def test_a_chain_in_a_sequential_drops_them(monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[weakref.ref[torch.Tensor]] = []

    def watched(y: torch.Tensor, x: torch.Tensor) -> None:
        recompute_input(y, x)
        given.append(weakref.ref(x))

    monkeypatch.setattr("fastgan.nn.sequential.recompute_input", watched)
    model = fastgan.accelerate(network(False, nn.ReLU(True)))
    with fastgan.backend("cpu"):
        y = model(inputs(torch.float32))
    assert [x() for x in given] == [None, None]  # one activated, one not
    y.sum().backward()


def test_second_derivatives_are_the_same() -> None:
    def second(drop: bool) -> tuple[torch.Tensor, ...]:
        torch.manual_seed(0)
        x, gamma, weight, z, y = block()
        if drop:
            recompute_input(y, z)
        first = torch.autograd.grad(y.square().sum(), (weight, x), create_graph=True)
        penalty = sum(part.square().sum() for part in first)
        return torch.autograd.grad(penalty, (weight, gamma, x, z))

    for mine, kept in zip(second(True), second(False), strict=True):
        assert torch.equal(mine, kept)


def test_backward_twice_where_the_graph_is_retained() -> None:
    _, _, weight, z, y = block()
    recompute_input(y, z)
    first = torch.autograd.grad(y.sum(), weight, retain_graph=True)
    assert torch.equal(*first, *torch.autograd.grad(y.sum(), weight))


def test_a_changed_input_of_batch_norm_is_noticed() -> None:
    x, *_, z, y = block()
    recompute_input(y, z)
    with torch.no_grad():
        x.add_(1.0)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


def test_what_is_not_a_batch_norms_own_result_is_kept() -> None:
    x, _, weight, z, _ = block()
    for given in (z * 2, z.detach().requires_grad_(), x):
        with fastgan.backend("cpu"):
            y = ops.conv2d(given, weight, None, 2, 1)
        recompute_input(y, given)
        assert y.grad_fn._raw_saved_tensors[0].data is given


def test_a_frozen_weight_needs_no_input() -> None:
    _, gamma, weight, z, _ = block()
    with fastgan.backend("cpu"):
        y = ops.conv2d(z, weight.detach(), None, 2, 1)
    recompute_input(y, z)
    y.sum().backward()
    assert gamma.grad is not None


def test_hooks_of_the_caller_on_saved_tensors_count() -> None:
    packed = []

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        packed.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        _, _, weight, z, y = block()
    recompute_input(y, z)
    assert any(tensor is z for tensor in packed)
    y.sum().backward()
    assert weight.grad is not None


@pytest.mark.parametrize("where", ["norm", "convolution"])
def test_hooks_that_see_the_input_keep_it(where: str, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[torch.Tensor] = []
    monkeypatch.setattr("fastgan.nn.sequential.recompute_input", lambda y, x: calls.append(y))
    model = fastgan.accelerate(network(False, nn.ReLU(True)))[3:]
    if where == "norm":
        model[1].register_forward_hook(lambda module, given, result: None)
    else:
        model[2].register_forward_pre_hook(lambda module, given: None)
    model(torch.randn(2, 16, 8, 8))
    assert not calls
