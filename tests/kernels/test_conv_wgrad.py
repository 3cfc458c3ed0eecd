"""wgrad with split reductions against float64 torch."""

from __future__ import annotations

import pytest
import tolerances
import torch
from conv_cases import DEVICES, DTYPES, NAMED, Case, drawn
from conv_cases import poisoned as poisoned_buffers

from fastgan.kernels import conv_launch, conv_tuning, conv_wgrad, convolution


def check(case, dtype, device, monkeypatch, out_dtype=None):
    big, weight, small = case.tensors(dtype, device)
    with poisoned_buffers(monkeypatch):
        gradient = convolution.wgrad(
            big,
            small,
            kernel_size=case.kernel,
            stride=case.stride,
            padding=case.padding,
            out_dtype=out_dtype,
        )
    assert gradient.dtype == (out_dtype or dtype)
    assert gradient.shape == weight.shape
    assert gradient.permute(0, 2, 3, 1).is_contiguous()
    exact = by_torch(case, big.double(), small.double())
    magnitude = by_torch(case, big.double().abs(), small.double().abs())
    terms = case.n * case.small_size[0] * case.small_size[1]
    bound = tolerances.sum_of_products(gradient.dtype, terms, magnitude)
    tolerances.assert_within(str(case), gradient, exact, bound)
    return gradient


def by_torch(case, big, small):
    shape = (case.s, case.b, *case.kernel)
    return torch.nn.grad.conv2d_weight(big, shape, small, case.stride, case.padding)


@pytest.fixture
def splits(monkeypatch):
    """Makes every launch divide its reduction by the given number."""

    def force(number):
        tile = conv_tuning.Configuration(64, 32, 16, 4, 2)
        monkeypatch.setattr(conv_tuning, "ranked", lambda problem, chip: (tile,))
        monkeypatch.setattr(conv_wgrad, "estimate", lambda problem, tile, chip: (0.0, number))

    return force


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("case", NAMED, ids=str)
def test_named_geometries(case, device, monkeypatch):
    check(case, torch.float32, device, monkeypatch)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("case", drawn(16, seed=5), ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_drawn_geometries(case, dtype, device, monkeypatch):
    check(case, dtype, device, monkeypatch)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("number", [1, 2, 3, 7])
@pytest.mark.parametrize("case", [NAMED[0], NAMED[1], NAMED[3]], ids=str)
def test_any_split_is_right_and_the_same_bits_again(case, number, device, splits, monkeypatch):
    splits(number)
    first = check(case, torch.bfloat16, device, monkeypatch, out_dtype=torch.float32)
    again = check(case, torch.bfloat16, device, monkeypatch, out_dtype=torch.float32)
    assert torch.equal(first, again)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("number", [1, 3])
@pytest.mark.parametrize("out_dtype", DTYPES, ids=str)
def test_result_dtype(out_dtype, number, device, splits, monkeypatch):
    splits(number)
    check(NAMED[0], torch.bfloat16, device, monkeypatch, out_dtype=out_dtype)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("size", [(1, 37), (3, 1), (5, 5)], ids=str)
def test_position_carries_over_rows_and_images(size, device, splits, monkeypatch):
    # Steps of 16 pixels over rows and images shorter and longer than a step.
    splits(1)
    check(Case(9, 5, size, 6, (1, 1)), torch.float32, device, monkeypatch)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("case", [NAMED[0], NAMED[1], NAMED[4]], ids=str)
def test_wide_offsets(case, device, monkeypatch):
    monkeypatch.setattr(conv_launch, "INDEX_LIMIT", 0)
    check(case, torch.float32, device, monkeypatch)


@pytest.mark.parametrize("channels", [3, 8])
def test_empty_batch_gives_zeros(channels, monkeypatch):
    case = Case(0, channels, (8, 8), 5, (4, 4), (2, 2), (1, 1))
    big, _, small = case.tensors(torch.float32, "cpu")
    with poisoned_buffers(monkeypatch):
        gradient = convolution.wgrad(big, small, kernel_size=(4, 4), stride=(2, 2), padding=(1, 1))
    assert torch.equal(gradient, torch.zeros(5, channels, 4, 4))
