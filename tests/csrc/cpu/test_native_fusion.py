"""Statistics in a convolution's epilogue and the normalisation in the next one's prologue."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from native_cases import (
    ACTIVATIONS,
    DTYPES,
    SLOPE,
    Convolution,
    U,
    activated,
    activation_bound,
    convolutions,
    dense,
    normal,
)
from tolerances import assert_within, sum_of_products
from torch import Tensor
from torch.nn import functional as F

from fastgan import native_convolution, native_kernels
from fastgan.native_fusion import Prologue, Statistics

EPS, MOMENTUM = 1e-5, 0.1
#: A task sums this many pixels one after the other, and merges a few such sums.
PIXELS = 128


def by_group(x: Tensor, groups: int) -> Tensor:
    """[groups, rows, C] in float64."""
    return x.double().reshape(groups, -1, *x.shape[1:]).movedim(2, -1).flatten(1, -2)


def spread(parameter: Tensor, x: Tensor) -> Tensor:
    """A parameter [groups, C] for every image of x: [N, C, 1, 1]."""
    return parameter.repeat_interleave(x.shape[0] // parameter.shape[0], 0)[:, :, None, None]


def check_statistics(name: str, statistics: Statistics, result: Tensor, groups: int) -> None:
    """Against float64, of the result as it was stored.

    Values relative to a row of the data are at most `reach`; the sums that make a task's mean err
    by PIXELS U of it, and what is centred on that mean by as much.
    """
    rows = by_group(result, groups)
    mean = rows.mean(1)
    centred = rows - mean[:, None]
    m2 = centred.square().sum(1)
    reach = rows.amax(1) - rows.amin(1)
    error = PIXELS * U * reach
    assert_within(f"{name} mean", statistics.mean, mean, error + U * mean.abs())
    bound = PIXELS * U * m2 + 2 * error * centred.abs().sum(1) + rows.shape[1] * error**2
    assert_within(f"{name} m2", statistics.m2, m2, bound)


@settings(max_examples=400)
@given(
    case=convolutions,
    groups=st.integers(1, 3),
    dtype=st.sampled_from(DTYPES),
    offset=st.sampled_from([None, 0.0, 0.5, -30.0, 2000.0]),
)
def test_statistics_are_those_of_the_stored_result(level, case, groups, dtype, offset) -> None:
    """A large offset beside a small spread: E[x^2] - E[x]^2 would leave nothing of it."""
    case = dataclasses.replace(case, n=(case.n + groups - 1) // groups * groups)
    big = normal((case.n, case.b, *case.size), dtype, 1)
    weight = normal((case.s, case.b, *case.kernel), dtype, 2)
    small = normal((case.n, case.s, *case.small_size), dtype, 3)
    call = {"stride": case.stride, "padding": case.padding}

    def check(name, run: Callable[..., Tensor], channels: int) -> None:
        bias = None if offset is None else normal((channels,), torch.float32, 4) * 0.01 + offset
        plain = run(bias)
        statistics = Statistics.empty(groups, channels)
        result = run(bias, statistics=statistics)
        assert torch.equal(result, plain)
        check_statistics(name, statistics, result, groups)

    check(
        "fprop",
        lambda bias, **fused: native_convolution.fprop(big, weight, bias, **call, **fused),
        case.s,
    )
    check(
        "dgrad",
        lambda bias, **fused: native_convolution.dgrad(
            small, weight, bias, big_size=case.size, **call, **fused
        ),
        case.b,
    )


def coarse_prologue(groups: int, channels: int, activation: str, seed: int) -> Prologue:
    """Scales are powers of two, so that scale * x + shift is rounded once, with or without FMA."""
    generator = torch.Generator().manual_seed(seed)
    signs = torch.randint(0, 2, (groups, channels), generator=generator) * 2 - 1
    exponents = torch.randint(-2, 2, (groups, channels), generator=generator)
    shift = torch.randn((groups, channels), generator=generator)
    return Prologue(signs * torch.exp2(exponents), shift, activation, 0.25)


def applied(x: Tensor, prologue: Prologue) -> Tensor:
    """What a pass of its own makes of the operand."""
    z = x.float() * spread(prologue.scale, x) + spread(prologue.shift, x)
    if prologue.activation == "leaky_relu":
        return dense(F.leaky_relu(z, prologue.negative_slope).to(x.dtype))
    return dense(activated(z, prologue.activation).to(x.dtype))


@settings(max_examples=400)
@given(
    case=convolutions,
    groups=st.integers(1, 3),
    dtype=st.sampled_from(DTYPES),
    activation=st.sampled_from(["identity", "relu", "leaky_relu"]),
    side=st.sampled_from(["big", "small"]),
)
def test_a_prologue_changes_no_bit_against_a_pass_of_its_own(
    level, case, groups, dtype, activation, side
) -> None:
    """Padding is zero after the activation: a shift that leaked into it would show."""
    case = dataclasses.replace(case, n=(case.n + groups - 1) // groups * groups)
    big = normal((case.n, case.b, *case.size), dtype, 1)
    weight = normal((case.s, case.b, *case.kernel), dtype, 2)
    small = normal((case.n, case.s, *case.small_size), dtype, 3)
    call = {"stride": case.stride, "padding": case.padding}
    prologue = coarse_prologue(groups, case.b if side == "big" else case.s, activation, 4)
    if side == "big":
        got = native_convolution.fprop(big, weight, None, **call, prologue=prologue)
        ready = applied(big, prologue)
        expected = native_convolution.fprop(ready, weight, None, **call)
        gradients = [
            native_convolution.wgrad(
                big, small, kernel_size=case.kernel, **call, big_prologue=prologue
            ),
            native_convolution.wgrad(ready, small, kernel_size=case.kernel, **call),
        ]
    else:
        got = native_convolution.dgrad(
            small, weight, None, big_size=case.size, **call, prologue=prologue
        )
        ready = applied(small, prologue)
        expected = native_convolution.dgrad(ready, weight, None, big_size=case.size, **call)
        gradients = [
            native_convolution.wgrad(
                big, small, kernel_size=case.kernel, **call, small_prologue=prologue
            ),
            native_convolution.wgrad(big, ready, kernel_size=case.kernel, **call),
        ]
    assert got.isfinite().all()
    assert torch.equal(got, expected)
    assert torch.equal(*gradients)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_a_prologue_of_any_scale_is_exact_up_to_rounding(level, activation, dtype) -> None:
    case = Convolution(6, 33, 20, (7, 6), (4, 3), (2, 1), (1, 2))
    big = normal((case.n, case.b, *case.size), dtype, 1)
    weight = normal((case.s, case.b, *case.kernel), dtype, 2)
    scale, shift = normal((3, case.b), torch.float32, 3), normal((3, case.b), torch.float32, 4)
    small = native_convolution.fprop(
        big, weight, None, stride=case.stride, padding=case.padding,
        prologue=Prologue(scale, shift, activation, SLOPE),
    )  # fmt: skip
    product = big.double() * spread(scale.double(), big)
    z = product + spread(shift.double(), big)
    operand = activated(z, activation)
    z_bound = 2 * U * (product.abs() + spread(shift.double().abs(), big))
    error = activation_bound(operand, z_bound, dtype)

    def sums(x: Tensor, w: Tensor) -> Tensor:
        return F.conv2d(x, w, None, case.stride, case.padding)

    exact = sums(operand, weight.double())
    size = sums(operand.abs() + error, weight.double().abs())
    bound = sum_of_products(torch.float32, case.b * 12, size) + sums(error, weight.double().abs())
    assert_within("fprop", small, exact, activation_bound(exact, bound, dtype))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("groups", [1, 2, 3])
def test_a_block_needs_no_pass_for_its_statistics(level, groups, dtype) -> None:
    """Batch norm with the epilogue's statistics, and as a prologue, against its own passes."""
    big = normal((6, 48, 9, 8), dtype, 1)
    weight = dense((torch.randn(70, 48, 4, 4) / 28).to(dtype))
    statistics = Statistics.empty(groups, 70)
    x = native_convolution.fprop(
        big, weight, None, stride=(2, 2), padding=(1, 1), statistics=statistics
    )
    gamma, beta = normal((70,), torch.float32, 2), normal((70,), torch.float32, 3)
    parameters = {"momentum": MOMENTUM, "eps": EPS}
    epilogue = {"activation": "leaky_relu", "negative_slope": SLOPE}

    def running() -> list[Tensor]:
        return [normal((70,), torch.float32, 5), normal((70,), torch.float32, 6).square()]

    own, given_, block = running(), running(), running()
    y, mean, invstd = native_kernels.forward_training(
        x, *own, gamma, beta, **parameters, **epilogue, stat_groups=groups
    )
    got = native_kernels.forward_training(
        x, *given_, gamma, beta, **parameters, **epilogue, stat_groups=groups,
        statistics=statistics,
    )  # fmt: skip
    rows = x.numel() // 70 // groups
    *kept, prologue = native_kernels.coefficients(
        statistics, *block, gamma, beta, rows=rows, **parameters, **epilogue
    )
    reach = by_group(x, groups).abs().amax(1)
    bounds = [2 * PIXELS * U * reach, 2 * PIXELS * U * (invstd.double() + reach * invstd**2)]
    for others in (got[1:], kept):
        for name, ours, other, bound in zip(
            ("mean", "invstd"), (mean, invstd), others, bounds, strict=True
        ):
            assert_within(name, other, ours.double(), bound)
    for others in (given_, block):
        for ours, other in zip(own, others, strict=True):
            bound = 4 * PIXELS * U * (ours.abs() + 1)
            assert_within("running", other, ours.double(), bound)
    z = (x.double() - spread(mean, x)) * spread(invstd, x) * gamma.view(-1, 1, 1) + beta.view(
        -1, 1, 1
    )
    size = gamma.abs().view(-1, 1, 1) * spread(reach * invstd, x) + beta.abs().view(-1, 1, 1) + 1
    exact = activated(z, "leaky_relu")
    bound = activation_bound(exact, 8 * PIXELS * U * size, dtype)
    for name, value in (("own", y), ("given", got[0]), ("prologue", applied(x, prologue))):
        assert_within(name, value, exact, bound)


