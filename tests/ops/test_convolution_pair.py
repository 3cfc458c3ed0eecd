"""Two convolutions and the activation between them, a slice of the batch at a time."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from tolerances import assert_within, sum_of_products
from torch import Tensor, nn
from torch.nn.grad import conv2d_weight

import fastgan
from fastgan import ops
from fastgan.ops import convolution_pair
from fastgan.ops.activations import ACTIVATIONS
from fastgan.ops.convolution import dgrad_operator
from fastgan.ops.convolution_pair import conv2d_pair

pytestmark = pytest.mark.usefixtures("native_kernels")

NAMES = ("weight", "bias", "next_weight", "next_bias")
SLOPE = 0.2
SIDE = 12  # of the images; half of it between the layers


@pytest.fixture
def native_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    if fastgan.native.extension() is None:
        pytest.skip(f"native kernels are not loaded: {fastgan.native.reason()}")
    # Slices of two images between layers of 8 channels; of seven images the last one is alone.
    monkeypatch.setattr(convolution_pair, "_SLICE_ELEMENTS", 2 * 8 * 6 * 6)


def drawn(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    values = torch.randn(*shape, generator=torch.Generator().manual_seed(seed))
    if len(shape) == 4:
        values = values.contiguous(memory_format=torch.channels_last)
    return values.to(dtype)


def weights(dtype: torch.dtype = torch.float32, between: int = 8) -> dict[str, Tensor]:
    values = {
        "weight": drawn(between, 3, 4, 4, dtype=dtype, seed=1),
        "bias": drawn(between, dtype=dtype, seed=2),
        "next_weight": drawn(100, between, 4, 4, dtype=dtype, seed=3),
        "next_bias": drawn(100, dtype=dtype, seed=4),
    }
    return {name: value.requires_grad_() for name, value in values.items()}


def arguments(x: Tensor, values: dict[str, Tensor]) -> tuple[dict[str, Any], dict[str, Any]]:
    geometry = {"stride": (2, 2), "padding": (1, 1), "dilation": 1, "groups": 1}
    first = {"x": x, "weight": values["weight"], "bias": values["bias"], **geometry}
    second = {"weight": values["next_weight"], "bias": values["next_bias"], **geometry}
    return first, second


def paired(x: Tensor, values: dict[str, Tensor], activation: str = "leaky_relu") -> Tensor:
    with fastgan.backend("cpu"):
        y = conv2d_pair(*arguments(x, values), activation, SLOPE)
    assert y is not None
    return y


def one_by_one(
    x: Tensor, values: dict[str, Tensor], activation: str = "leaky_relu"
) -> tuple[Tensor, Tensor]:
    first, second = arguments(x, values)
    with fastgan.backend("cpu"):
        between = ops.conv2d(**first, activation=activation, negative_slope=SLOPE)
        return between, ops.conv2d(between, **second)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("activation", ["identity", "relu", "leaky_relu", "tanh", "sigmoid"])
@pytest.mark.parametrize("images", [7, 8])
def test_result_to_the_bit_and_gradients(images: int, activation: str, dtype: torch.dtype) -> None:
    x, values = drawn(images, 3, SIDE, SIDE, dtype=dtype), weights(dtype)
    between, expected = one_by_one(x, values, activation)
    y = paired(x, values, activation)
    assert torch.equal(y, expected)
    assert y.is_contiguous(memory_format=torch.channels_last)

    grad = drawn(*y.shape, dtype=dtype, seed=5)
    gradients = dict(zip(NAMES, torch.autograd.grad(y, list(values.values()), grad), strict=True))
    big_size, geometry = tuple(between.shape[2:]), ((2, 2), (1, 1))
    kernel = values["next_weight"].detach().contiguous(memory_format=torch.channels_last)
    grad_between = dgrad_operator(grad, kernel, None, big_size, *geometry, "identity", 0.0, "cpu")
    grad_between = ACTIVATIONS[activation].backward_from_output(
        grad_between, between.detach(), SLOPE
    )
    for name, big, small in (
        ("weight", x, grad_between),
        ("next_weight", between.detach(), grad),
    ):
        big, small, shape = big.double(), small.double(), values[name].shape
        terms = small.numel() // small.shape[1]
        exact = conv2d_weight(big, shape, small, *geometry)
        magnitude = conv2d_weight(big.abs(), shape, small.abs(), *geometry)
        assert gradients[name].dtype == dtype
        assert_within(name, gradients[name], exact, sum_of_products(dtype, terms, magnitude))
    for name, small in (("bias", grad_between.double()), ("next_bias", grad.double())):
        terms = small.numel() // small.shape[1]
        bound = sum_of_products(dtype, terms, small.abs().sum((0, 2, 3)))
        assert_within(name, gradients[name], small.sum((0, 2, 3)), bound)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_discriminators_own_sizes_to_the_bit(dtype: torch.dtype) -> None:
    x = drawn(7, 3, 64, 64, dtype=dtype)
    shapes = {"weight": (64, 3, 4, 4), "bias": (64,), "next_weight": (128, 64, 4, 4)}
    shapes["next_bias"] = (128,)
    values = {
        name: drawn(*shape, dtype=dtype, seed=seed).requires_grad_()
        for seed, (name, shape) in enumerate(shapes.items(), start=1)
    }
    # The fixture puts it back. Slices of four images and three: fewer have another kernel.
    convolution_pair._SLICE_ELEMENTS = 4 * 64 * 32 * 32
    assert torch.equal(paired(x, values), one_by_one(x, values)[1])


def test_what_is_between_is_not_kept() -> None:
    x, values = drawn(8, 3, SIDE, SIDE), weights()
    kept = paired(x, values).grad_fn.saved_tensors
    assert sum(tensor.numel() for tensor in kept if tensor is not None) <= x.numel() + 2 * sum(
        value.numel() for value in values.values()
    )


@pytest.mark.parametrize("frozen", [(name,) for name in NAMES if name != "next_weight"])
@pytest.mark.parametrize("missing", [(), ("bias",), ("next_bias",)])
def test_gradients_of_some(frozen: tuple[str, ...], missing: tuple[str, ...]) -> None:
    x, values = drawn(7, 3, SIDE, SIDE), weights()
    y = paired(x, values)
    all_gradients = dict(
        zip(NAMES, torch.autograd.grad(y.square().sum(), list(values.values())), strict=True)
    )
    if missing:
        with torch.no_grad():
            values[missing[0]].zero_()
        y = paired(x, values)
        all_gradients = dict(
            zip(NAMES, torch.autograd.grad(y.square().sum(), list(values.values())), strict=True)
        )
    some: dict[str, Any] = {**values, **dict.fromkeys(missing)}
    for name in frozen:
        if some[name] is not None:
            some[name].requires_grad_(False)
    wanted = [name for name in NAMES if name not in frozen + missing]
    gradients = torch.autograd.grad(paired(x, some).square().sum(), [some[name] for name in wanted])
    for name, gradient in zip(wanted, gradients, strict=True):
        assert torch.equal(gradient, all_gradients[name]), name


def test_second_derivatives_are_those_of_the_layers() -> None:
    x, values = drawn(7, 3, SIDE, SIDE), weights()
    inputs = list(values.values())

    def derivatives(y: Tensor) -> tuple[Tensor, ...]:
        first = torch.autograd.grad(y.square().mean(), inputs, create_graph=True)
        return *first, *torch.autograd.grad(sum(part.square().sum() for part in first), inputs)

    results = zip(
        derivatives(paired(x, values)), derivatives(one_by_one(x, values)[1]), strict=True
    )
    for index, (mine, theirs) in enumerate(results):
        # The same operators; second derivatives are sums over paths, added in another order.
        allowed = 0.0 if index < len(inputs) else 8 * torch.finfo(torch.float32).eps
        assert (mine - theirs).abs().max() <= allowed * theirs.abs().max()


def test_backward_twice_and_batched() -> None:
    x, values = drawn(7, 3, SIDE, SIDE), weights()
    y = paired(x, values)
    grads = torch.stack([drawn(*y.shape, seed=seed) for seed in (6, 7)])
    each = [torch.autograd.grad(y, values["weight"], grad, retain_graph=True)[0] for grad in grads]
    again = torch.autograd.grad(y, values["weight"], grads[0], retain_graph=True)[0]
    assert torch.equal(each[0], again)
    (batched,) = torch.autograd.grad(y, values["weight"], grads, is_grads_batched=True)
    torch.testing.assert_close(batched, torch.stack(each), rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("name", ["weight", "next_weight"])
def test_a_weight_changed_before_backward_is_noticed(name: str) -> None:
    values = weights()
    y = paired(drawn(7, 3, SIDE, SIDE), values)
    with torch.no_grad():
        values[name].add_(1.0)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


def test_under_autocast() -> None:
    x, values = drawn(7, 3, SIDE, SIDE), weights()
    with torch.autocast("cpu", torch.bfloat16):
        y = paired(x, values)
        expected = one_by_one(x, values)[1]
    assert y.dtype == torch.bfloat16
    assert torch.equal(y, expected)
    (gradient,) = torch.autograd.grad(y.sum(), values["weight"])
    assert gradient.dtype == torch.float32


# ------------------------------------------------------------------- who is served


def test_what_is_not_served() -> None:
    x, values = drawn(8, 3, SIDE, SIDE), weights()

    def served(x: Tensor = x, slope: float = SLOPE, **changed: Tensor) -> bool:
        return conv2d_pair(*arguments(x, {**values, **changed}), "relu", slope) is not None

    with fastgan.backend("cpu"):
        assert served()
        assert not served(x.clone().requires_grad_()), "its gradient is wanted"
        assert not served(x[:2]), "it is no longer than a slice"
        assert not served(x[0]), "it is no batch"
        assert not served(x[:0]), "it is empty"
        assert not served(slope=-0.1), "the sign of a result says nothing"
        assert not served(next_weight=values["next_weight"].detach()), "the weight is frozen"
        heavy = drawn(8, 64, 4, 4).requires_grad_()
        assert not served(drawn(8, 64, SIDE, SIDE), weight=heavy), "made again it costs too much"
        with torch.no_grad():
            assert not served(), "nothing is recorded"
    with fastgan.backend("reference"):
        assert not served(), "torch's own operators are insisted on"


def network() -> nn.Sequential:
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 8, 4, 2, 1), nn.LeakyReLU(SLOPE, True), nn.Conv2d(8, 100, 4, 2, 1)]
    model = nn.Sequential(*layers, nn.BatchNorm2d(100), nn.ReLU(True))
    return fastgan.accelerate(model.to(memory_format=torch.channels_last))


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Whether each call of `conv2d_pair` that a Sequential made was served."""
    made: list[bool] = []

    def watched(*given: Any) -> Tensor | None:
        y = conv2d_pair(*given)
        made.append(y is not None)
        return y

    monkeypatch.setattr("fastgan.nn.sequential.conv2d_pair", watched)
    return made


