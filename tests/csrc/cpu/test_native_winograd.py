"""Winograd's tiles (csrc/cpu/winograd.h) at every instruction-set level against float64 torch.

The sums are made of other products than a direct convolution's, so they have an error bound of
their own. `axis_products` writes down the algorithm along one axis, as three matrices with a row
for each product: which linear forms of the big side, the small side and the weight are multiplied.
The algorithm in two dimensions is their tensor product. Evaluated with its signs it must be the
convolution, exactly; evaluated on absolute values, matrices included, it is the magnitude of the
standard bound (tests/tolerances.py), with one more rounding for every addition on the way.
"""

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
    channels,
    dense,
    normal,
    pairs,
)
from tolerances import assert_within, epsilon, sum_of_products
from torch import Tensor
from torch.nn import functional as F

from fastgan import native_convolution

GEOMETRY = {"kernel": (4, 4), "stride": (2, 2)}
#: Roundings of a sum beyond one for each of its products: two differences of the data, two sums of
#: taps, two sums of products, the bias.
TRANSFORMS = 7

cases = st.builds(
    Convolution,
    n=st.integers(1, 13),
    b=channels,
    s=channels,
    size=pairs(1, 13),
    kernel=st.just((4, 4)),
    stride=st.just((2, 2)),
    padding=pairs(0, 4),
).filter(lambda case: case.possible)