def test_statistics_of_an_empty_batch_are_zero(level) -> None:
    big = dense(torch.zeros(0, 8, 4, 4))
    statistics = Statistics.empty(2, 6)
    native_convolution.fprop(
        big, normal((6, 8, 3, 3), torch.float32, 1), None, stride=(1, 1), padding=(1, 1),
        statistics=statistics,
    )  # fmt: skip
    assert not statistics.mean.any()
    assert not statistics.m2.any()


CALL = {"stride": (1, 1), "padding": (1, 1)}


def operands() -> tuple[Tensor, Tensor]:
    return normal((4, 8, 5, 5), torch.float32, 1), normal((6, 8, 3, 3), torch.float32, 2)


def test_statistics_with_an_activation_are_refused(extension) -> None:
    with pytest.raises(RuntimeError, match="activation must be identity"):
        native_convolution.fprop(
            *operands(), **CALL, activation="relu", statistics=Statistics.empty(1, 6)
        )


@pytest.mark.parametrize("shape", [(3, 6), (1, 5), (0, 6)], ids=str)
def test_statistics_that_do_not_fit_are_refused(extension, shape) -> None:
    with pytest.raises(RuntimeError, match=r"mean must be \[groups, 6\].*the batch of 4"):
        native_convolution.fprop(*operands(), **CALL, statistics=Statistics.empty(*shape))


