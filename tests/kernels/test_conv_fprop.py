"""fprop, on pixels and on images, against float64 torch."""

from __future__ import annotations

import pytest
import tolerances
import torch
import torch.nn.functional as F
from conv_cases import DEVICES, DTYPES, NAMED, Case, activated, drawn
from conv_cases import poisoned as poisoned_buffers

from fastgan.kernels import conv_launch, conv_tuning, convolution
from fastgan.kernels.activation import ACTIVATIONS


def check(case, dtype, device, monkeypatch, *, bias=None, activation="identity", slope=0.01):
    big, weight, _ = case.tensors(dtype, device)
    if bias is not None:
        bias = torch.linspace(-2, 2, case.s, device=device).to(bias)
    with poisoned_buffers(monkeypatch):
        small = convolution.fprop(
            big,
            weight,
            bias,
            stride=case.stride,
            padding=case.padding,
            activation=activation,
            negative_slope=slope,
        )
    assert small.dtype == dtype
    assert small.is_contiguous(memory_format=torch.channels_last)
    where = {"stride": case.stride, "padding": case.padding}
    offset = None if bias is None else bias.double()
    exact = activated(F.conv2d(big.double(), weight.double(), offset, **where), activation, slope)
    magnitude = F.conv2d(big.double().abs(), weight.double().abs(), **where) + 2
    terms = case.b * case.kernel[0] * case.kernel[1]
    bound = tolerances.sum_of_products(small.dtype, terms, magnitude)
    tolerances.assert_within(str(case), small, exact, bound)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("case", NAMED, ids=str)
def test_named_geometries(case, device, monkeypatch):
    check(case, torch.float32, device, monkeypatch)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("case", drawn(16, seed=1), ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_drawn_geometries(case, dtype, device, monkeypatch):
    check(case, dtype, device, monkeypatch)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("channels", [3, 8])
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("bias", [torch.float32, torch.bfloat16], ids=str)
def test_bias_and_activation(channels, activation, bias, device, monkeypatch):
    case = Case(2, channels, (6, 5), 9, (3, 3), (2, 2), (1, 1))
    check(case, torch.bfloat16, device, monkeypatch, bias=bias, activation=activation, slope=0.2)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("case", [NAMED[0], NAMED[2], NAMED[5], *drawn(4, seed=2)], ids=str)
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
    big = torch.empty(0, channels, 8, 8).contiguous(memory_format=torch.channels_last)
    weight = torch.ones(5, channels, 4, 4).contiguous(memory_format=torch.channels_last)
    small = convolution.fprop(big, weight, stride=(2, 2), padding=(1, 1))
    assert small.shape == (0, 5, 4, 4)


def test_nan_in_a_pixel_reaches_its_outputs_alone(monkeypatch):
    big = torch.zeros(1, 8, 6, 6).contiguous(memory_format=torch.channels_last)
    big[0, 3, 2, 2] = torch.nan
    weight = torch.ones(4, 8, 3, 3).contiguous(memory_format=torch.channels_last)
    small = convolution.fprop(big, weight, stride=(1, 1), padding=(0, 0), activation="relu")
    expected = F.conv2d(big, weight)
    assert torch.equal(small.isnan(), expected.isnan())


@pytest.mark.gpu
def test_offsets_past_two_to_the_31():
    big = torch.randn(33_000, 64, 32, 32, device="cuda", dtype=torch.bfloat16)
    big = big.contiguous(memory_format=torch.channels_last)
    weight = torch.randn(16, 64, 4, 4, device="cuda", dtype=torch.bfloat16)
    weight = weight.contiguous(memory_format=torch.channels_last)
    assert conv_launch.wide_index(big)
    small = convolution.fprop(big, weight, stride=(2, 2), padding=(1, 1))
    alone = convolution.fprop(big[-4:], weight, stride=(2, 2), padding=(1, 1))
    torch.testing.assert_close(small[-4:], alone)
