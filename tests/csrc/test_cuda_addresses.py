"""Tensors of more than 2^31 elements: the last block of each grid finds its place.

Memory is taken only where it is touched, and only the last block runs: an index that wrapped around
would fault or miss its place.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import test_cuda_batch_norm as batch_norm
import test_cuda_bias_act as bias_act
import test_cuda_image_convolution as convolution
import test_cuda_pack_weights as packing
import torch
from simt_library import ACTIVATIONS, DTYPES, Device, Library, pointer
from torch.nn import functional as F
from torch.nn.grad import conv2d_input, conv2d_weight

BF16 = torch.bfloat16
#: So many multiprocessors that the last of the blocks has few rows.
MANY = Device(2**19, 100_000)
ROWS, CHANNELS = 2**28 + 512, 8
TAIL = 64


@pytest.fixture
def last_block(simt: Library) -> Iterator[Library]:
    simt.only_last_block(True)
    yield simt
    simt.only_last_block(False)


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(BF16)


def matrix(simt: Library, seed: int) -> torch.Tensor:
    """[ROWS, CHANNELS] of zeros but for the last TAIL rows."""
    values = simt.sparse((ROWS, CHANNELS), BF16)
    values[-TAIL:] = drawn(TAIL, CHANNELS, seed=seed)
    return values


@pytest.mark.parametrize("direction", ["forward", "backward"])
def test_bias_act(last_block: Library, direction: str) -> None:
    x, grad_y = matrix(last_block, 0), matrix(last_block, 1)
    result = last_block.sparse(x.shape, BF16)
    call = bias_act.BiasAct(
        DTYPES[BF16], ROWS, CHANNELS, pointer(x), None, pointer(grad_y), pointer(result), None,
        ACTIVATIONS.index("leaky_relu"), 0.5, None,
    )  # fmt: skip
    last_block.run(f"bias_act_{direction}", call, MANY)
    tail = x[-TAIL:] if direction == "forward" else grad_y[-TAIL:]
    assert torch.equal(result[-TAIL:], torch.where(x[-TAIL:] > 0, tail, tail * 0.5))


def test_batch_norm_forward(last_block: Library) -> None:
    x, y = matrix(last_block, 0), last_block.sparse((ROWS, CHANNELS), BF16)
    mean, variance = torch.zeros(CHANNELS), torch.full((CHANNELS,), 0.25)
    call = batch_norm.Forward(
        DTYPES[BF16], 1, ROWS, CHANNELS, pointer(x), pointer(y), None, None, None, None,
        pointer(mean), pointer(variance), 0.1, 0.0, 0, 0.0, False, 1, None,
    )  # fmt: skip
    last_block.run("batch_norm_forward", call, MANY)
    assert torch.equal(y[-TAIL:], x[-TAIL:] * 2)


def test_batch_norm_backward(last_block: Library) -> None:
    x, grad_y = matrix(last_block, 0), matrix(last_block, 1)
    grad_x = last_block.sparse(x.shape, BF16)
    mean, invstd = torch.zeros(CHANNELS), torch.full((CHANNELS,), 2.0)
    sums = torch.empty(2, CHANNELS)
    call = batch_norm.Backward(
        DTYPES[BF16], 1, ROWS, CHANNELS, pointer(grad_y), pointer(x), pointer(grad_x), None, None,
        pointer(mean), pointer(invstd), pointer(sums[0]), pointer(sums[1]), 0, 0.0, False, 1, None,
    )  # fmt: skip
    workspace = last_block.floats("batch_norm_backward", call, MANY).zero_()
    call.workspace = pointer(workspace)
    last_block.run("batch_norm_backward", call, MANY)
    assert torch.equal(grad_x[-TAIL:], grad_y[-TAIL:] * 2)


def convolution_call(batch: int, channels: int, small_channels: int, kernel: int, **tensors):
    """A convolution from 64x64 to 32x32, stride 2."""
    return convolution.ImageConvolution(
        DTYPES[BF16], batch, 64, 64, channels, 32, 32, small_channels, kernel, kernel, 2, 2,
        kernel // 2 - 1, kernel // 2 - 1,
        *(pointer(tensors.get(name)) for name in ("big", "small", "weight")), None,
        pointer(tensors["result"]), DTYPES[BF16], 0, 0.0, None,
    )  # fmt: skip


def nchw(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.permute(0, 3, 1, 2).double()


def test_fprop(last_block: Library) -> None:
    batch, weight = 2**15 + 1, drawn(64, 4, 4, 4, seed=1)
    big = last_block.sparse((batch, 64, 64, 4), BF16)
    big[-1] = drawn(64, 64, 4)
    small = last_block.sparse((batch, 32, 32, 64), BF16)
    last_block.run(
        "image_fprop", convolution_call(batch, 4, 64, 4, big=big, weight=weight, result=small)
    )
    expected = F.conv2d(nchw(big[-1:]), nchw(weight), stride=2, padding=1)[0, :, -2:]
    torch.testing.assert_close(nchw(small[-1:])[0, :, -2:], expected, rtol=0.01, atol=0.01)


def test_dgrad(last_block: Library) -> None:
    batch, weight = 2**17 + 1, drawn(8, 4, 4, 4, seed=1)
    small = last_block.sparse((batch, 32, 32, 8), BF16)
    small[-1] = drawn(32, 32, 8)
    big = last_block.sparse((batch, 64, 64, 4), BF16)
    last_block.run(
        "image_dgrad", convolution_call(batch, 4, 8, 4, small=small, weight=weight, result=big)
    )
    expected = conv2d_input((1, 4, 64, 64), nchw(weight), nchw(small[-1:]), 2, 1)
    got = nchw(big[-1:])[..., 33::2, 1::2]  # the last phase's last positions
    torch.testing.assert_close(got, expected[..., 33::2, 1::2], rtol=0.01, atol=0.01)


def test_wgrad(last_block: Library) -> None:
    batch = 2**17 + 2
    big = last_block.sparse((batch, 64, 64, 4), BF16)
    small = last_block.sparse((batch, 32, 32, 1), BF16)
    big[-1], small[-1, -4:] = drawn(64, 64, 4), drawn(4, 32, 1, seed=1)
    weight = last_block.empty((1, 2, 2, 4), BF16)
    call = convolution_call(batch, 4, 1, 2, big=big, small=small, result=weight)
    workspace = last_block.floats("image_wgrad", call, MANY).zero_()
    call.workspace = pointer(workspace)
    last_block.run("image_wgrad", call, MANY)
    expected = conv2d_weight(nchw(big[-1:]), (1, 4, 2, 2), nchw(small[-1:]), 2, 0)
    torch.testing.assert_close(nchw(weight), expected, rtol=0.01, atol=0.1)


def test_pack_weights(last_block: Library) -> None:
    far = last_block.sparse((3, 2**30), torch.float32)
    far[:, -16:] = torch.arange(48.0).view(3, 16)
    weight = far[:, -16:].unflatten(1, (4, 2, 2))
    (packed,) = packing.run(last_block, [weight], BF16)
    assert torch.equal(packed[-1], weight[-1].to(BF16))