def test_a_second_moment_that_does_not_fit_is_refused(extension) -> None:
    statistics = Statistics(torch.empty(2, 6), torch.empty(1, 6))
    with pytest.raises(RuntimeError, match="m2 must be 12 contiguous float32 values"):
        native_convolution.fprop(*operands(), **CALL, statistics=statistics)


@pytest.mark.parametrize("shape", [(3, 8), (1, 6), (8,)], ids=str)
def test_a_prologue_that_does_not_fit_is_refused(extension, shape) -> None:
    prologue = Prologue(torch.ones(shape), torch.zeros(shape))
    with pytest.raises(RuntimeError, match=r"scale must be \[groups, 8\].*the batch of 4"):
        native_convolution.fprop(*operands(), **CALL, prologue=prologue)


def test_a_shift_that_does_not_fit_is_refused(extension) -> None:
    prologue = Prologue(torch.ones(1, 8), torch.zeros(1, 7))
    with pytest.raises(RuntimeError, match="shift must be 8 contiguous float32 values"):
        native_convolution.fprop(*operands(), **CALL, prologue=prologue)


def test_two_prologues_of_a_weight_gradient_are_refused(extension) -> None:
    big, _ = operands()
    prologue = Prologue(torch.ones(1, 8), torch.zeros(1, 8))
    with pytest.raises(ValueError, match="big_prologue and small_prologue"):
        native_convolution.wgrad(
            big, big, kernel_size=(3, 3), **CALL, big_prologue=prologue, small_prologue=prologue
        )