def axis_products(direction: str, big: int, small: int, padding: int) -> tuple[Tensor, ...]:
    """The products of one axis: matrices [products, big], [products, small] and [products, 4].

    Position i of parity r is the big side's pixel 2 i + r - padding. With pairs (d0, d1, d2), the
    taps (g0, g1) that d0 and d1 meet, and the sums (y0, y1) of a tile,

        (d1 - d0) (-g0) -> y0        d1 (g0 + g1) -> y0, y1        (d2 - d1) g1 -> y1

    d is the big side and y the small side of fprop; d is the small side and y the big side of
    dgrad, whose taps run backwards; wgrad is fprop's form with y as an operand.
    """
    rows: list[tuple[Tensor, Tensor, Tensor]] = []

    def form(length: int, terms: dict[int, int]) -> Tensor:
        values = torch.zeros(length, dtype=torch.float64)
        for index, value in terms.items():
            if 0 <= index < length:
                values[index] += value
        return values

    for parity in (0, 1):
        transposed = direction == "dgrad"

        def pixel(position: int, parity: int = parity) -> int:
            return 2 * position + parity - padding

        first = -((parity - padding) // 2) if transposed else 0  # of y; dgrad: pixel(first) >= 0
        count = len(range(pixel(first), big, 2)) if transposed else small
        taps = (parity + 2, parity) if transposed else (parity, parity + 2)
        for y0 in range(first, first + count, 2):
            d0 = y0 - 1 if transposed else y0
            data = ({d0 + 1: 1, d0: -1}, {d0 + 1: 1}, {d0 + 2: 1, d0 + 1: -1})
            weight = ({taps[0]: -1}, {taps[0]: 1, taps[1]: 1}, {taps[1]: 1})
            sums = ({y0: 1}, {y0: 1, y0 + 1: 1}, {y0 + 1: 1})
            for d, g, y in zip(data, weight, sums, strict=True):
                on_big, on_small = (y, d) if transposed else (d, y)
                on_big = {pixel(position): sign for position, sign in on_big.items()}
                rows.append((form(big, on_big), form(small, on_small), form(4, g)))
    return tuple(torch.stack(column) for column in zip(*rows, strict=True))


def evaluate(
    direction: str, case: Convolution, operands: tuple[Tensor, Tensor], absolute: bool
) -> Tensor:
    """The algorithm in float64 on the two operands of a direction: (big or small, weight or small).

    `absolute`: on absolute values, which bounds everything that is added up.
    """
    axes = [
        axis_products(direction, *sizes)
        for sizes in zip(case.size, case.small_size, case.padding, strict=True)
    ]
    if absolute:
        axes = [tuple(matrix.abs() for matrix in axis) for axis in axes]
        operands = (operands[0].abs(), operands[1].abs())
    names = {"fprop": (0, 2, 1), "dgrad": (1, 2, 0), "wgrad": (0, 1, 2)}[direction]
    first, second = (
        torch.einsum("py,qx,...yx->...pq", axes[0][name], axes[1][name], operand)
        for name, operand in zip(names, operands, strict=False)
    )
    sums = {"fprop": "nbpq,sbpq->nspq", "dgrad": "nspq,sbpq->nbpq", "wgrad": "nbpq,nspq->sbpq"}
    products = torch.einsum(sums[direction], first, second)
    result = names[2]
    return torch.einsum("py,qx,...pq->...yx", axes[0][result], axes[1][result], products)


def exact(direction: str, case: Convolution, operands: tuple[Tensor, Tensor]) -> Tensor:
    """Float64 torch: fprop, or its derivative with respect to big or weight."""
    if direction == "fprop":
        return F.conv2d(*operands, None, case.stride, case.padding)
    big = torch.zeros(case.n, case.b, *case.size, dtype=torch.float64)
    weight = torch.zeros(case.s, case.b, 4, 4, dtype=torch.float64)
    if direction == "dgrad":
        small, weight = operands
        asked = big.requires_grad_()
    else:
        big, small = operands
        asked = weight.requires_grad_()
    y = F.conv2d(big, weight, None, case.stride, case.padding)
    return torch.autograd.grad(y, asked, small)[0]


def drawn(case: Convolution) -> dict[str, tuple[Tensor, Tensor]]:
    """The operands of each direction, standard normal."""
    big = normal((case.n, case.b, *case.size), torch.float32, 1)
    weight = normal((case.s, case.b, 4, 4), torch.float32, 2)
    small = normal((case.n, case.s, *case.small_size), torch.float32, 3)
    return {"fprop": (big, weight), "dgrad": (small, weight), "wgrad": (big, small)}


def compute(direction: str, case: Convolution, operands: tuple[Tensor, Tensor], **rest) -> Tensor:
    """The native kernel of a direction."""
    call = {"stride": case.stride, "padding": case.padding, "algorithm": "winograd", **rest}
    if direction == "wgrad":
        return native_convolution.wgrad(*operands, kernel_size=(4, 4), **call)
    bias = call.pop("bias", None)
    if direction == "fprop":
        return native_convolution.fprop(*operands, bias, **call)
    return native_convolution.dgrad(*operands, bias, big_size=case.size, **call)


def check_case(case: Convolution, activation: str, has_bias: bool, out_dtype) -> None:
    tiles = case.n * ((case.small_size[0] + 1) // 2) * ((case.small_size[1] + 1) // 2)
    products = {"fprop": 4 * case.b, "dgrad": case.s, "wgrad": tiles}
    for direction, operands in drawn(case).items():
        doubles = (operands[0].double(), operands[1].double())
        wanted = exact(direction, case, doubles)
        torch.testing.assert_close(evaluate(direction, case, doubles, False), wanted)
        magnitude = evaluate(direction, case, doubles, True)
        terms = products[direction] + TRANSFORMS
        if direction == "wgrad":
            actual = compute(direction, case, operands, out_dtype=out_dtype)
            bound = sum_of_products(torch.float32, terms, magnitude)
            bound = bound + epsilon(out_dtype) * wanted.abs() + torch.finfo(out_dtype).tiny
            assert actual.dtype == out_dtype
        else:
            bias = normal((wanted.shape[1],), torch.float32, 4) if has_bias else None
            shift = torch.zeros(1) if bias is None else bias.double().view(1, -1, 1, 1)
            epilogue = {"bias": bias, "activation": activation, "negative_slope": SLOPE}
            actual = compute(direction, case, operands, **epilogue)
            wanted = activated(wanted + shift, activation)
            bound = sum_of_products(torch.float32, terms, magnitude + shift.abs())
            bound = activation_bound(wanted, bound, torch.float32)
        assert_within(direction, actual, wanted, bound)
        assert actual.is_contiguous(memory_format=torch.channels_last)


@settings(max_examples=300)
@given(
    case=cases,
    activation=st.sampled_from(ACTIVATIONS),
    has_bias=st.booleans(),
    out_dtype=st.sampled_from(DTYPES),
)
def test_tiles_are_exact_up_to_rounding(level, case, activation, has_bias, out_dtype) -> None:
    check_case(case, activation, has_bias, out_dtype)


#: Past one chunk of tiles, one block of channels, one turn of a reduction, one split of the images.
LAYERS = (
    Convolution(7, 64, 128, (16, 16), padding=(1, 1), **GEOMETRY),
    Convolution(3, 130, 70, (6, 6), padding=(1, 1), **GEOMETRY),
    Convolution(2, 3, 5, (50, 46), padding=(1, 1), **GEOMETRY),
    Convolution(1, 2, 3, (6, 431), padding=(0, 2), **GEOMETRY),
    Convolution(35, 20, 12, (8, 9), padding=(1, 0), **GEOMETRY),
    Convolution(1, 264, 300, (4, 4), padding=(1, 1), **GEOMETRY),
)


@pytest.mark.parametrize("case", LAYERS, ids=str)
def test_layers_are_exact_up_to_rounding(level, case) -> None:
    check_case(case, "leaky_relu", True, torch.float32)


@settings(max_examples=100)
@given(case=cases)
def test_whole_numbers_are_exact(level, case) -> None:
    """No sum of small whole numbers is rounded, in whatever order and by whatever products."""
    generator = torch.Generator().manual_seed(1)
    for direction, operands in drawn(case).items():
        whole = [
            dense(torch.randint(-4, 5, t.shape, generator=generator).float()) for t in operands
        ]
        wanted = exact(direction, case, (whole[0].double(), whole[1].double()))
        assert torch.equal(compute(direction, case, (whole[0], whole[1])).double(), wanted)


@pytest.mark.parametrize("poison", [float("nan"), float("inf")], ids=str)
@pytest.mark.parametrize("size", [(8, 8), (9, 7), (11, 5)], ids=str)
@pytest.mark.parametrize("padding", [(0, 0), (1, 1), (2, 3)], ids=str)
def test_what_is_not_finite_reaches_the_sums_that_read_it_and_no_others(
    level, size, padding, poison
) -> None:
    case = Convolution(2, 5, 6, size, padding=padding, **GEOMETRY)
    for direction, operands in drawn(case).items():
        height, width = operands[0].shape[2:]
        places = ((0, 0), (1, 2), (2, 1), (height - 1, width - 1), (height - 2, 0))
        for y, x in {(min(y, height - 1), min(x, width - 1)) for y, x in places}:
            poisoned = operands[0].clone(memory_format=torch.channels_last)
            poisoned[1, 3, y, x] = poison
            reached = torch.zeros_like(poisoned, dtype=torch.float64)
            reached[1, 3, y, x] = 1.0
            expected = exact(direction, case, (reached, torch.ones_like(operands[1].double())))
            actual = ~compute(direction, case, (poisoned, operands[1])).isfinite()
            if direction == "wgrad" and any(length % 2 for length in case.small_size):
                # Half a tile: the taps of a parity share a product of one pixel (see the source).
                assert actual[expected != 0].all()
                actual[:, 3] = expected[:, 3] != 0
            assert torch.equal(actual, expected != 0)


def test_no_images_have_no_gradient(level) -> None:
    case = Convolution(0, 5, 6, (8, 8), padding=(1, 1), **GEOMETRY)
    for direction, operands in drawn(case).items():
        actual = compute(direction, case, operands)
        assert torch.equal(actual, torch.zeros_like(actual))


@pytest.mark.parametrize(
    ("dtype", "kernel", "stride"),
    [
        (torch.bfloat16, (4, 4), (2, 2)),
        (torch.float32, (3, 4), (2, 2)),
        (torch.float32, (4, 4), (2, 1)),
    ],
    ids=str,
)
def test_what_it_does_not_serve_is_refused(extension, dtype, kernel, stride) -> None:
    assert native_convolution.unsupported_by_winograd(
        dtype=dtype, kernel_size=kernel, stride=stride
    )
    big, weight = normal((2, 4, 8, 8), dtype, 1), normal((6, 4, *kernel), dtype, 2)
    with pytest.raises(RuntimeError, match="float32 with 4x4 kernels of stride 2 alone"):
        native_convolution.fprop(big, weight, stride=stride, padding=(1, 1), algorithm="winograd")
