"""dgrad by phases, onto pixels and onto images, against float64 torch."""

from __future__ import annotations

import pytest
import tolerances
import torch
from conv_cases import DEVICES, DTYPES, NAMED, Case, activated, drawn
from conv_cases import poisoned as poisoned_buffers

from fastgan.kernels import conv_launch, conv_tuning, convolution
from fastgan.kernels.activation import ACTIVATIONS
from fastgan.kernels.conv_dgrad import phase_sizes
from fastgan.kernels.conv_dgrad_image import neighbour_offsets


def check(case, dtype, device, monkeypatch, *, bias=None, activation="identity", slope=0.01):
    _, weight, small = case.tensors(dtype, device)
    if bias is not None:
        bias = torch.linspace(-2, 2, case.b, device=device).to(bias)
    with poisoned_buffers(monkeypatch):
        big = convolution.dgrad(
            small,
            weight,
            bias,
            big_size=case.size,
            stride=case.stride,
            padding=case.padding,
            activation=activation,
            negative_slope=slope,
        )
    assert big.dtype == dtype
    assert big.is_contiguous(memory_format=torch.channels_last)
    exact = by_torch(case, weight.double(), small.double())
    if bias is not None:
        exact = exact + bias.double()[:, None, None]
    magnitude = by_torch(case, weight.double().abs(), small.double().abs()) + 2
    terms = case.s * case.kernel[0] * case.kernel[1]
    bound = tolerances.sum_of_products(big.dtype, terms, magnitude)
    tolerances.assert_within(str(case), big, activated(exact, activation, slope), bound)


def by_torch(case, weight, small):
    shape = (case.n, case.b, *case.size)
    return torch.nn.grad.conv2d_input(shape, weight, small, case.stride, case.padding)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("case", NAMED, ids=str)
def test_named_geometries(case, device, monkeypatch):
    check(case, torch.float32, device, monkeypatch)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("case", drawn(16, seed=3), ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_drawn_geometries(case, dtype, device, monkeypatch):
    check(case, dtype, device, monkeypatch)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("channels", [3, 8])
@pytest.mark.parametrize("output_padding", [(0, 0), (1, 0), (0, 2), (1, 2)], ids=str)
def test_output_padding_as_conv_transpose2d(channels, output_padding, device, monkeypatch):
    # The big side is larger than the small side reaches: the rest is the bias alone.
    height = (4 - 1) * 2 - 2 + 3 + output_padding[0]
    width = (3 - 1) * 3 + 2 + output_padding[1]
    case = Case(2, channels, (height, width), 6, (3, 2), (2, 3), (1, 0))
    assert case.small_size == (4, 3)
    check(case, torch.float32, device, monkeypatch, bias=torch.float32)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("channels", [3, 9])
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("bias", [torch.float32, torch.bfloat16], ids=str)
def test_bias_and_activation(channels, activation, bias, device, monkeypatch):
    case = Case(2, channels, (6, 5), 8, (3, 3), (2, 2), (1, 1))
    check(case, torch.bfloat16, device, monkeypatch, bias=bias, activation=activation, slope=0.2)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("channels", [2, 8])
def test_pixels_that_no_tap_reaches_get_the_bias(channels, device, monkeypatch):
    case = Case(2, channels, (9, 9), 5, (1, 2), (3, 4))
    check(case, torch.float32, device, monkeypatch, bias=torch.float32, activation="sigmoid")


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("case", [NAMED[0], NAMED[1], NAMED[12], *drawn(4, seed=4)], ids=str)
def test_many_small_tiles(case, device, monkeypatch):
    tile = conv_tuning.Configuration(16, 16, 16, 4, 2)
    monkeypatch.setattr(conv_tuning, "ranked", lambda problem, chip: (tile,))
    check(case, torch.float16, device, monkeypatch)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("case", [NAMED[0], NAMED[1], NAMED[7]], ids=str)
def test_wide_offsets(case, device, monkeypatch):
    monkeypatch.setattr(conv_launch, "INDEX_LIMIT", 0)
    check(case, torch.float32, device, monkeypatch)


@pytest.mark.parametrize("channels", [3, 8])
def test_empty_batch(channels):
    small = torch.empty(0, 5, 4, 4).contiguous(memory_format=torch.channels_last)
    weight = torch.ones(5, channels, 4, 4).contiguous(memory_format=torch.channels_last)
    big = convolution.dgrad(small, weight, big_size=(8, 8), stride=(2, 2), padding=(1, 1))
    assert big.shape == (0, channels, 8, 8)


@pytest.mark.parametrize("kernel", range(1, 8))
@pytest.mark.parametrize("stride", range(1, 5))
@pytest.mark.parametrize("pad", range(5))
def test_phases_and_neighbours_hold_every_tap_once(kernel, stride, pad):
    size = 13
    taps = {(o, k) for o in range(size) for k in range(kernel) if (o + pad - k) % stride == 0}
    sizes = phase_sizes(size, kernel, stride, pad)
    assert sum(count for count, _ in sizes) == size
    assert sum(count * reached for count, reached in sizes) == len(taps)
    first, count = neighbour_offsets(kernel, stride, pad)
    used = {(o + pad - k) // stride - o // stride for o, k in taps}
    assert used
    assert min(used) >= first
    assert max(used) < first + count