def test_a_sequential_runs_the_pair_and_learns_the_same(
    calls: list[bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    x, model = drawn(8, 3, SIDE, SIDE), network()
    other = copy.deepcopy(model)
    with fastgan.backend("cpu"):
        model(x).square().mean().backward()
        assert calls == [True]
        monkeypatch.setattr("fastgan.nn.sequential.conv2d_pair", lambda *given: None)
        other(x).square().mean().backward()
    for mine, theirs in zip(model.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, theirs.grad, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    "change",
    [
        lambda model: model[0].register_forward_pre_hook(lambda module, given: None),
        lambda model: model[0].register_forward_hook(lambda module, given, result: None),
        lambda model: model[2].register_forward_pre_hook(lambda module, given: None),
        lambda model: model[2].register_forward_hook(lambda module, given, result: None),
        lambda model: model[2].register_full_backward_hook(lambda module, *given: None),
        lambda model: setattr(model[2], "padding_mode", "reflect"),
        lambda model: setattr(model[2], "activation", "relu"),
        lambda model: setattr(model[2], "forward", lambda input: input),
        lambda model: model.insert(3, nn.ReLU()),
    ],
)
def test_where_somebody_would_notice_the_layers_run_one_by_one(calls: list[bool], change) -> None:
    model = network()
    change(model)
    with fastgan.backend("cpu"):
        try:
            model(drawn(8, 3, SIDE, SIDE))
        except RuntimeError:
            assert "forward" in model[2].__dict__  # it hands 8 channels to a norm of 100
    assert calls == []
