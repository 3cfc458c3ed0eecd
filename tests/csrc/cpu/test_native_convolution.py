"""fprop, dgrad and wgrad at every instruction-set level against float64 torch."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from native_cases import (
    ACTIVATIONS,
    DTYPES,
    SLOPE,
    Convolution,
    activated,
    activation_bound,
    convolutions,
    normal,
)
from tolerances import assert_within, epsilon, sum_of_products
from torch.nn import functional as F

from fastgan import native_convolution


def transposed(small, weight, case: Convolution):
    """dgrad in float64: the derivative of fprop."""
    big = torch.zeros(case.n, case.b, *case.size, dtype=torch.float64, requires_grad=True)
    y = F.conv2d(big, weight, None, case.stride, case.padding)
    return torch.autograd.grad(y, big, small)[0]


def weight_gradient(big, small, case: Convolution):
    weight = torch.zeros(case.s, case.b, *case.kernel, dtype=torch.float64, requires_grad=True)
    y = F.conv2d(big, weight, None, case.stride, case.padding)
    return torch.autograd.grad(y, weight, small)[0]


def check_case(case: Convolution, dtype, activation: str, has_bias: bool, out_dtype) -> None:
    big = normal((case.n, case.b, *case.size), dtype, 1)
    weight = normal((case.s, case.b, *case.kernel), dtype, 2)
    small = normal((case.n, case.s, *case.small_size), dtype, 3)
    taps = case.kernel[0] * case.kernel[1]
    exact_big, exact_weight, exact_small = (t.double() for t in (big, weight, small))
    settings_of_call = {"stride": case.stride, "padding": case.padding}
    epilogue = {"activation": activation, "negative_slope": SLOPE}

    def check(name, actual, product, magnitude, terms, bias):
        shift = 0.0 if bias is None else bias.double().view(1, -1, 1, 1)
        exact = activated(product + shift, activation)
        size = magnitude + (0.0 if bias is None else shift.abs())
        bound = sum_of_products(torch.float32, terms, size)
        assert_within(name, actual, exact, activation_bound(exact, bound, dtype))
        assert actual.dtype == dtype
        assert actual.is_contiguous(memory_format=torch.channels_last)

    bias = normal((case.s,), torch.float32, 4) if has_bias else None
    check(
        "fprop",
        native_convolution.fprop(big, weight, bias, **settings_of_call, **epilogue),
        F.conv2d(exact_big, exact_weight, None, case.stride, case.padding),
        F.conv2d(exact_big.abs(), exact_weight.abs(), None, case.stride, case.padding),
        case.b * taps + 1,
        bias,
    )
    bias = normal((case.b,), torch.float32, 5) if has_bias else None
    check(
        "dgrad",
        native_convolution.dgrad(
            small, weight, bias, big_size=case.size, **settings_of_call, **epilogue
        ),
        transposed(exact_small, exact_weight, case),
        transposed(exact_small.abs(), exact_weight.abs(), case),
        case.s * taps + 1,
        bias,
    )
    actual = native_convolution.wgrad(
        big, small, kernel_size=case.kernel, out_dtype=out_dtype, **settings_of_call
    )
    exact = weight_gradient(exact_big, exact_small, case)
    magnitude = weight_gradient(exact_big.abs(), exact_small.abs(), case)
    terms = case.n * case.small_size[0] * case.small_size[1]
    bound = sum_of_products(torch.float32, terms, magnitude) + epsilon(out_dtype) * exact.abs()
    assert_within("wgrad", actual, exact, bound + torch.finfo(out_dtype).smallest_normal)
    assert actual.dtype == out_dtype


@settings(max_examples=500)
@given(
    case=convolutions,
    dtype=st.sampled_from(DTYPES),
    activation=st.sampled_from(ACTIVATIONS),
    has_bias=st.booleans(),
    out_dtype=st.sampled_from(DTYPES),
)
def test_convolutions_are_exact_up_to_rounding(
    level, case, dtype, activation, has_bias, out_dtype
) -> None:
    check_case(case, dtype, activation, has_bias, out_dtype)


#: DCGAN's layers with fewer images and channels, and sizes past one block of steps or pixels; few
#: pixels, whose weight fprop reads where it lies, and more.
LAYERS = (
    Convolution(2, 3, 64, (16, 16), (4, 4), (2, 2), (1, 1)),
    Convolution(7, 64, 128, (8, 8), (4, 4), (2, 2), (1, 1)),
    Convolution(5, 256, 130, (4, 4), (4, 4), (2, 2), (1, 1)),
    Convolution(3, 1, 66, (9, 9), (5, 5), (2, 2), (2, 2)),
    Convolution(2, 520, 64, (3, 3), (3, 3), (1, 1), (1, 1)),
    Convolution(33, 12, 70, (5, 4), (1, 1), (1, 1), (0, 0)),
    Convolution(9, 64, 70, (16, 16), (4, 4), (2, 2), (1, 1)),
    Convolution(1, 64, 130, (12, 12), (3, 3), (1, 1), (1, 1)),
    Convolution(1, 96, 7, (4, 5), (5, 3), (1, 2), (2, 0)),
    Convolution(2, 64, 3, (11, 11), (1, 1), (1, 1), (0, 0)),
    Convolution(2, 65, 3, (6, 6), (2, 2), (3, 3), (0, 0)),  # stride beyond the kernel
)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", LAYERS, ids=str)
def test_layers_are_exact_up_to_rounding(level, case, dtype) -> None:
    check_case(case, dtype, "leaky_relu", True, dtype)


def test_a_nan_reaches_the_pixels_that_read_it_and_no_others(level) -> None:
    for dtype in DTYPES:
        big = normal((3, 16, 6, 6), dtype, 1)
        big[1, 5, 0, 0] = float("nan")
        weight = normal((8, 16, 3, 3), dtype, 2)
        small = native_convolution.fprop(big, weight, None, stride=(1, 1), padding=(1, 1))
        expected = F.conv2d(big.double(), weight.double(), None, 1, 1).isnan()
        assert torch.equal(small.isnan(), expected)


def test_mismatched_sizes_are_refused(extension) -> None:
    big, small = normal((2, 4, 8, 8), torch.float32, 1), normal((2, 6, 5, 4), torch.float32, 2)
    with pytest.raises(RuntimeError, match="do not belong to this kernel, stride and padding"):
        native_convolution.wgrad(big, small, kernel_size=(4, 4), stride=(2, 2), padding=(1, 1))


def test_a_tensor_that_is_not_channels_last_is_refused(extension) -> None:
    big = torch.randn(2, 4, 8, 8)
    weight = normal((6, 4, 4, 4), torch.float32, 1)
    with pytest.raises(RuntimeError, match="big is not dense channels_last"):
        native_convolution.fprop(big, weight, None, stride=(2, 2), padding=(1, 1))
